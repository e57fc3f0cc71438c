"""The benchmark of new embedding rows, without its training."""

from pathlib import Path

import pytest

from tests.benchmarks import new_rows
from tests.conftest import write_rows


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
