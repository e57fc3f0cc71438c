"""LoRA adapters (https://arxiv.org/abs/2106.09685) through peft: added to a model, saved, loaded with it.

peft is imported where it is needed: that takes long, and most runs have no adapter.
"""

import json
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations import deepspeed as deepspeed_integration
from transformers.pytorch_utils import Conv1D

from training.common.errors import UserError, first_line
from training.common.files import written_aside
from training.common.hub import ADAPTER_CONFIG, is_adapter
from training.common.modelscope import local_path
from training.model.load import (
    default_generation_config,
    gather_weights,
    load_model,
    takes_packed_batches,
    token_matrices,
)
from training.model.model_card import CARD
from training.text.tokenizer import NewTokens, save_tokenizer

if TYPE_CHECKING:
    from training.model.adapted import AdaptedModel

# Weights in the format that cannot carry code.
ADAPTER_WEIGHTS = "adapter_model.safetensors"

INCOMPLETE_ADAPTER = ".incomplete-adapter"


def has_adapter(model: torch.nn.Module) -> bool:
    """Whether the model has an adapter, as a model from `add_adapter` has."""
    return hasattr(model, "peft_config")


def remove_pefts_card(directory: Path) -> None:
    """Remove the model card that peft saves with an adapter: a form, empty but for the path of the base."""
    (directory / CARD).unlink()


def _peft() -> ModuleType:
    # peft reads an attribute that transformers has deprecated.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    import peft

    return peft


def quantization_config(bits: int) -> BitsAndBytesConfig:
    """Quantization to 8 or 4 bits.

    4 bits are NF4, made for normally distributed weights (https://arxiv.org/abs/2305.14314, section 3).
    """
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def quantized_loading(device: torch.device) -> dict[str, Any]:
    """Arguments of `load_model` that load a model in 4 bits, all of it on one device."""
    return {"quantization_config": quantization_config(4), "device_map": {"": str(device)}}


def add_adapter(
    model: PreTrainedModel, new_tokens: Collection[int], *, rank: int, alpha: int, dropout: float, target: str
) -> "AdaptedModel":
    """`model` with its weights frozen and an adapter, whose weights are trainable.

    new_tokens: ids whose embedding rows, in and out, are trainable too; no others are, so that the adapter
    stays small. target: "auto" for every linear layer but the head, or names of layers, separated by commas.
    Raises UserError for a name that no linear layer has, and for the head of a model that takes packed
    batches.
    """
    path = model.name_or_path
    if path and os.path.isdir(path):  # saved with the adapter, which may be used from anywhere
        model.name_or_path = os.path.abspath(path)
    peft = _peft()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_target_modules(model, target),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),  # as in GPT-2
        task_type="CAUSAL_LM",
        trainable_token_indices={name: list(new_tokens) for name in token_layers(model)}
        if new_tokens
        else None,
    )
    config.base_model_name_or_path = model.name_or_path or None
    from training.model.adapted import AdaptedModel

    try:
        with gather_weights(token_matrices(model)), hide_zero3():
            return AdaptedModel(model, config)
    except ValueError as error:
        raise UserError(f"--lora-target {target}: {first_line(error)}") from None


def _target_modules(model: PreTrainedModel, target: str) -> str | list[str]:
    """What peft calls `target_modules`, for --lora-target. Raises UserError as `add_adapter` says."""
    if target == "auto":
        return "all-linear"
    wanted = target.split(",")
    head = name_of(model, model.get_output_embeddings())
    if takes_packed_batches(model) and {head, head.rpartition(".")[2]} & set(wanted):
        raise UserError(
            f"--lora-target {target}: {head} takes no adapter where batches are packed; leave it out"
        )
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    for name in wanted:
        if not any(f".{layer}".endswith(f".{name}") for layer in linear):
            known = dict.fromkeys(layer.rpartition(".")[2] for layer in linear if layer != head)
            raise UserError(
                f"--lora-target {target}: no linear layer is named {name!r}; there are {', '.join(known)}"
            )
    return wanted


@contextmanager
def hide_zero3() -> Iterator[None]:
    """In the block, peft does not see that ZeRO-3 divides the weights.

    From a divided matrix peft gathers the rows that it copies itself, which works on a CUDA card only.
    Callers gather the matrix first; peft can then copy from it as from any other.
    """
    reference = deepspeed_integration._hf_deepspeed_config_weak_ref
    config = reference and reference()
    if config is None:
        yield
        return
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_integration.set_hf_deepspeed_config(config)


def token_layers(model: PreTrainedModel) -> list[str]:
    """Names of the embedding, and of the head unless it is the embedding."""
    layers = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        head = model.get_output_embeddings()
        assert head is not None, "a causal language model has one"
        layers.append(head)
    return [name_of(model, layer) for layer in layers]


def name_of(model: PreTrainedModel, layer: nn.Module | None) -> str:
    """The name that a layer has in its model, such as `lm_head`."""
    return next(name for name, module in model.named_modules() if module is layer)


def base_of(path: str) -> str:
    """The model that an adapter is for: a directory, or a name on the hub.

    Raises UserError for a directory that is not there, and where the adapter's configuration names none.
    """
    try:
        base = json.loads(Path(local_path(path), ADAPTER_CONFIG).read_text("utf-8"))[
            "base_model_name_or_path"
        ]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}/{ADAPTER_CONFIG}: it names no base model ({first_line(error)})") from None
    if os.path.isabs(base) and not os.path.isdir(base):
        raise UserError(
            f"{path}: an adapter for {base}, which is not there; name its new place in {ADAPTER_CONFIG}, or "
            "in --base of python -m training.merge_adapter"
        )
    return base


def load_any(
    path: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    base: str | None = None,
    new_tokens: NewTokens | None = None,
    **loading: Any,
) -> PreTrainedModel:
    """The model at `path`; for an adapter, its base model with the adapter merged into the weights.

    It cannot be merged into weights in 8 or 4 bits without loss, and stays beside them.
    base: where an adapter's base is; where None, its configuration says that. new_tokens: as for
    `load_model`; not used for an adapter, whose base model has a tokenizer of its own.
    Raises UserError for an adapter without its weights or for another base, and as `load_model` does.
    """
    path = local_path(path)
    if not is_adapter(path):
        return load_model(path, tokenizer, new_tokens=new_tokens, **loading)
    if not Path(path, ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{path}: an adapter without {ADAPTER_WEIGHTS}; save it in that format")
    base = base or base_of(path)
    model = load_model(base, tokenizer, **loading)
    try:
        adapted = _peft().PeftModel.from_pretrained(model, path)
    except (RuntimeError, ValueError):  # weights of other shapes, layers of other names
        raise UserError(
            f"{path}: an adapter that does not fit {base}; it is for another base model"
        ) from None
    is_quantized = getattr(model, "is_quantized", False)
    return adapted.get_base_model() if is_quantized else adapted.merge_and_unload()


def save_adapter(
    model: "AdaptedModel", tokenizer: PreTrainedTokenizerFast, directory: Path, state_dict: dict | None = None
) -> None:
    """Write the adapter, the tokenizer, and a generation config with `<|End|>` as eos token.

    The adapter's configuration is placed last, since readers look for it.
    """
    with written_aside(directory, INCOMPLETE_ADAPTER, last=ADAPTER_CONFIG) as staging:
        model.save_pretrained(staging, state_dict=state_dict)
        remove_pefts_card(staging)
        save_tokenizer(tokenizer, staging)
        default_generation_config(tokenizer).save_pretrained(staging)  # for peft's users, docs/training.md
