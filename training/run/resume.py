"""The run directory: whether a run may begin in it, or go on, and from where."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock, Timeout
from transformers import Trainer

from training.common.console import say
from training.common.errors import UserError, first_line
from training.data.examples import Examples
from training.run.checkpoints import find_checkpoints, read_complete, step_of, warn_of_slow_save

# What the run was started with.
RECORD = "run.json"

# Taken by rank 0 while it works; the system gives it back however the process ends.
LOCK = ".lock"

# A checkpoint as another number of ranks reads it, while it is read.
UNIVERSAL = ".universal-"


def check_new(run_dir: Path) -> None:
    """Raise UserError unless `run_dir` can be made, or is empty and can be written. Leaves no trace."""
    existing = run_dir
    while not os.path.exists(existing):  # unlike Path.exists, quiet about a parent that may not be read
        existing = existing.parent
    try:
        if existing == run_dir and set(os.listdir(run_dir)) - {LOCK}:
            raise UserError(
                f"{run_dir}: holds something already, and is not written over; give another --run-name, or "
                "continue that run by --resume"
            )
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({existing}: {error.strerror})") from None


def hold(run_dir: Path) -> AbstractContextManager:
    """Keeps other runs out of the run directory; rank 0 does. Raises UserError where another is in it."""
    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{run_dir}: another process works in it; wait for it, or end it") from None
    return lock


def is_begun(run_dir: Path) -> bool:
    """Whether a run left anything there; says where there is nothing to continue."""
    if run_dir.is_dir() and any(path.name != LOCK for path in run_dir.iterdir()):
        return True
    say(f"{run_dir}: no run yet; starting at step 0")
    return False


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The complete checkpoint to go on from, or None to start at step 0; says which, and what it passes over.

    Raises UserError for a checkpoint that holds the model only.
    """
    complete, incomplete = find_checkpoints(run_dir)
    for path in incomplete:
        say(f"{path}: incomplete, passed over")
    if not complete:
        say(f"{run_dir}: no complete checkpoint; starting at step 0")
        return None
    newest = complete[-1]
    said = read_complete(newest)
    if not any(name == "optimizer.pt" or name.startswith("global_step") for name in said["files"]):
        raise UserError(f"{newest}: saved with --save-only-model, so that it cannot be continued")
    say(f"continuing from {newest}")
    warn_of_slow_save(said["seconds"])
    return newest


def ranks_of(checkpoint: Path) -> int:
    """How many ranks wrote it."""
    return read_complete(checkpoint)["world_size"]


def describe(
    options: SimpleNamespace,
    deepspeed_config: Mapping[str, Any] | None,
    train_rows: Examples,
    test_rows: Examples,
    world_size: int,
) -> dict[str, Any]:
    """What must be the same for a run to go on as if it had not stopped, and the command line for people."""
    zero = (deepspeed_config or {}).get("zero_optimization", {}).get("stage", 0)
    data = hashlib.blake2b(digest_size=16)
    for rows in (train_rows, test_rows):
        data.update(rows.fingerprint.encode())
    ranks = world_size * options.gradient_accumulation_steps
    return {
        "data": data.hexdigest(),
        "model": _model_fingerprint(options.input_model),
        "seed": options.seed,
        "global batch": (
            {"micro-batches": ranks, "tokens": options.tokens_per_batch}
            if options.tokens_per_batch
            else {"rows": ranks * options.per_device_train_batch_size}
        ),
        "optimizer": f"{f'ZeRO stage {zero}' if deepspeed_config else 'no DeepSpeed'}, "
        f"{'bf16' if options.bf16 else 'float32'}{_adapter(options)}",
        "ranks": world_size,
        "options": {name: str(value) for name, value in vars(options).items()},
    }


def _adapter(options: SimpleNamespace) -> str:
    if not options.lora_rank:
        return ""
    bits = ", 4 bits" if options.load_in_4bit else ""
    return f", LoRA of rank {options.lora_rank}, alpha {options.lora_alpha}, {options.lora_target}{bits}"


def _model_fingerprint(path: str) -> str:
    """Of a directory its configuration and its weights' sizes; of a model on the hub its name."""
    if not os.path.isdir(path):
        return path
    content = hashlib.blake2b(Path(path, "config.json").read_bytes(), digest_size=16)
    for file in sorted(Path(path).glob("*.safetensors")) + sorted(Path(path).glob("*.bin")):
        content.update(f"{file.name} {file.stat().st_size}\n".encode())
    return content.hexdigest()


def read_record(run_dir: Path) -> dict[str, Any]:
    """Raises UserError where the run directory has none."""
    try:
        return json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_dir / RECORD}: cannot be read ({first_line(error)}); there is no run to continue"
        ) from None


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, ensure_ascii=False, indent=1)
    (run_dir / f"{RECORD}.new").write_text(text, encoding="utf-8")
    (run_dir / f"{RECORD}.new").replace(run_dir / RECORD)


def keep_global_batch(options: SimpleNamespace, record: Mapping[str, Any], world_size: int) -> None:
    """On another number of ranks, accumulate over as many micro-batches as make the run's global batch."""
    if record["ranks"] == world_size:
        return
    batch = record["global batch"]
    wanted = batch.get("micro-batches", batch.get("rows"))
    one = world_size * (1 if "micro-batches" in batch else options.per_device_train_batch_size)
    if wanted % one == 0 and options.gradient_accumulation_steps != wanted // one:
        options.gradient_accumulation_steps = wanted // one
        say(
            f"{world_size} process(es) instead of {record['ranks']}: --gradient-accumulation-steps "
            f"{wanted // one} keeps the global batch"
        )


def check_same_run(run_dir: Path, now: Mapping[str, Any], record: Mapping[str, Any], anyway: bool) -> None:
    """Raise UserError where the run would not go on as it was; say which other options have changed.

    anyway: only say it, unless the checkpoint's optimizer is another one and cannot be read.
    """
    if now["optimizer"] != record["optimizer"]:
        raise UserError(
            f"{run_dir}: began with {record['optimizer']}, and its optimizer is not one of "
            f"{now['optimizer']}; give --deepspeed and --bf16 as they were"
        )
    different = [name for name in ("data", "model", "global batch", "seed") if now[name] != record[name]]
    if different:
        text = f"{run_dir}: not the same {', '.join(different)} as this run's"
        if not anyway:
            raise UserError(f"{text}; pass --resume-anyway if you want that, or give another --run-name")
        say(f"WARNING: {text}; going on anyway")
    for name, value in now["options"].items():
        before = record["options"].get(name)
        if before != value and name not in ("resume", "resume_anyway", "local_rank"):
            say(f"--{name.replace('_', '-')} is {value}, and was {before}")


@contextmanager
def as_universal(checkpoint: Path, trainer: Trainer) -> Iterator[Path]:
    """A checkpoint for any number of ranks (https://www.deepspeed.ai/tutorials/universal-checkpointing/).

    Rank 0 makes it and takes it away again.
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
