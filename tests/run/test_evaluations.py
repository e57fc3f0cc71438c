"""A run that is evaluated on rows held out, and on files of their own."""

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluation import perplexity
from tests.conftest import SINGLE_TURN, write_rows
from training import trainer
from training.common.console import evaluated_name
from training.common.errors import UserError

ROWS = [json.loads(line) for line in SINGLE_TURN.read_text("utf-8").splitlines()]


def train(directory: Path, base: str, more: str) -> None:
    arguments = (
        f"--data-path {directory / 'rows.jsonl'} --input-model {base} --local-output-dir {directory} "
        f"--cache-dir {directory / 'cache'} --run-name run --no-bf16 --lr 1e-3 --warmup-steps 0 "
        "--no-gradient-checkpointing --logging-steps 1 --per-device-train-batch-size 4 "
    )
    trainer.main.main((arguments + more).split(), standalone_mode=False)


def test_files_are_evaluated_beside_the_rows_held_out(outcome, base: str, tmp_path: Path, capsys) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS[:30])
    first = write_rows(tmp_path / "first.jsonl", ROWS[29:34])
    second = write_rows(tmp_path / "验证.jsonl", ROWS[40:43])
    run = tmp_path / "run"
    files = f"--eval-data-path {first} --eval-data-path {second}"
    train(tmp_path, base, f"{files} --test-size 4 --max-steps 2 --eval-steps 2 --save-steps 2")
    out = capsys.readouterr().out
    assert "26 rows to train on, 4 held out\n" in out
    assert "WARNING: evaluation first: 5 rows, 1 of them with the whole prompt of a row that is tr" in out
    assert "evaluation 验证: 3 rows, none of them with the whole prompt of a row that is trained on" in out
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {
        key: value
        for entry in metrics
        for key, value in entry.items()
        if evaluated_name({key: value}) is not None
    }
    assert list(losses) == ["eval_loss", "eval_first_loss", "eval_验证_loss"]
    for key, value in losses.items():
        of = {"eval_loss": "", "eval_first_loss": " of first", "eval_验证_loss": " of 验证"}[key]
        assert f"step 2/2  evaluation loss{of} {value:.4f} on " in out
        assert f"| last evaluation loss{of} | {value:.4f} at step 2 |" in (run / "report.md").read_text(
            "utf-8"
        )
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert report["last_evaluation"]["eval_loss"] == losses["eval_loss"]
    assert report["evaluations"]["验证"]["best"]["eval_验证_loss"] == losses["eval_验证_loss"]
    events = EventAccumulator(str(next((run / "runs").rglob("events.out.tfevents*")).parent)).Reload()
    assert {"eval/loss", "eval/first_loss", "eval/验证_loss"} <= set(events.Tags()["scalars"])

    # Measured apart, the model that was saved has the same losses on the same rows.
    for name, path in (("eval_loss", run / "held_out.jsonl"), ("eval_first_loss", first)):
        arguments = (
            f"--model {run} --device cpu --dtype float32 --data-path {path} --output {tmp_path / name}"
        )
        assert outcome(perplexity.main, arguments)[0] == 0
        apart = json.loads((tmp_path / name / "result.json").read_text("utf-8"))["domains"]["all"]
        assert apart["loss"] == pytest.approx(losses[name], abs=1e-5)
    held_out = [
        json.loads(line)["messages"] for line in (run / "held_out.jsonl").read_text("utf-8").splitlines()
    ]
    answers = [row["output"] for row in ROWS[:30]]
    assert [messages[-1]["content"] in answers for messages in held_out] == [True] * 4

    # The run goes on with the files that it began with, which must not change.
    inode = (run / "held_out.jsonl").stat().st_ino
    shutil.copy(second, tmp_path / "kept")
    write_rows(tmp_path / "验证.jsonl", ROWS[40:44])
    with pytest.raises(UserError, match=r"not the same evaluation data as this run's; pass --resume-anyway"):
        train(tmp_path, base, "--resume --max-steps 4")
    shutil.copy(tmp_path / "kept", second)
    capsys.readouterr()
    train(tmp_path, base, "--resume --max-steps 4")
    assert "step 4/4  evaluation loss of 验证 " in capsys.readouterr().out
    assert (run / "held_out.jsonl").stat().st_ino == inode
    # Other data, by --resume-anyway, hold out other rows.
    write_rows(tmp_path / "rows.jsonl", ROWS[50:80])
    train(tmp_path, base, "--resume-anyway --max-steps 5")
    lines = (run / "held_out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["messages"][-1]["content"] in answers for line in lines] == [False] * 4


def test_where_files_are_given_nothing_is_held_out(base: str, tmp_path: Path, capsys) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS[:8])
    path = write_rows(tmp_path / "test.jsonl", ROWS[10:12])
    train(tmp_path, base, f"--eval-data-path {path} --max-steps 1 --eval-steps 1 --report-to none")
    out = capsys.readouterr().out
    assert "8 rows to train on, 0 held out\n" in out
    assert "evaluation loss of test " in out
    assert not (tmp_path / "run" / "held_out.jsonl").exists()
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["last_evaluation"] is None
    assert report["evaluations"].keys() == {"test"}
