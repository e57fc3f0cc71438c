"""The run directory: whether a run may begin in it, or go on, and from where."""

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.common.command_line import as_yaml
from training.common.console import say
from training.common.errors import UserError
from training.common.files import check_empty, existing_parent, hold_lock, try_write, write_atomic
from training.common.hub import MODEL, holds_model, model_directory
from training.common.options import Options, values_of_run
from training.common.ranks import world_size
from training.data.examples import Examples
from training.data.held_out import HELD_OUT, write_held_out
from training.run.checkpoints import find_checkpoints, read_complete, step_of, warn_of_slow_save
from training.run.record import RECORD, check_checkpoint, keep_global_batch, keep_recorded, read_record
from training.run.report import steps_of_report
from training.run.stopping import STOPPED, StopRequest, is_stopped, note_stop
from training.run.typed_command import typed_command

if TYPE_CHECKING:
    from training.run.card_memory import Planned

# The options of the run, as a file for --config.
OPTIONS = "options.yaml"

# Rank 0 holds the lock of this file while it works; the system gives it back however the process ends.
LOCK = ".lock"

# What a run may leave in its directory before it has begun, if it is killed.
NOTHING_YET = (LOCK, STOPPED, f".{RECORD}.partial", f".{OPTIONS}.partial")


@dataclass
class Run:
    """A run that begins or goes on. Used as a context, it releases the run directory at the end of its block.

    record: what the run's last start went by, or None if it begins now. checkpoint: the checkpoint that it
    goes on from, or None to start at step 0. description: what this start would record; it must agree with
    `record`. command: what was typed. planned: what it is computed to take of a card, where there is one.
    steps_taken: gives the optimizer steps that are taken, once there is a trainer.
    """

    options: Options
    directory: Path
    deepspeed_config: dict[str, Any] | None
    record: dict[str, Any] | None = None
    checkpoint: Path | None = None
    description: dict[str, Any] = field(default_factory=dict)
    command: str = field(default_factory=typed_command)
    stop_request: StopRequest = field(default_factory=StopRequest)
    planned: "Planned | None" = None
    steps_taken: Callable[[], int] | None = None
    _held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Run":
        self.stop_request.ends_at_once = True
        self._held.enter_context(self.stop_request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stop_request.ends_at_once and is_stopped(error):
            self._note_early_stop(self.stop_request.reason)
        self._held.__exit__(kind, error, trace)

    def _note_early_stop(self, reason: str) -> None:
        # Nobody would look in a directory that was not made, and whose name nobody gave.
        is_known = self.directory.exists() or self.options.run_name
        is_finished = steps_of_report(self.directory) > 0
        if is_known and not is_finished and not self.options.plan and os.environ.get("RANK", "0") == "0":
            self.directory.mkdir(parents=True, exist_ok=True)
            note_stop(self.directory, step_of(self.checkpoint) if self.checkpoint else 0, reason)

    def hold(self) -> None:
        """Agree with the other ranks on the run directory, and keep other runs out of it.

        A default name has the time in it, and clocks differ: all ranks take rank 0's name.
        """
        directory, checkpoint = broadcast_object_list([str(self.directory), str(self.checkpoint)])
        if checkpoint != str(self.checkpoint):
            raise UserError(f"{directory}: changed while the ranks looked for a checkpoint; start again")
        self.directory = Path(directory)
        if self.record is None:
            self._held.enter_context(hold(self.directory))
            if os.environ.get("RANK", "0") == "0":
                check_new(self.directory)  # once more: another run may have begun and ended since
        if os.environ.get("RANK", "0") == "0":
            (self.directory / STOPPED).unlink(missing_ok=True)  # the run goes on

    def note_signals(self) -> None:
        """Have a signal noted in the run directory as soon as it comes. For rank 0."""
        self.stop_request.goes_on_from = step_of(self.checkpoint) if self.checkpoint else 0
        self.stop_request.noted_in = self.directory

    @cached_property
    def must_convert(self) -> bool:
        """Whether ZeRO has divided the checkpoint's optimizer among another number of ranks."""
        zero = (self.deepspeed_config or {}).get("zero_optimization", {})
        if self.checkpoint is None or not zero.get("stage"):
            return False
        return read_complete(self.checkpoint)["world_size"] != world_size()

    def is_finished(self, total_steps: int) -> bool:
        """Whether all steps are taken already, and the model of the last one is saved, with its report."""
        is_saved = holds_model(model_directory(str(self.directory)))
        if self.checkpoint is None or step_of(self.checkpoint) < total_steps or not is_saved:
            return False
        return steps_of_report(self.directory) >= total_steps

    def write_record(self) -> None:
        """Write what the run goes by from now on, as run.json and options.yaml. For rank 0."""
        description = self.description
        # "ranks" stay those that the run began with, for `keep_global_batch`, as long as its batch does.
        if self.record and self.record["global batch"] == description["global batch"]:
            description = description | {"ranks": self.record["ranks"]}
        if self.record and self.record["data"] != description["data"]:
            (self.directory / HELD_OUT).unlink(missing_ok=True)  # it has rows of other data
        text = json.dumps(description, ensure_ascii=False, indent=1, default=str)
        write_atomic(self.directory / RECORD, text)
        write_atomic(self.directory / OPTIONS, as_yaml(values_of_run(self.options)))

    def keep_held_out(self, held_out: Examples) -> None:
        """Write the rows held out, where there are any, unless this run has done so already. For rank 0."""
        path = self.directory / HELD_OUT
        if len(held_out) and not path.exists():
            write_held_out(held_out, path)


class RecordInEffect(TrainerCallback):
    """Adds DeepSpeed's configuration to the run's record, once transformers has filled it in. For rank 0."""

    def __init__(self, run: Run, trainer: Trainer) -> None:
        self._run, self._trainer = run, trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer.is_deepspeed_enabled:
            self._run.description["deepspeed"] = args.hf_deepspeed_config.config
            self._run.write_record()


def recorded_options(options: Options) -> Options:
    """The options; where they continue a run, those that were not given are what its record has."""
    if not options.resume:
        return options
    directory = options.local_output_dir / options.run_name
    return keep_recorded(options, read_record(directory)) if (directory / RECORD).exists() else options


def find_run(options: Options, deepspeed_config: dict[str, Any] | None) -> Run:
    """The run that these options describe: a new one, or with --resume the one that is to go on.

    Raises UserError where a new run would overwrite something, and where there is no run to continue.
    """
    directory = options.local_output_dir / (options.run_name or default_run_name(options.input_model))
    if not options.resume or not is_begun(directory):
        check_new(directory)
        return Run(options, directory, deepspeed_config)
    with ExitStack() as held:
        held.enter_context(hold(directory))  # a process that still saves in it would change what is found
        record, checkpoint = read_record(directory), newest_checkpoint(directory)
        if checkpoint and deepspeed_config:
            check_checkpoint(checkpoint, read_complete(checkpoint), deepspeed_config, world_size())
        options = keep_global_batch(options, record, world_size())
        return Run(options, directory, deepspeed_config, record, checkpoint, _held=held.pop_all())


def default_run_name(input_model: str) -> str:
    """`<input model's name>-sft-<time>`; a model that a run has made is named after the run."""
    model = Path(input_model).absolute()
    name = model.parent.name if model.name == MODEL and (model.parent / RECORD).exists() else model.name
    return f"{name}-sft-{time.strftime('%Y%m%d-%H%M%S')}"


def check_new(run_dir: Path) -> None:
    """Raise UserError unless `run_dir` can be made, or is empty and can be written. Leaves no trace."""
    existing = existing_parent(run_dir)
    try:
        if existing == run_dir:
            check_empty(
                run_dir,
                "it is not written over; give another --run-name, or continue that run by --resume",
                ignored=NOTHING_YET,
            )
        try_write(existing)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({existing}: {error.strerror})") from None


def hold(run_dir: Path) -> AbstractContextManager:
    """A context in which rank 0 keeps other runs out of the run directory, which it makes if need be.

    Raises UserError where another process works in it.
    """
    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    run_dir.mkdir(parents=True, exist_ok=True)
    return hold_lock(run_dir / LOCK, f"{run_dir}: another process works in it; wait for it, or end it")


def is_begun(run_dir: Path) -> bool:
    """Whether the run directory holds anything of a run; if it does not, a line says so."""
    if run_dir.is_dir() and any(path.name not in NOTHING_YET for path in run_dir.iterdir()):
        return True
    say(f"{run_dir}: no run yet; starting at step 0")
    return False


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint, or None to start at step 0; says which, and which are incomplete.

    Raises UserError for a checkpoint that holds the model only.
    """
    complete, incomplete = find_checkpoints(run_dir)
    for path in incomplete:
        say(f"{path}: incomplete, passed over")
    if not complete:
        say(f"{run_dir}: no complete checkpoint; starting at step 0")
        return None
    newest = complete[-1]
    content = read_complete(newest)
    if not any(name == "optimizer.pt" or name.startswith("global_step") for name in content["files"]):
        raise UserError(f"{newest}: saved with --save-only-model, so that it cannot be continued")
    say(f"continuing from {newest}")
    warn_of_slow_save(content["seconds"])
    return newest
