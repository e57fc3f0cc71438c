"""The run directory: whether a run may begin in it, or go on, and from where."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer

from training.common.command_line import as_yaml
from training.common.console import say
from training.common.errors import UserError, first_line
from training.common.files import check_empty, hold_lock, write_atomic
from training.common.hub import is_adapter
from training.common.options import OF_ONE_START, Options, values_of_run
from training.common.ranks import world_size
from training.data.examples import Examples
from training.run.checkpoints import find_checkpoints, read_complete, step_of, warn_of_slow_save
from training.run.report import steps_of_report
from training.run.stopping import STOPPED, StopRequest, is_stopped, note_stop
from training.run.typed_command import typed_command

# What the run began with.
RECORD = "run.json"

# The options of the run, as a file for --config.
OPTIONS = "options.yaml"

# Rank 0 holds the lock of this file while it works; the system gives it back however the process ends.
LOCK = ".lock"

# What a run may leave in its directory before it has begun, if it is killed.
NOTHING_YET = (LOCK, STOPPED, f".{RECORD}.partial", f".{OPTIONS}.partial")

# Prefix of the directory of a checkpoint that is converted for another number of ranks.
UNIVERSAL = ".universal-"


@dataclass
class Run:
    """A run that begins or goes on. Used as a context, it releases the run directory at the end of its block.

    record: what the run began with, or None if it begins now. checkpoint: the checkpoint that it goes on
    from, or None to start at step 0. description: what this start would record; it must agree with `record`.
    command: what was typed.
    """

    options: Options
    directory: Path
    deepspeed_config: dict[str, Any] | None
    record: dict[str, Any] | None = None
    checkpoint: Path | None = None
    description: dict[str, Any] = field(default_factory=dict)
    command: str = field(default_factory=typed_command)
    stop_request: StopRequest = field(default_factory=StopRequest)
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
        if is_known and os.environ.get("RANK", "0") == "0":
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

    @property
    def ranks_differ(self) -> bool:
        """Whether the checkpoint was written by another number of ranks than there is now."""
        return self.checkpoint is not None and read_complete(self.checkpoint)["world_size"] != world_size()

    def is_finished(self, total_steps: int) -> bool:
        """Whether all steps are taken already, and the model of the last one is saved, with its report."""
        is_saved = (self.directory / "config.json").exists() or is_adapter(str(self.directory))
        if self.checkpoint is None or step_of(self.checkpoint) < total_steps or not is_saved:
            return False
        return steps_of_report(self.directory) >= total_steps

    def write_record(self) -> None:
        """Write run.json when the run begins, and options.yaml at each start. For rank 0."""
        if self.record is None or self.options.resume_anyway:
            text = json.dumps(self.description, ensure_ascii=False, indent=1)
            write_atomic(self.directory / RECORD, text)
        write_atomic(self.directory / OPTIONS, as_yaml(values_of_run(self.options)))


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
        options = keep_global_batch(keep_defaults(options, record), record, world_size())
        return Run(options, directory, deepspeed_config, record, checkpoint, _held=held.pop_all())


def default_run_name(input_model: str) -> str:
    """`<input model's name>-sft-<time>`."""
    return f"{Path(input_model).absolute().name}-sft-{time.strftime('%Y%m%d-%H%M%S')}"


def check_new(run_dir: Path) -> None:
    """Raise UserError unless `run_dir` can be made, or is empty and can be written. Leaves no trace."""
    existing = run_dir
    while not os.path.exists(existing):  # unlike Path.exists, quiet about a parent that may not be read
        existing = existing.parent
    try:
        if existing == run_dir:
            check_empty(
                run_dir,
                "it is not written over; give another --run-name, or continue that run by --resume",
                ignored=NOTHING_YET,
            )
        tempfile.TemporaryFile(dir=existing).close()
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


def describe(
    options: Options,
    deepspeed_config: Mapping[str, Any] | None,
    training: Examples,
    held_out: Examples,
    world_size: int,
) -> dict[str, Any]:
    """The content of run.json: what must not change for a run to continue as if it had never stopped, and in
    "options", for people, every option as text.
    """
    zero = (deepspeed_config or {}).get("zero_optimization", {}).get("stage", 0)
    data = hashlib.blake2b(digest_size=16)
    for examples in (training, held_out):
        data.update(examples.fingerprint.encode())
    ranks = world_size * options.gradient_accumulation_steps
    return {
        "data": data.hexdigest(),
        "model": _model_fingerprint(options.input_model),
        "seed": options.seed,
        "global batch": (
            {"micro-batches": ranks, "tokens": options.tokens_per_batch}
            if options.tokens_per_batch
            else {"rows": ranks * options.micro_batch["batch_size"]}
        ),
        "optimizer": f"{f'ZeRO stage {zero}' if deepspeed_config else 'no DeepSpeed'}, "
        f"{'bf16' if options.bf16 else 'float32'}{_adapter(options)}",
        "ranks": world_size,
        "options": {each.name: str(getattr(options, each.name)) for each in fields(options) if each.init},
    }


def _adapter(options: Options) -> str:
    if not options.lora_rank:
        return ""
    bits = ", 4 bits" if options.load_in_4bit else ""
    return f", LoRA of rank {options.lora_rank}, alpha {options.lora_alpha}, {options.lora_target}{bits}"


def _model_fingerprint(path: str) -> str:
    """A hash of a directory's config.json and the sizes of its weight files; for a hub model, its name."""
    if not os.path.isdir(path):
        return path
    content = hashlib.blake2b(Path(path, "config.json").read_bytes(), digest_size=16)
    for file in sorted(Path(path).glob("*.safetensors")) + sorted(Path(path).glob("*.bin")):
        content.update(f"{file.name} {file.stat().st_size}\n".encode())
    return content.hexdigest()


