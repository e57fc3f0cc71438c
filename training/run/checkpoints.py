"""Checkpoints that are complete or absent, and the model at the end of a run."""

import json
import math
import os
import shutil
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

from training.common.console import bytes_text, say
from training.common.errors import UserError, first_line
from training.common.files import (
    flush,
    flush_all,
    free_bytes,
    is_write_failure,
    make_readable,
    sizes,
    write_atomic,
    write_failure_refused,
)
from training.common.hub import MODEL, holds_model
from training.common.launchers import launchers
from training.cost.memory import ADAM_BYTES, DEEPSPEED_ADAM_BYTES, numel, trainable_weights
from training.model.lora import has_adapter, save_adapter
from training.model.save import save_model
from training.run.deepspeed_values import describe_optimizer
from training.run.process_group import control_group

# The last file to be written to a checkpoint, with step, world size, what decides whether DeepSpeed can load
# its optimizer, and the size of every other file.
COMPLETE = "COMPLETE.json"

# Prefix of the directory in which a checkpoint is written, and of its name while it is removed.
INCOMPLETE = ".incomplete-"

# Seconds that a rank lives after DeepSpeed's launcher has forwarded a signal (deepspeed/launcher/launch.py).
LAUNCHER_PATIENCE_S = 30

# Seconds that a network disk may take to show a new directory.
DISK_PATIENCE_S = 60

