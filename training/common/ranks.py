"""The variables that say which rank of a run this process is, and whether they can be believed.

Launchers set RANK, LOCAL_RANK and WORLD_SIZE for the processes that they start. Left behind by a shell, a
container or a notebook, they make a run wait for ranks that do not exist, or print nothing because it takes
itself for another rank.
"""

import os
import socket
import sys
from collections.abc import Mapping

from training.common.slurm import in_slurm_step, slurm_variables

# What launchers say about the ranks: torchrun's LOCAL_WORLD_SIZE is LOCAL_SIZE for DeepSpeed's.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")

# What they are for a single process, which does as well without them.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}

# Seconds that a connection to MASTER_PORT may take.
CONNECTION_S = 2.0


def world_size() -> int:
    """The number of ranks."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def ranks_of_node() -> int | None:
    """The number of ranks on this node, or None where no launcher says it."""
    found = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")
    return int(found) if found else None


def settle_ranks() -> None:
    """Have the variables of ranks only where there are ranks, and have those of plain `srun`.

    Called before anything reads them. Raises UserError where Slurm's variables do not suffice.
    """
    if not any(name in os.environ for name in RANK_VARIABLES):
        os.environ.update(slurm_variables(os.environ))
    elif not _is_launched(os.environ):
        found = {name: os.environ.pop(name) for name in RANK_VARIABLES if name in os.environ}
        if any(found.get(name, alone) != alone for name, alone in ALONE.items()):
            text = " ".join(f"{name}={value}" for name, value in found.items())
            print(f"{text}: ignored, since no launcher started this process", file=sys.stderr, flush=True)


def _is_launched(environment: Mapping[str, str]) -> bool:
    """Whether something that started this process can have set its variables of ranks."""
    if "TORCHELASTIC_RUN_ID" in environment or in_slurm_step():
        return True
    if any(argument.startswith("--local_rank") for argument in sys.argv[1:]):
        return True  # by DeepSpeed's launcher, which may have been killed since
    import psutil

    from training.common.launchers import is_of_a_cluster, launcher_command

    above = psutil.Process().parents()
    is_started = any(launcher_command(process) or is_of_a_cluster(process) for process in above)
    return is_started or _answers(environment)


def _answers(environment: Mapping[str, str]) -> bool:
    """Whether something listens where the ranks are to meet."""
    try:
        address = (environment.get("MASTER_ADDR", "127.0.0.1"), int(environment["MASTER_PORT"]))
        socket.create_connection(address, timeout=CONNECTION_S).close()
    except (KeyError, ValueError, OSError, OverflowError):
        return False
    return True
