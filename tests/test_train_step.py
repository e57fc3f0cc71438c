"""The benchmark of one training step: what it prints of ways that were measured elsewhere."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks import train_step
from tests.conftest import SINGLE_TURN


def test_a_way_that_runs_out_of_a_cards_memory_is_said_and_the_next_one_runs(
    base: str, outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"seconds": 0.5, "peak": 2e9, "loss": 1.25, "bound": 1e15}

    def measured(command: list[str], **kwargs) -> subprocess.CompletedProcess:
        result = None if command[-1] == "plain" else figures
        return subprocess.CompletedProcess(command, 0, f"a warning\n{json.dumps(result)}\n")

    line = f"--data-path {SINGLE_TURN} --input-model {base} --base qwen"
    monkeypatch.setattr(sys, "argv", ["train_step", *line.split()])
    monkeypatch.setattr(train_step, "find_spec", lambda name: None)
    monkeypatch.setattr(train_step.subprocess, "run", measured)
    status, out, _ = outcome(train_step.main, line)
    assert status in (0, None)
    assert "plain   runs out of the card's memory\n" in out
    assert "ours           0.5" in out
    assert "times as fast" not in out
