"""What DeepSpeed's configuration, once it is read, says of a run: beside the options, or instead of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from training.common.errors import UserError
from training.common.options import Options

# What transformers replaces by the value of an option.
AUTO = "auto"

# Half of the distance between neighbours of bf16 around 2**-6.
SMALLEST_BF16_STEP = 2.0**-14


def offload_device(config: Mapping[str, Any]) -> str:
    """Where the optimizer is kept: "none" for beside the model, or "cpu" or "nvme"."""
    return config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")


def is_adam(config: Mapping[str, Any]) -> bool:
    """Whether the optimizer is Adam or AdamW: DeepSpeed's, or transformers' where the file names none."""
    return config.get("optimizer", {}).get("type", "AdamW").lower() in ("adam", "adamw")


# Bytes of a number of the types that "data_types.grad_accum_dtype" names.
SUM_TYPES = {"fp32": 4, "bf16": 2, "fp16": 2}


def gradient_sums(config: Mapping[str, Any]) -> str | None:
    """The type in which gradients of several micro-batches are added up; None stands for the weights'."""
    return (config.get("data_types") or {}).get("grad_accum_dtype")


def sum_width(config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Bytes of such a sum, for weights of type `dtype`."""
    return SUM_TYPES.get(gradient_sums(config) or "", dtype.itemsize)


def check_gradient_sums(config: Mapping[str, Any], bf16: bool) -> None:
    """Raise UserError for a type of gradient sums that DeepSpeed does not have, or not without ZeRO."""
    found = gradient_sums(config)
    if found is None:
        return
    if found not in SUM_TYPES:
        raise UserError(
            f'--deepspeed: "data_types.grad_accum_dtype" is {found!r}; write one of {", ".join(SUM_TYPES)}'
        )
    weights = "bf16" if bf16 else "fp32"
    if config["zero_optimization"]["stage"] == 0 and found != weights:
        raise UserError(
            f"--deepspeed: without ZeRO (stage 0) DeepSpeed adds up the gradients of {weights} weights in "
            f'{weights} only; remove "data_types.grad_accum_dtype", or take stage 1, 2 or 3'
        )


def describe_optimizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides, beside the ZeRO stage, whether a checkpoint of the optimizer can be loaded.

    The kind is "none" where the file has no "optimizer" and transformers' AdamW is used, which keeps the
    weights that decay apart from those that do not.
    """
    optimizer = config.get("optimizer", {})
    zero = config["zero_optimization"]
    return {
        "kind": optimizer.get("type", "none").lower(),
        "offload": offload_device(config),
        "round_robin_gradients": zero["stage"] in (1, 2) and zero.get("round_robin_gradients", False),
    }


def take_values_of_file(options: Options, config: Mapping[str, Any]) -> Options:
    """The options, with the file's clipping and weight decay where the options were not given.

    Raises UserError where both are given and differ.
    """
    params = config.get("optimizer", {}).get("params", {})
    taken: dict[str, Any] = {}
    for name, key, value in (
        ("max_grad_norm", "gradient_clipping", config.get("gradient_clipping", AUTO)),
        ("weight_decay", "optimizer.params.weight_decay", params.get("weight_decay", AUTO)),
    ):
        given = getattr(options, name)
        if value in (AUTO, given):
            continue
        if name not in options.default_names:
            raise UserError(
                f'{options.deepspeed}: "{key}" is {value}, and --{name.replace("_", "-")} {given}; leave one '
                'out, or write "auto" there'
            )
        taken[name] = float(value)
    return replace(options, **taken)


def adam_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Adam's settings that only the file may give, as arguments of transformers' TrainingArguments."""
    params = config.get("optimizer", {}).get("params", {})
    found: dict[str, Any] = {}
    if params.get("betas", AUTO) != AUTO:
        found["adam_beta1"], found["adam_beta2"] = params["betas"]
    if params.get("eps", AUTO) != AUTO:
        found["adam_epsilon"] = params["eps"]
    return found


def check_learning_rate(config: Mapping[str, Any], rate: float) -> None:
    """Raise UserError where bf16 weights without float32 masters would not change at that rate.

    Adam's steps are about as large as the rate (https://arxiv.org/abs/1412.6980, section 2.1). A bf16 number
    of a weight's usual size, 2**-6, has a neighbour 2**-13 away; a step below half of that is rounded off.
    """
    has_masters = not config.get("bf16", {}).get("bf16_master_weights_and_grads", False)
    if not has_masters and rate < SMALLEST_BF16_STEP:
        raise UserError(
            f"--lr {rate:g} changes no bf16 weight, and this DeepSpeed configuration keeps no others; remove "
            f'"bf16_master_weights_and_grads" there, or take at least {SMALLEST_BF16_STEP:.0e}'
        )