def read_record(run_dir: Path) -> dict[str, Any]:
    """What a run began with. Raises UserError where the run directory has no record.

    Records of earlier versions have None where a default depends on another option; it is filled in here.
    """
    try:
        record = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_dir / RECORD}: cannot be read ({first_line(error)}); there is no run to continue"
        ) from None
    options = record["options"]
    if options.get("lora_rank", "None") != "None" and options["lora_alpha"] == "None":
        options["lora_alpha"] = str(2 * int(options["lora_rank"]))
        record["optimizer"] = record["optimizer"].replace("alpha None", f"alpha {options['lora_alpha']}")
    if options.get("tokens_per_batch", "None") != "None":
        options["per_device_train_batch_size"] = "None"
    return record


def keep_defaults(options: Options, record: Mapping[str, Any]) -> Options:
    """Options that were not given, and whose default depends on others, stay what the run began with."""
    before = record["options"]
    kept = {
        name: type(getattr(options, name))(before[name])
        for name in options.default_names
        if before.get(name, "None") != "None"
    }
    return replace(options, **kept)


def keep_global_batch(options: Options, record: Mapping[str, Any], world_size: int) -> Options:
    """On another number of ranks, choose the accumulation steps that keep the run's global batch."""
    if record["ranks"] == world_size:
        return options
    batch = record["global batch"]
    wanted = batch.get("micro-batches", batch.get("rows"))
    one = world_size * (1 if "micro-batches" in batch else options.micro_batch.get("batch_size", 1))
    if wanted % one != 0 or options.gradient_accumulation_steps == wanted // one:
        return options
    say(
        f"{world_size} process(es) instead of {record['ranks']}: --gradient-accumulation-steps "
        f"{wanted // one} keeps the global batch"
    )
    return replace(options, gradient_accumulation_steps=wanted // one)


def check_same_run(run_dir: Path, now: Mapping[str, Any], record: Mapping[str, Any], anyway: bool) -> None:
    """Raise UserError where the run would not go on as it was; say which other options have changed.

    anyway: warn instead of raising, except for another optimizer, whose checkpoint cannot be read.
    """
    if now["optimizer"] != record["optimizer"]:
        raise UserError(
            f"{run_dir}: began with {record['optimizer']}, and its optimizer is not one of "
            f"{now['optimizer']}; give --deepspeed and --bf16 as they were"
        )
    changed_names = [name for name in ("data", "model", "global batch", "seed") if now[name] != record[name]]
    if changed_names:
        text = f"{run_dir}: not the same {', '.join(changed_names)} as this run's"
        if not anyway:
            raise UserError(f"{text}; pass --resume-anyway if you want that, or give another --run-name")
        say(f"WARNING: {text}; going on anyway")
    for name, value in now["options"].items():
        before = record["options"].get(name, value)  # an option that is newer than the run has not changed
        if before != value and name not in OF_ONE_START:
            say(f"--{name.replace('_', '-')} is {value}, and was {before}")


@contextmanager
def universal_checkpoint(checkpoint: Path, trainer: Trainer) -> Iterator[Path]:
    """The checkpoint, for any number of ranks (https://www.deepspeed.ai/tutorials/universal-checkpointing/).

    Rank 0 converts it into a directory of its own, and removes that at the end of the block.
    """
    directory = checkpoint.with_name(f"{UNIVERSAL}{step_of(checkpoint)}")
    if trainer.is_world_process_zero():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shards = next(checkpoint.glob("global_step*"))
        for path in checkpoint.iterdir():
            if path != shards:
                (directory / path.name).symlink_to(path.absolute())
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(shards), "--output_folder", str(directory / shards.name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"DeepSpeed could not convert {checkpoint}:\n{done.stderr}")
        (directory / "latest_universal").write_text(shards.name, encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    try:
        yield directory
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(directory, ignore_errors=True)
