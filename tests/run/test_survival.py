"""Runs that are killed, are stopped, or fill the disk, and go on: the real launcher with two CPU ranks."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import SINGLE_TURN
from tests.launching import ZERO2, Running, kill, launch, launcher, printed_losses, run, values
from training.run.checkpoints import find_checkpoints, step_of
from training.run.stopping import SIGNALS

pytestmark = pytest.mark.slow

# How often a run is interrupted; more often by hand than in CI.
INTERRUPTIONS = int(os.environ.get("YAYI_TEST_INTERRUPTIONS", "3"))

STEPS, SAVE_EVERY = 8 * INTERRUPTIONS, 3


@pytest.fixture(scope="module")
def shared(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("survival")
    return [
        "--deepspeed", ZERO2, "--data-path", str(SINGLE_TURN), "--input-model", base,
        "--local-output-dir", str(directory), "--cache-dir", str(directory / "cache"),
        "--test-size", "0", "--max-steps", str(STEPS), "--save-steps", str(SAVE_EVERY),
        "--save-total-limit", "1", "--logging-steps", "1", "--lr", "3e-3", "--warmup-steps", "4",
        "--lr-scheduler", "cosine", "--per-device-train-batch-size", "4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(shared: list[str], forked) -> tuple[Path, dict[int, str]]:
    """(run directory, the printed losses)."""
    finished = forked(2, *shared, "--run-name", "uninterrupted")
    assert finished.returncode == 0, finished.stderr
    losses = printed_losses(finished.stdout)
    assert list(losses) == list(range(1, STEPS + 1))
    return run_dir_of(shared, "uninterrupted"), losses


def run_dir_of(arguments: list[str], name: str) -> Path:
    return Path(arguments[arguments.index("--local-output-dir") + 1]) / name


def complete_step(run_dir: Path) -> int:
    complete, _ = find_checkpoints(run_dir)
    return step_of(complete[-1]) if complete else 0


def is_saving(run_dir: Path) -> bool:
    return any(run_dir.glob(".incomplete-*"))


def is_pending(number: signal.Signals, process: psutil.Process) -> bool:
    """Whether a suspended process will get a signal when it goes on."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"^ShdPnd:\s*([0-9a-f]+)$", status, re.M)[1], 16) >> (number - 1) & 1)


