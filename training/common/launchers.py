"""The launchers above this process: `deepspeed`, `torchrun`, `accelerate launch`, and those of a cluster."""

import os

import psutil

# The scripts that start ranks, and the modules that they are, for `python -m`.
SCRIPTS = {"deepspeed", "ds", "torchrun", "accelerate", "accelerate-launch"}
MODULES = {
    "deepspeed",
    "deepspeed.launcher.runner",
    "deepspeed.launcher.launch",
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
}

# What starts processes on the nodes of a cluster; these may set variables of ranks by a script of the user's.
OF_A_CLUSTER = {
    *("srun", "mpirun", "mpiexec", "mpiexec.hydra", "orterun", "orted", "prterun", "prted"),
    *("hydra_pmi_proxy", "mpispawn"),
}


def launchers() -> list[psutil.Process]:
    """The launchers above this process: what starts a node's ranks, then what the user started.

    None for a process that is no rank.
    """
    if "LOCAL_RANK" not in os.environ:
        return []
    return [process for process in psutil.Process().parents() if launcher_command(process)]


def launcher_command(process: psutil.Process) -> list[str] | None:
    """The command of a launcher as it is typed, or None for any other process."""
    command = command_of(process)
    if not command or not os.path.basename(command[0]).startswith("python"):
        return None
    position = next((at for at, part in enumerate(command) if at and not _is_switch(part)), len(command))
    if position < len(command) and command[position - 1] != "-m":
        script = os.path.basename(command[position])
        return [script, *command[position + 1 :]] if script in SCRIPTS else None
    if position < len(command) and command[position] in MODULES:
        return ["python", "-m", *command[position:]]
    return None


def _is_switch(part: str) -> bool:
    return part.startswith("-")


def is_of_a_cluster(process: psutil.Process) -> bool:
    """Whether a process is what starts processes on the nodes of a cluster."""
    return any(os.path.basename(part) in OF_A_CLUSTER for part in command_of(process)[:2])


def command_of(process: psutil.Process) -> list[str]:
    """The command of a process; empty for one that is gone, or is another user's."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or is a zombie that its own parent has not taken note of yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
