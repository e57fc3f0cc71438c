"""On which cards a model is placed where --device leaves that open."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from training.common.hub import is_adapter
from training.common.modelscope import local_path
from training.model.load import read_config
from training.model.lora import base_of

# The memory of a card that a model takes beside its weights, as a share of them: the KV cache, activations,
# and what CUDA takes. Assumed, not measured.
BESIDE_WEIGHTS = 0.2


def auto_placing(path: str, dtype: torch.dtype | str, bits: int | None) -> str | dict[str, str]:
    """The `device_map` of a model: one card where there are several and it fits on one, or else "auto".

    By "auto" accelerate spreads a model over all cards, which then wait for each other, token by token.
    dtype: "auto" is the one that was saved. bits: 8, 4, or None for weights that are not quantized.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards < 2:
        return "auto"
    free = [torch.cuda.mem_get_info(card)[0] for card in range(cards)]
    best = max(range(cards), key=free.__getitem__)
    fits = (1 + BESIDE_WEIGHTS) * weight_bytes(path, dtype, bits) <= free[best]
    return {"": f"cuda:{best}"} if fits else "auto"


def weight_bytes(path: str, dtype: torch.dtype | str, bits: int | None) -> int:
    """The bytes that the weights of a model, or of an adapter's base, take, from its configuration alone."""
    config = read_config(base_of(path) if is_adapter(local_path(path)) else path)
    if isinstance(dtype, str):
        dtype = config.dtype if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    width = (dtype or torch.float32).itemsize
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    head = model.get_output_embeddings().weight.numel()
    quantized = linear - head if bits else 0  # the head is not
    return (model.num_parameters() - quantized) * width + quantized * (bits or 0) // 8
