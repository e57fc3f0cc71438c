"""docs/clusters.md and the Dockerfile: what they show runs, as far as it can without Slurm and an engine."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import assert_parses, blocks

PAGE = (ROOT / "docs" / "clusters.md").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
BATCH, *COMMANDS = blocks(PAGE, "bash")

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > arguments
if [ -e checkpoints/my-run/stopped ]; then exit 99; fi
if [ "$STATUS" = 75 ]; then echo '{}' > checkpoints/my-run/stopped; fi
exit "$STATUS"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" > requeued
"""


def run_batch(directory: Path, status: int) -> tuple[int, str | None]:
    """Run the batch file with stand-ins: (its exit status, what `scontrol` was told or None)."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    (directory / "checkpoints" / "my-run").mkdir(parents=True, exist_ok=True)
    (directory / "yayi.sbatch").write_text(BATCH)
    variables = {"SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "8", "STATUS": str(status)}
    environment = os.environ | variables | {"PATH": f"{directory}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "yayi.sbatch"], cwd=directory, env=environment, check=False)
    requeued = directory / "requeued"
    return done.returncode, requeued.read_text().strip() if requeued.exists() else None


def test_the_batch_file_requeues_a_run_that_was_stopped_and_no_other(tmp_path: Path) -> None:
    assert run_batch(tmp_path, 75) == (75, "requeue 77")
    (tmp_path / "requeued").unlink()
    assert run_batch(tmp_path, 143) == (143, "requeue 77")  # SIGTERM, before the run could heed it
    (tmp_path / "requeued").unlink()
    assert run_batch(tmp_path, 2) == (2, None)  # although the start before it was stopped
    assert run_batch(tmp_path, 0) == (0, None)
    arguments = (tmp_path / "arguments").read_text().split("\n")[:-1]
    at = arguments.index("training.trainer")
    assert arguments[at - 2 : at] == ["python", "-m"]
    assert_parses("training.trainer", arguments[at + 1 :])


def test_every_command_of_the_page_parses() -> None:
    lines = "".join(COMMANDS).replace("\\\n", " ").splitlines()
    started = [line for line in lines if "training.trainer" in line]
    assert len(started) == 4
    for line in started:
        assert_parses("training.trainer", shlex.split(line.partition(" training.trainer ")[2]))


def test_every_step_of_the_dockerfile_is_a_script_and_copies_what_is_there() -> None:
    instructions = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ").splitlines()
    steps = [line.removeprefix("RUN ") for line in instructions if line.startswith("RUN ")]
    assert len(steps) == 3
    for step in steps:
        subprocess.run(["bash", "-n"], input=step, text=True, check=True)
    for line in instructions:
        if line.startswith("COPY "):
            *sources, _ = line.split()[1:]
            assert all((ROOT / source).exists() for source in sources), line


@pytest.mark.parametrize(("built", "status"), [("13.0", 0), ("13.2", 0), ("12.8", 2)])
def test_the_image_is_refused_where_torch_is_of_another_cuda(tmp_path: Path, built: str, status: int) -> None:
    """nvcc and torch need the same major version of CUDA. A stand-in for Python says torch's."""
    (tmp_path / "python").write_text(f"#!/bin/sh\necho {built}\n")
    (tmp_path / "python").chmod(0o755)
    instructions = DOCKERFILE.replace("\\\n", " ").splitlines()
    (step,) = (line.removeprefix("RUN ") for line in instructions if "torch.version.cuda" in line)
    cuda = re.search(r"^ARG CUDA=(\S+)", DOCKERFILE, re.M)[1]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step], env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CUDA": cuda},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("error: torch was built with CUDA 12.8") == (status == 2)
