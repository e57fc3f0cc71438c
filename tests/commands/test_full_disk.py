"""A command that writes a model says in one line that the disk refuses it, and leaves nothing of it there."""

from pathlib import Path

import pytest

from tests.conftest import SINGLE_TURN, longest_file
from training import extend_vocabulary, tiny_bloom

COMMANDS = {
    tiny_bloom: "--data-path {rows} --output-dir {out}",
    extend_vocabulary: "--input-model {model} --corpus {words} --num-tokens 2 --output-dir {out}",
}

WORDS = ["量子计算", "碳中和", "跨境支付", "应急预案"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_the_disk_refuses(command, base: str, tmp_path: Path, outcome) -> None:
    out = tmp_path / "out"
    words = tmp_path / "words.txt"
    words.write_text(
        "".join(f"{word}{place}\n" for word in WORDS for place in "东南西北" * 3), encoding="utf-8"
    )
    arguments = COMMANDS[command].format(model=base, rows=SINGLE_TURN, words=words, out=out)
    with longest_file(100_000):  # the weights are larger; what is smaller is written before them
        status, _, err = outcome(command.main, arguments)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {out}: cannot be written (")
    assert "File too large" in err
    assert err.endswith("); make room, or give another --output-dir\n")
    assert list(out.iterdir()) == []
    assert outcome(command.main, arguments)[0] == 0
