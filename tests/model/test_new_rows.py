"""The benchmark of new embedding rows, without its training."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks import new_rows
from tests.conftest import write_rows
from tests.tiny_models import make_llama


def test_both_adapter_rates_are_tried_and_paths_may_hold_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def train(arguments: list[str], *, standalone_mode: bool) -> None:
        context = new_rows.trainer.main.make_context("trainer", arguments, resilient_parsing=True)
        seen.append((context.params["input_model"], context.params["lr"]))
        (Path(context.params["local_output_dir"]) / "run").mkdir()

    losses = new_rows.Losses(1.0, 1.0)
    monkeypatch.setattr(new_rows.trainer.main, "main", train)
    monkeypatch.setattr(new_rows, "load", lambda *_, **__: (None, None))
    for name, value in (
        ("losses_before_training", losses),
        ("answer_losses", losses),
        ("ended_share", 1.0),
        ("ended_share_of_base", None),
    ):
        monkeypatch.setattr(new_rows, name, lambda *_, value=value: value)
    base = tmp_path / "a base"
    base.mkdir()
    rows = write_rows(tmp_path / "rows.jsonl", [{"instruction": "q", "output": "a"}] * 2)
    arguments = ["--input-model", str(base), "--data-path", rows, "--rows", "1", "--start", "eos"]
    new_rows.main.main(arguments, standalone_mode=False)
    assert seen == [(str(base), 1e-4), (str(base), 3e-4)]


def test_the_base_itself_is_asked_by_its_own_template(tmp_path: Path) -> None:
    """An answer ends where its token is the tokenizer's end, here the first token that the base says."""
    base, rows = (
        make_llama(tmp_path / "base"),
        [{"instruction": "你好", "input": "吗"}, {"instruction": "你"}],
    )
    assert new_rows.ended_share_of_base(base, rows, 3) is None
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    input_ids = tokenizer("你好\n吗", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(input_ids).logits[0, -1]
    for token_id, first_row_ends in ((int(logits.argmax()), True), (int(logits.argmin()), False)):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token_id)
        tokenizer.save_pretrained(base)
        assert (new_rows.ended_share_of_base(base, rows[:1], 1) == 1) == first_row_ends
        assert new_rows.ended_share_of_base(base, rows, 1) >= first_row_ends / 2
