"""The machine of a run, as its record and its report have it."""

import os
import platform
from typing import Any

import psutil
import torch
from transformers import Trainer

from training import allocator_settings
from training.model.attention import WIDTH_MULTIPLE, has_one_kernel
from training.model.bloom import is_bloom
from training.model.load import takes_packed_batches
from training.run.cards import driver_version


def describe_machine(trainer: Trainer) -> dict[str, Any]:
    """This rank's host and card, the libraries that compute there, and which attention is used."""
    device = trainer.args.device
    machine: dict[str, Any] = {
        "host": platform.node(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "ranks": trainer.args.world_size,
        "attention": attention_engine(trainer),
    }
    if device.type != "cuda":
        return machine | {"card": None}
    return machine | {
        "card": torch.cuda.get_device_name(device),
        "card_memory": torch.cuda.get_device_properties(device).total_memory,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "allocator": allocator_settings(),
    }


def attention_engine(trainer: Trainer) -> str:
    """What computes the attention of this run."""
    if not takes_packed_batches(trainer.model):
        return "transformers'"
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    config = trainer.model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if is_bloom(config):
        width += WIDTH_MULTIPLE  # for ALiBi's columns
    queries = torch.empty(0, 1, width, dtype=dtype, device=trainer.args.device)
    dropout = max(getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))
    if has_one_kernel(queries, dropout):
        return "ours, packed: one kernel for all documents"
    return "ours, packed: fused attention of each document"


def machine_text(machine: dict[str, Any]) -> str:
    """A description of a machine as one line of the report."""
    return f"{machine['host']}, {hardware_text(machine)}"


def hardware_text(machine: dict[str, Any]) -> str:
    """The same for everyone to read: without the host's name."""
    if machine["card"] is None:
        return f"{machine['cores']} cores, no card"
    return (
        f"{machine['ranks']} process(es), {machine['card']}, driver {machine['driver']}, "
        f"CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, NCCL {machine['nccl']}"
    )