def test_a_run_that_is_killed_again_and_again_gives_the_losses_of_one_that_is_not(
    shared: list[str], uninterrupted
) -> None:
    """All its processes, or the launcher alone, are killed by -9 at random moments, some during a save."""
    run_dir, expected = run_dir_of(shared, "killed"), uninterrupted[1]
    randomly = random.Random(0)
    printed: dict[int, str] = {}
    kills = in_saves = 0
    while True:
        before = complete_step(run_dir)
        command = launcher(2, *shared, "--run-name", "killed", "--resume", module="tests.slow_disk")
        running = Running(*command)
        if kills < INTERRUPTIONS:
            step = randomly.randrange(before + 1, before + 2 * SAVE_EVERY + 1)
            wants_save = kills % 2 == 0
            # A save begins after a step whose number is a multiple of SAVE_EVERY.
            step = -(-step // SAVE_EVERY) * SAVE_EVERY if wants_save else step
            came = running.wait_for_step(step)
            if came and wants_save:
                came = running.wait_until(lambda at=step: is_saving(run_dir) or complete_step(run_dir) >= at)
            time.sleep(randomly.uniform(0, 1.0 if wants_save else 0.3))
            if came:
                kills += 1
                in_saves += is_saving(run_dir)
            saved = complete_step(run_dir)
            family = running.family()
            kill(family[:1] if kills % 3 == 2 else family)
            running.finish()
            _, alive = psutil.wait_procs(family[1:], timeout=60)
            assert not alive, "a rank outlived its launcher"
            assert complete_step(run_dir) >= saved
        status = running.finish()
        for at, loss in printed_losses(running.output).items():
            assert printed.setdefault(at, loss) == loss
        if status == 0:
            break
        assert kills <= INTERRUPTIONS, running.output
    assert kills == INTERRUPTIONS
    assert in_saves > 0
    print(f"{kills} kills, {in_saves} of them in a save, in {STEPS} steps")
    assert printed == expected
    assert values(run_dir, "loss") == values(uninterrupted[0], "loss")
    ours, theirs = (directory / "model" / "model.safetensors" for directory in (run_dir, uninterrupted[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(shared: list[str], uninterrupted) -> None:
    """A signal reaches one rank or both at a random moment: both save at one step and end with status 75."""
    run_dir, expected = run_dir_of(shared, "stopped"), uninterrupted[1]
    randomly = random.Random(1)
    printed: dict[int, str] = {}
    stops = 0
    for _ in range(3 * INTERRUPTIONS + 3):
        before = complete_step(run_dir)
        running = Running(*launcher(2, *shared, "--run-name", "stopped", "--resume"))
        if stops < INTERRUPTIONS:
            step = randomly.randrange(before + 1, before + max(2, (STEPS - before) // INTERRUPTIONS) + 1)
            came = running.wait_for_step(step)
            time.sleep(randomly.uniform(0, 0.2))
            ranks = running.ranks()
            if came and len(ranks) == 2:
                which = [ranks[:1], ranks[1:], ranks][stops % 3]
                for rank in which:
                    rank.send_signal(SIGNALS[stops % len(SIGNALS)])
                stops += 1
        status = running.finish()
        for at, loss in printed_losses(running.output).items():
            assert printed.setdefault(at, loss) == loss
        assert complete_step(run_dir) == max(printed)  # nothing that was computed is computed again
        assert (run_dir / "report.json").exists() == (status == 0), running.output
        if status == 75:  # the launcher hands on what the first rank to end says
            stopped = json.loads((run_dir / "stopped").read_text())
            assert stopped["step"] == max(printed)
            assert stopped["reason"] in (*(number.name for number in SIGNALS), "another rank's signal")
            again = running.lines[
                running.lines.index(next(x for x in running.lines if "to continue:" in x)) + 1
            ]
            assert again.startswith("deepspeed --num_gpus=2")
            assert again.endswith("--run-name stopped --resume")
        else:
            assert status == 0, running.output
            assert not (run_dir / "stopped").exists()
            break
    print(f"{stops} signals")
    assert stops == INTERRUPTIONS
    assert printed == expected
    assert values(run_dir, "loss") == values(uninterrupted[0], "loss")


def test_a_run_keeps_others_out_of_its_directory_and_ends_within_a_minute_of_a_ranks_end(
    shared: list[str],
) -> None:
    arguments = [*shared, "--run-name", "rank-killed"]
    running = Running(*launcher(2, *arguments))
    assert running.wait_for_step(1)
    family, ranks = running.family(), running.ranks()
    assert len(ranks) == 2
    for rank in ranks:  # so that the run cannot end before the other has looked
        rank.suspend()
    second = run("python", "-m", "training.trainer", *arguments, "--resume")
    ranks[1].kill()
    # Rank 0 learns of the signal that the launcher sends it before it learns that the other rank is gone.
    assert running.wait_until(lambda: is_pending(signal.SIGTERM, ranks[0]))
    ranks[0].resume()
    assert second.returncode == 2
    errors = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "another process works in it" in errors[0]
    assert running.finish(60) != 0
    _, alive = psutil.wait_procs(family[1:], timeout=30)
    assert not alive
    assert "SIGTERM: saving and stopping after the next step" in running.output
    assert not (run_dir_of(shared, "rank-killed") / "stopped").exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root"
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    shared: list[str], uninterrupted, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        arguments = [*shared, "--local-output-dir", str(disk), "--run-name", "run"]
        saved = find_checkpoints(uninterrupted[0])[0][-1]
        one = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
        running = Running(*launcher(2, *arguments))
        run_dir, filler = disk / "run", disk / "filler"
        assert running.wait_until(lambda: "matrices at" in running.output)
        with open(filler, "wb") as file:  # room for the first checkpoint and a half
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 3 * one // 2)
        assert running.finish() == 2, running.output
        errors = [line for line in running.lines if line.startswith("error: ")]
        assert len(errors) == 1, running.output
        assert "cannot be written" in errors[0]
        assert "is complete; make room, and continue by --resume" in errors[0]
        assert "Traceback" not in running.output
        left = complete_step(run_dir)
        assert left == SAVE_EVERY

        refused = launch(2, *arguments, "--resume")  # the forecast is made before anything starts
        assert refused.returncode == 2
        assert "are needed for" in refused.stderr

        filler.unlink()
        resumed = launch(2, *arguments, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert min(printed_losses(resumed.stdout)) == left + 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_loss_that_is_no_number_stops_the_run_with_its_rows(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of ranks that no launcher set are in its way no more than in any other run's."""
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    finished = run(
        "python", "-m", "training.trainer", "--data-path", str(SINGLE_TURN), "--input-model", base,
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--run-name", "run",
        "--no-bf16", "--lr", "1e30", "--warmup-steps", "0", "--max-steps", "20", "--save-steps", "1",
        "--test-size", "0",
    )  # fmt: skip
    assert finished.returncode == 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2: ignored" in finished.stderr
    step = complete_step(tmp_path / "run") + 1
    assert f"error: step {step}: the loss is nan" in errors[-1]
    assert f"checkpoint-{step - 1} is the last good one" in errors[-1]
    assert len(errors) == 9
    assert all(f"in the batch of step {step}: {SINGLE_TURN}:" in line for line in errors[:-1])
