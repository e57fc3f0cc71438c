"""A command that writes a model says in one line that the disk refuses it, and leaves nothing of it there."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import SINGLE_TURN
from training import extend_vocabulary, tiny_bloom

COMMANDS = {
    tiny_bloom: "--data-path {rows} --output-dir {out}",
    extend_vocabulary: "--input-model {model} --corpus {words} --num-tokens 2 --output-dir {out}",
}


WORDS = ["量子计算", "碳中和", "跨境支付", "应急预案"]


@contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """A block in which no file can become larger than `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_the_disk_refuses(command, base: str, tmp_path: Path, outcome) -> None:
    out = tmp_path / "out"
    words = tmp_path / "words.txt"
    words.write_text(
        "".join(f"{word}{place}\n" for word in WORDS for place in "东南西北" * 3), encoding="utf-8"
    )
    arguments = COMMANDS[command].format(model=base, rows=SINGLE_TURN, words=words, out=out)
    with limited_file_size(100_000):  # the weights are larger; what is smaller is written before them
        status, _, err = outcome(command.main, arguments)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {out}: cannot be written (")
    assert "File too large" in err
    assert err.endswith("); make room, or give another --output-dir\n")
    assert list(out.iterdir()) == []
    assert outcome(command.main, arguments)[0] == 0
