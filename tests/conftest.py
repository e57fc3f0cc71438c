"""What most tests need: a tiny tokenizer, a tiny Bloom, and one that was taught a few rows by heart.

Imports that take seconds stand in the fixtures: pytest-xdist's first process, which runs no test, does
without them.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

gc.disable()  # until all is imported: what is imported stays, and looking through it takes seconds

ROOT = Path(__file__).parent.parent
SINGLE_TURN = ROOT / "data" / "yayi_train_example.json"
MULTI_TURN = ROOT / "data" / "yayi_train_example_multi_rounds.json"

# The rows that the `tuned` model knows: a plain one, one with an input and a newline inside, one whose
# characters have several tokens, and one of two turns.
LEARNT = [
    {"instruction": "你是谁", "input": "", "output": "我是雅意。"},
    {"instruction": "List two fruits.", "input": "red, yellow", "output": "1. apple\n2. banana"},
    {"instruction": "笑一个", "output": "😀🀄𠮷 好"},
    {
        "system": "你是一名记者。",
        "conversations": [
            {"from": "human", "value": "标题？"},
            {"from": "yayi", "value": "大桥通车"},
            {"from": "human", "value": "再短一点。"},
            {"from": "yayi", "value": "通车"},
        ],
    },
]


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session", autouse=True)
def _quick_processes() -> None:
    """Settings that make many small runs in one process quick."""
    import torch

    from training.run import curves, speed

    torch.set_num_threads(1)  # with models this small, threads only wait for each other
    speed.MEASURED_SECONDS = 0.01  # a run measures the machine no longer than needed to have a figure
    curves.write_atomic = lambda path, _: path.touch()  # a curve is put together, and painted in its own test
    gc.freeze()  # each run collects garbage, and need not search what was imported
    gc.enable()


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that `make` fills, in the first of pytest-xdist's processes that asks for it."""
    from training.common.files import hold_lock

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    directory, made = shared / name, shared / f"{name}.made"
    with hold_lock(shared / f"{name}.lock", f"waiting for another process that makes {name}", wait=True):
        if not made.exists():
            directory.mkdir()
            make(directory)
            made.touch()
    return directory


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a tiny random Bloom whose tokenizer has no control tokens yet."""

    def make(directory: Path) -> None:
        from training import tiny_bloom
        from training.model.save import save_model

        tokenizer = tiny_bloom.train_tokenizer(tiny_bloom.training_texts(str(SINGLE_TURN)))
        model = tiny_bloom.random_bloom(len(tokenizer) + tiny_bloom.SPARE_ROWS)
        save_model(model, tokenizer, directory / "tiny-bloom")

    return str(made_once(tmp_path_factory, "base", make) / "tiny-bloom")


@pytest.fixture(scope="session")
def tokenizer(base: str):
    from training.text.tokenizer import load_tokenizer

    return load_tokenizer(base)


@pytest.fixture(scope="session")
def tuned(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a model that our trainer taught LEARNT by heart; above it is that of the run."""

    def make(directory: Path) -> None:
        from training import trainer

        rows = write_rows(directory / "learnt.jsonl", LEARNT)
        options = (
            f"--data-path {rows} --input-model {base} --local-output-dir {directory} --run-name run "
            f"--cache-dir {directory / 'cache'} "
            "--test-size 0 --max-steps 120 --lr 1e-2 --lr-scheduler linear --warmup-steps 5 "
            "--per-device-train-batch-size 4 --no-gradient-checkpointing --no-bf16 --logging-steps 40"
        )
        trainer.main.main(options.split(), standalone_mode=False)

    return str(made_once(tmp_path_factory, "tuned", make) / "run" / "model")


@pytest.fixture
def outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[[click.Command, str], tuple[int, str, str]]:
    """A function that runs a command as `python -m` would: (exit status, stdout, stderr)."""
    from training.common.errors import run_command

    def run(command: click.Command, arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *arguments.split()])
        with pytest.raises(SystemExit) as exit_:
            run_command(command)
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run
