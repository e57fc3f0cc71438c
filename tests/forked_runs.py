"""Several runs of the trainer under one start of the launcher: `deepspeed --module tests.forked_runs RUNS`.

Each rank imports the trainer once and forks a process for each run, so that a run costs its steps and not
its imports. RUNS is a file, a list of {"port": of its process group, "log": a file, "arguments": of the
trainer}; with "tried": true the run tries its longest micro-batch first, as one on a card does. LOG then has
what the run printed and LOG.status its exit status, for rank 0; for another rank both names have .RANK after
LOG.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from transformers import Trainer

from training import trainer
from training.common.errors import run_command
from training.run import trial
from training.run.trial import try_longest_batch


def fork(run: dict, log: Path) -> int:
    """Run the trainer in a process of its own, with its output in a file. Returns the exit status."""
    child = os.fork()
    if not child:
        become(run, log)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tried(trainer: Trainer) -> int:
    """Try the longest micro-batch, and say so."""
    tokens = try_longest_batch(trainer)
    print(f"tried {tokens} tokens", flush=True)
    return tokens


def become(run: dict, log: Path) -> NoReturn:
    """Go on as the trainer, to the end of this process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["MASTER_PORT"] = str(run["port"])
    if run.get("tried"):
        trial.is_wanted = lambda device: True
        trial.try_longest_batch = tried
    sys.argv = ["trainer", *run["arguments"]]
    run_command(trainer.main)


def main() -> None:
    rank = os.environ["RANK"]
    for run in json.loads(Path(sys.argv[-1]).read_text("utf-8")):
        log = Path(run["log"] + ("" if rank == "0" else f".{rank}"))
        started = time.monotonic()
        status = fork(run, log)
        Path(f"{log}.status").write_text(str(status))
        print(f"rank {rank}: {log.name}: status {status}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
