"""The command of a run as it was typed, whatever started its ranks."""

import os
import shlex
import sys
from collections.abc import Iterable

import psutil

from training.common.launchers import command_of, launcher_command, launchers
from training.common.slurm import in_slurm_step

# DeepSpeed's second launcher, one a node, which its first one starts; nobody types it.
OF_ONE_NODE = "deepspeed.launcher.launch"


def typed_command() -> str:
    """The command of this run, as the user gave it to a launcher or to Python.

    It is read from the processes above this one, and `srun` or a launcher that started this process over the
    network from those beside it; so it is to be taken at the start, while they are there.
    """
    return shlex.join(_in_slurm(_launched() or _python()))


def _launched() -> list[str] | None:
    above = launchers()
    command = launcher_command(above[-1]) if above else None
    if command and OF_ONE_NODE in command:
        beside = (launcher_command(process) for process in psutil.process_iter())
        own = ["deepspeed", "--module", "training.trainer", *_arguments()]
        return _same_arguments(typed for typed in beside if typed and OF_ONE_NODE not in typed) or own
    return command


def _in_slurm(command: list[str]) -> list[str]:
    if not in_slurm_step():
        return command
    beside = (_srun(command_of(process)) for process in psutil.process_iter())
    return _same_arguments(typed for typed in beside if typed) or ["srun", *command]


def _srun(command: list[str]) -> list[str] | None:
    names = [os.path.basename(part) for part in command[:2]]  # the second, where it is a script
    return ["srun", *command[names.index("srun") + 1 :]] if "srun" in names else None


def _same_arguments(commands: Iterable[list[str]]) -> list[str] | None:
    """The command that ends with the arguments of this process."""
    arguments = _arguments()
    return next((command for command in commands if command[-len(arguments) :] == arguments), None)


def _arguments() -> list[str]:
    """The options of this process without the one that DeepSpeed's launcher gave it."""
    return [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]


def _python() -> list[str]:
    arguments = sys.argv[1:]
    before = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
    is_typed = before[-1:] == ["training.trainer"]  # not so within another program
    return [*(before if is_typed else ["python", "-m", "training.trainer"]), *arguments]


def command_to_continue(command: str, run_name: str) -> str:
    """The command that continues a run: its own, with --run-name and --resume."""
    parts = shlex.split(command)
    if "--run-name" not in parts and not any(part.startswith("--run-name=") for part in parts):
        parts += ["--run-name", run_name]
    if "--resume" not in parts:
        parts.append("--resume")
    return shlex.join(parts)
