"""A run that goes on from a checkpoint: what has to hold once transformers and DeepSpeed have loaded it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.common.console import say
from training.common.errors import UserError
from training.run.checkpoints import step_of
from training.run.deepspeed_values import is_adam

# Prefix of the directory of a checkpoint that is converted for another number of ranks.
UNIVERSAL = ".universal-"

# The name that peft gives to the only adapter, within its weights' names but not in the saved ones.
ADAPTER_NAME = ".default"


class LoadedCheckpoint(TrainerCallback):
    """What is done when a checkpoint is loaded, before the first step from it. For all ranks together.

    checkpoint: the one that the run goes on from, as it was written.
    """

    def __init__(self, trainer: Trainer, checkpoint: Path) -> None:
        self._trainer, self._checkpoint = trainer, checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer.is_deepspeed_enabled:
            check_loaded_weights(self._trainer, self._checkpoint)
            adopt_state(self._trainer.deepspeed.basic_optimizer)
        keep_optimizer_settings(self._trainer)
        say_jump(self._trainer, state)


def check_loaded_weights(trainer: Trainer, checkpoint: Path) -> None:
    """Raise UserError where the weights that DeepSpeed goes on with are not those of the checkpoint's model.

    The optimizer's float32 weights, rounded to the type in which the model was saved, are compared with its
    safetensors bit by bit. The model's own weights would not do: they look right until the first step, which
    overwrites them with the optimizer's. One weight at a time is whole in memory; rank 0 compares.
    """
    saved = SavedWeights(checkpoint) if trainer.is_world_process_zero() else None
    wrong = None
    for names, weight in trainable_by_names(trainer.model):
        loaded = master_weight(trainer, weight)
        if saved is not None and wrong is None and not saved.holds(names, loaded):
            wrong = names[0]
    (wrong,) = broadcast_object_list([wrong])
    if wrong:
        raise UserError(
            f"{checkpoint}: the optimizer did not get the weights of the model saved there (the first "
            f"that differs: {wrong}), and training would damage it; continue on as many ranks and with the "
            "DeepSpeed configuration that wrote it, or remove it to continue from the one before"
        )


class SavedWeights:
    """The tensors of a checkpoint's model or adapter, each read when it is asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self._files = {}
        for path in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def holds(self, names: list[str], weight: torch.Tensor) -> bool:
        """Whether one of the names is saved, with these values in the saved type."""
        name = next((name for name in names if name in self._files), None)
        if name is None:
            return False
        with safe_open(self._files[name], framework="pt") as file:
            saved = file.get_tensor(name)
        return torch.equal(saved, weight.detach().to("cpu", saved.dtype))


def trainable_by_names(model: nn.Module) -> Iterator[tuple[list[str], nn.Parameter]]:
    """Each trainable weight once, with all names by which it may be saved: a tied head has two."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            names.setdefault(weight, []).append(name.replace(ADAPTER_NAME, ""))
    for weight, its_names in names.items():
        yield its_names, weight


def master_weight(trainer: Trainer, weight: nn.Parameter) -> torch.Tensor:
    """The whole float32 weight that the optimizer holds for a weight of the model, on every rank.

    It is the weight itself where DeepSpeed trains that.
    """
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
    from deepspeed.utils import safe_get_full_fp32_param

    found = safe_get_full_fp32_param(weight)
    if found is not None:
        return found
    optimizer = trainer.deepspeed.optimizer  # without ZeRO every rank holds all weights
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, of_model in zip(masters, weights, strict=True):
                if of_model is weight:
                    return master
    if isinstance(optimizer, FP16_Optimizer):
        for flat, weights in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups, strict=True):
            parts = flat.detach().split([each.numel() for each in weights])
            for part, of_model in zip(parts, weights, strict=True):
                if of_model is weight:
                    return part.view_as(weight)
    return weight


def adopt_state(optimizer: torch.optim.Optimizer) -> None:
    """Give the state that was loaded the form that this optimizer's own state has.

    With and without offload DeepSpeed uses different classes of Adam; their moments are the same, but torch's
    counts its steps in tensors and lacks settings that DeepSpeed's has.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            group.setdefault(name, value)
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            if isinstance(optimizer, DeepSpeedCPUAdam) and "step" in state:
                state["step"] = int(state["step"])
            elif isinstance(optimizer, torch.optim.Adam) and isinstance(state.get("step"), int):
                device = weight.device if group["fused"] or group["capturable"] else "cpu"
                state["step"] = torch.tensor(float(state["step"]), device=device)


def keep_optimizer_settings(trainer: Trainer) -> None:
    """Have this start's weight decay, betas and clipping, where the checkpoint has brought others."""
    args = trainer.args
    groups = trainer.optimizer.param_groups
    config = args.hf_deepspeed_config.config if trainer.is_deepspeed_enabled else {}
    for group in groups:
        if "betas" in group and is_adam(config):
            group["betas"], group["eps"] = (args.adam_beta1, args.adam_beta2), args.adam_epsilon
    # transformers' own optimizer has the weights that do not decay, biases and norms, in its last group.
    for group in groups if "optimizer" in config else groups[:-1] or groups:
        group["weight_decay"] = args.weight_decay
    if trainer.is_deepspeed_enabled and hasattr(trainer.deepspeed.optimizer, "clip_grad"):
        trainer.deepspeed.optimizer.clip_grad = args.max_grad_norm


def say_jump(trainer: Trainer, state: TrainerState) -> None:
    """Say where the data or the batch have changed so that the run is at another place in the data."""
    args = trainer.args
    steps = -(-len(trainer.get_train_dataloader()) // args.gradient_accumulation_steps)
    epoch = state.global_step / steps
    if state.epoch is not None and abs(epoch - state.epoch) > 1 / steps:
        say(
            f"WARNING: step {state.global_step} was at epoch {state.epoch:.2f}, and is at epoch {epoch:.2f} "
            "with these data and batches: rows are skipped, or seen again"
        )


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
    trainer.checkpoints.wait_for_all()
    try:
        yield directory
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(directory, ignore_errors=True)