# Bytes a second of the slowest disk on which a checkpoint is waited for, beside --ddp-timeout.
SLOWEST_DISK = 10_000_000


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def read_complete(checkpoint: Path) -> dict | None:
    """The content of COMPLETE.json, or None where it is missing or does not match the files."""
    try:
        content = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        found = sizes(checkpoint)
        return content if all(found.get(name) == size for name, size in content["files"].items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_checkpoints(run_dir: Path) -> tuple[list[Path], list[Path]]:
    """(complete, incomplete) checkpoints, each from the oldest step to the newest."""
    found = [
        path
        for pattern in ("checkpoint-*", f"{INCOMPLETE}*")
        for path in run_dir.glob(pattern)
        if path.name.rsplit("-", 1)[1].isdigit()
    ]
    found.sort(key=step_of)
    complete = [
        path for path in found if not path.name.startswith(INCOMPLETE) and read_complete(path) is not None
    ]
    return complete, [path for path in found if path not in complete]


class CheckpointWriter:
    """Turns what transformers writes into a checkpoint that is complete or absent. For all ranks together.

        RUN_DIR/.incomplete-12/checkpoint-12/   between `begin` and `complete` transformers writes here
        RUN_DIR/checkpoint-12/                  fsynced, with COMPLETE.json, and only then renamed to this

    Once the new checkpoint is complete, older ones are removed, down to the trainer's `save_total_limit`. As
    a context around the training it raises UserError where the disk refuses a checkpoint; earlier complete
    ones stay complete.
    """

    def __init__(self, run_dir: Path, trainer: Trainer) -> None:
        self.run_dir, self.trainer = run_dir, trainer
        self._step: int | None = None  # of the checkpoint that is being written

    @cached_property
    def waiting_group(self) -> dist.ProcessGroup | None:
        """The group in which the ranks wait for a save, made by all of them together; None for a single rank.

        A checkpoint of 113 GB may take longer than a collective may, so the group has a limit of its own.
        """
        return None if self.trainer.args.world_size == 1 else control_group(save_limit(self.trainer))

    def wait_for_all(self) -> None:
        """Wait until all ranks are here, one of which may have something to save or to convert."""
        if self.waiting_group:
            dist.barrier(group=self.waiting_group)

    def place(self, step: int) -> Path:
        """The directory in which transformers is to make `checkpoint-<step>`."""
        return self.run_dir / f"{INCOMPLETE}{step}"

    @property
    def directory(self) -> Path:
        """Where the files of the checkpoint that has begun are written."""
        return self.place(self._step) / f"checkpoint-{self._step}"

    def begin(self, step: int) -> None:
        """Make the directory of an incomplete checkpoint, and remove the remains of interrupted saves."""
        self._step, self._started = step, time.monotonic()
        directory = self.directory
        if self.trainer.is_world_process_zero():
            for path in find_checkpoints(self.run_dir)[1]:
                # One that was complete once may be misread: it goes only where it is in the way.
                if not (path / COMPLETE).exists() or path.name == directory.name:
                    _remove(path)
            directory.mkdir(parents=True)
        self.wait_for_all()
        for path in (directory.parent, directory):
            check_is_seen(path)

    def complete(self) -> Path:
        """Fsync all ranks' files, rename their directory to the checkpoint's name, and remove older ones.

        The files get the mode 0644.
        """
        wait_for_all = self.wait_for_all
        directory, checkpoint = self.directory, self.run_dir / self.directory.name
        wait_for_all()
        if self.trainer.is_local_process_zero():
            make_readable(directory)
            flush_all(directory)
        wait_for_all()
        if self.trainer.is_world_process_zero():
            content = {
                "step": self._step,
                "world_size": self.trainer.args.world_size,
                "seconds": time.monotonic() - self._started,
                "files": sizes(directory),
            }
            if self.trainer.is_deepspeed_enabled:
                config = self.trainer.args.hf_deepspeed_config.config
                content["optimizer state"] = describe_optimizer(config)
            write_atomic(directory / COMPLETE, json.dumps(content, indent=1))
            (directory / COMPLETE).chmod(0o644)
            directory.rename(checkpoint)
            flush(self.run_dir)
            directory.parent.rmdir()
            _rotate(self.run_dir, self.trainer.save_total_limit)
        wait_for_all()
        self._step = None
        warn_of_slow_save(time.monotonic() - self._started)
        return checkpoint

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or self._step is None:
            return
        place, checkpoint = self.place(self._step), self.run_dir / f"checkpoint-{self._step}"
        # The rank that fails first removes the directory under the others. Once renamed, it is complete.
        is_gone = not place.exists() and not checkpoint.exists()
        taken_away = isinstance(error, (OSError, RuntimeError)) and is_gone
        if not is_write_failure(error) and not taken_away:
            return
        shutil.rmtree(place, ignore_errors=True)
        complete = find_checkpoints(self.run_dir)[0]
        left = f"{complete[-1].name} is complete" if complete else "there is none before it"
        raise UserError(
            f"{checkpoint}: cannot be written ({first_line(error)}); {left}; make room, "
            "and continue by --resume"
        ) from None


def check_is_seen(directory: Path) -> None:
    """Raise UserError where this rank does not see what rank 0 made; a network disk may show it late."""
    deadline = time.monotonic() + DISK_PATIENCE_S
    while directory.name not in os.listdir(directory.parent):
        if time.monotonic() > deadline:
            raise UserError(
                f"{directory}: made by rank 0, but not visible here; --local-output-dir has to be on a "
                "disk that all nodes share"
            )
        time.sleep(1)


def warn_of_slow_save(seconds: float) -> None:
    if seconds > LAUNCHER_PATIENCE_S and launchers():
        say(
            f"WARNING: a checkpoint took {seconds:.0f} s, and the launcher kills a rank "
            f"{LAUNCHER_PATIENCE_S} s after a signal: the last one before --resume may then be an older one"
        )


def _rotate(run_dir: Path, limit: int | None) -> None:
    if limit is not None:
        for checkpoint in find_checkpoints(run_dir)[0][:-limit]:
            _remove(checkpoint)


def _remove(checkpoint: Path) -> None:
    """Rename a checkpoint and then remove it, so that half of one is never taken for a checkpoint."""
    doomed = checkpoint.with_name(f"{INCOMPLETE}{step_of(checkpoint)}")
    if doomed != checkpoint:
        shutil.rmtree(doomed, ignore_errors=True)
        checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def save_limit(trainer: Trainer) -> float:
    """Seconds for which a rank waits for another that saves, converts or copies a checkpoint."""
    return trainer.args.ddp_timeout + checkpoint_bytes(trainer) / SLOWEST_DISK


def checkpoint_bytes(trainer: Trainer) -> int:
    """The computed bytes of a checkpoint of this run on the disk, its small files not counted."""
    model = model_bytes(trainer.model)
    if trainer.args.save_only_model:
        return model
    count = sum(numel(weight) for weight in trainable_weights(trainer.model))
    if trainer.is_deepspeed_enabled:
        return 2 * model + DEEPSPEED_ADAM_BYTES * count  # it writes the weights a second time
    return model + ADAM_BYTES * count


def model_bytes(model: PreTrainedModel) -> int:
    """The bytes of the weights that are saved: all of them, or an adapter's alone."""
    return sum(numel(weight) * weight.element_size() for weight in trainable_weights(model))


def check_disk_space(trainer: Trainer, run_dir: Path) -> int:
    """The most bytes that this run's checkpoints and model will take. Raises UserError if fewer are free.

    While a checkpoint is written, there is one more than is kept.
    """
    saves, limit = math.ceil(trainer.total_steps / trainer.args.save_steps), trainer.save_total_limit
    count = saves if limit is None else min(saves, limit + 1)
    one = checkpoint_bytes(trainer)
    complete, incomplete = find_checkpoints(run_dir)
    there = sum(sum(sizes(checkpoint).values()) for checkpoint in (*complete, *incomplete))
    needed = max(0, count * one + model_bytes(trainer.model) - there)
    free = free_bytes(run_dir)
    if needed > free:
        raise UserError(
            f"{run_dir}: {bytes_text(needed)} are needed for {count} checkpoints of "
            f"{bytes_text(one)} and the model, and {bytes_text(free)} are free; make room, or pass another "
            "--local-output-dir, a lower --save-total-limit or --save-only-model"
        )
    return needed


def export_model(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, run_dir: Path) -> Path:
    """Save the trained model in its run directory, in bf16 after a bf16 run; return where. For all ranks.

    A run of an earlier version that has a model at the root of its directory gets the new one there too.
    """
    directory = run_dir if holds_model(str(run_dir)) else run_dir / MODEL
    zero3 = trainer.is_deepspeed_enabled and trainer.deepspeed.zero_optimization_partition_weights()
    state_dict = trainer.accelerator.get_state_dict(trainer.deepspeed) if zero3 else None
    is_adapter = has_adapter(trainer.model)  # small, and stays in float32
    if trainer.args.bf16 and not trainer.is_deepspeed_enabled and not is_adapter:
        trainer.model.to(torch.bfloat16)
    if trainer.is_world_process_zero():
        with write_failure_refused(directory, "make room, and continue by --resume"):
            save = save_adapter if is_adapter else save_model
            save(trainer.model, tokenizer, directory, state_dict)
    trainer.checkpoints.wait_for_all()
    return directory
