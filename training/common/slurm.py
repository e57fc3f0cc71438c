"""Plain `srun`, one task a card: what Slurm's variables say about the ranks of a run."""

import os
import re
from collections.abc import Mapping

from training.common.errors import UserError

# Ports below those that Linux gives to outgoing connections (32768 and up), for the ranks to meet at.
FIRST_PORT, PORTS = 15000, 15000


def in_slurm_step() -> bool:
    """Whether `srun` started this process; a batch script has other variables of Slurm, but not this one."""
    return "SLURM_STEP_NUM_TASKS" in os.environ


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which PyTorch knows its ranks, for a task of `srun`; none for a step of one task.

    MASTER_ADDR and MASTER_PORT stay what they are where they are set. Raises UserError where a variable
    cannot be derived.
    """
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    try:
        ranks = {
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        }
        if "SLURM_STEP_TASKS_PER_NODE" in environment:
            counts = tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])
            ranks["LOCAL_WORLD_SIZE"] = str(counts[int(environment.get("SLURM_NODEID", "0"))])
        address = environment.get("MASTER_ADDR") or first_host(_node_list(environment))
        port = environment.get("MASTER_PORT") or str(_port(environment))
    except KeyError as error:
        raise UserError(
            f"srun: {error.args[0]} is not set, so that the ranks cannot find each other; start by srun in a "
            "job of Slurm, or set MASTER_ADDR and MASTER_PORT"
        ) from None
    return ranks | {"MASTER_ADDR": address, "MASTER_PORT": port}


def _node_list(environment: Mapping[str, str]) -> str:
    # Rank 0 runs on the first node of the step, which need not be the first of the job.
    return environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]


def _port(environment: Mapping[str, str]) -> int:
    """A port that is the same for all tasks of a step, and another one for the job's next step."""
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    return FIRST_PORT + (job + 1009 * step) % PORTS


def first_host(node_list: str) -> str:
    """The first name of Slurm's compressed list: node01 for `node[01-03,7],login`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def tasks_of_nodes(counts: str) -> list[int]:
    """The number of tasks on each node: [8, 8, 4] for Slurm's `8(x2),4`."""
    tasks = []
    for part in counts.split(","):
        count, repeated = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups()
        tasks += [int(count)] * int(repeated or 1)
    return tasks
