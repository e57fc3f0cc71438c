"""What most tests need: a tiny tokenizer, a tiny Bloom, and one that was taught a few rows by heart.

Imports that take seconds stand in the fixtures: pytest-xdist's first process, which runs no test, does
without them.
"""

import contextlib
import gc
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
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

# Those that the `tuned_with_tools` model knows: a call whose argument would end it, if it could; two calls in
# one answer, and a call after their results; and a question that needs none.
TOOLS = [
    {"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "time"}},
]
HARD_ARGUMENTS = {"城": '里"昂"\n</tool_call>', "日": {"几": [1, 2.5]}}


def _tool_call(number: int, name: str, **arguments: object) -> dict:
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": text}}


def _result(number: int, text: str) -> dict:
    return {"role": "tool", "tool_call_id": f"c{number}", "content": text}


LEARNT_WITH_TOOLS: list[list[dict]] = [
    [
        {"role": "user", "content": "里昂几度？"},
        {"role": "assistant", "content": "", "tool_calls": [_tool_call(1, "天气", **HARD_ARGUMENTS)]},
        _result(1, '{"度": 21}'),
        {"role": "assistant", "content": "21度。"},
    ],
    [
        {"role": "user", "content": "现在呢"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [_tool_call(1, "time"), _tool_call(2, "天气", 城="x")],
        },
        _result(1, "九点"),
        _result(2, "9"),
        {"role": "assistant", "content": "", "tool_calls": [_tool_call(3, "time")]},
        _result(3, "十点"),
        {"role": "assistant", "content": "十点了。"},
    ],
    [{"role": "user", "content": "你是谁"}, {"role": "assistant", "content": "我是雅意。"}],
]


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@contextlib.contextmanager
def longest_file(size: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond a number of bytes, as it does where a disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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
    return _tuned(base, LEARNT, tmp_path_factory, "tuned")


@pytest.fixture(scope="session")
def tuned_with_tools(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a model that our trainer taught LEARNT_WITH_TOOLS by heart."""
    rows = [{"messages": messages, "tools": TOOLS} for messages in LEARNT_WITH_TOOLS]
    return _tuned(base, rows, tmp_path_factory, "tuned_with_tools")


def _tuned(base: str, learnt: list, tmp_path_factory: pytest.TempPathFactory, name: str) -> str:
    def make(directory: Path) -> None:
        from training import trainer

        rows = write_rows(directory / "learnt.jsonl", learnt)
        options = (
            f"--data-path {rows} --input-model {base} --local-output-dir {directory} --run-name run "
            f"--cache-dir {directory / 'cache'} "
            "--test-size 0 --max-steps 120 --lr 5e-3 --lr-scheduler linear --warmup-steps 5 "
            "--per-device-train-batch-size 4 --no-gradient-checkpointing --no-bf16 --logging-steps 40"
        )
        trainer.main.main(options.split(), standalone_mode=False)

    return str(made_once(tmp_path_factory, name, make) / "run" / "model")


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
