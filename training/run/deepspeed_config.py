"""DeepSpeed's configuration file: read and checked once, before anything else is done.

DeepSpeed itself takes "3" for 3 and ignores keys that it does not know; some mistakes it notices minutes
later, when ranks and run directory are there.
"""

import difflib
import importlib.util
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError

from training.common.console import say
from training.common.errors import UserError, first_line
from training.run.deepspeed_values import AUTO, is_adam, offload_device

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

# The keys that DeepSpeed reads (deepspeed/runtime/config.py), and the kind of each one's value.
TOP_LEVEL: dict[str, type] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": float,
    "optimizer": dict,
    "scheduler": dict,
    "zero_optimization": dict,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool,
    "bf16": dict,
    "fp16": dict,
    "torch_autocast": dict,
    "data_types": dict,
    "communication_data_type": str,
    "seq_parallel_communication_data_type": str,
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "gradient_allreduce_op": str,
    "managed_gradient_accumulation": bool,
    "disable_allgather": bool,
    "disable_python_gc": bool,
    "activation_checkpointing": dict,
    "aio": dict,
    "autotuning": dict,
    "checkpoint": dict,
    "datastates_ckpt": dict,
    "comms_logger": dict,
    "compile": dict,
    "data_efficiency": dict,
    "dataloader_drop_last": bool,
    "dump_state": bool,
    "expert_parallel": dict,
    "flops_profiler": dict,
    "hybrid_engine": dict,
    "log_level": str,
    "memory_breakdown": bool,
    "pipeline": dict,
    "steps_per_print": int,
    "tensor_parallel": dict,
    "timers": dict,
    "use_data_before_expert_parallelism": bool,
    "vocabulary_size": int,
    "wall_clock_breakdown": bool,
    "weight_quantization": dict,
    "tensorboard": dict,
    "wandb": dict,
    "csv_monitor": dict,
    "comet": dict,
}

# Keys that many files have and that DeepSpeed does not read.
UNREAD = ("comms_config", "monitor_config")

# The first characters of a key that is a comment.
COMMENT = ("_", "#", "/")

# The keys that transformers fills in from the options; where the file lacks them, "auto" is meant.
FILLED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)

# The optimizers that DeepSpeed takes under ZeRO without being told that they are untested.
UNDER_ZERO = ("adam", "adamw", "adagrad", "lion", "muon")

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "an object"}


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """DeepSpeed's configuration, with "auto" for what the file leaves to the options.

    Numbers that are whole are of type int, so that 5e8 is one. Raises UserError for a missing file, for what
    is no JSON object, and for everything that DeepSpeed or this trainer would not take, by its name.
    """
    try:
        # A byte order mark, which Windows' editors write, is passed over.
        text = Path(path).read_text(encoding="utf-8-sig")
        config = json.loads(text, object_pairs_hook=_without_twins)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; --deepspeed takes a file such as those in config/"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object")
    for key in UNREAD:
        if key in config:
            say(f'{path}: "{key}" is nothing that DeepSpeed reads, so it has no effect')
    try:
        return _checked(config)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twin}" stands there twice')
    return found


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that was meant. Raises ValueError, which names the key, for one that is none."""
    config = {
        key: value
        for key, value in config.items()
        if value is not None and key not in UNREAD and not key.startswith(COMMENT)
    }
    _check_names(config, TOP_LEVEL, "")
    for key, value in config.items():
        if value == AUTO and key in FILLED:
            continue
        config[key] = _of_kind(value, TOP_LEVEL[key], key)
    for key in FILLED:
        config.setdefault(key, AUTO)
    if config["gradient_clipping"] != AUTO and config["gradient_clipping"] < 0:
        raise ValueError(f'"gradient_clipping" is {config["gradient_clipping"]}, and must not be below 0')
    config.setdefault("bf16", {"enabled": AUTO})
    _check_what_is_the_trainers(config)
    stage = config.get("zero_optimization", {}).get("stage")
    if type(stage) is not int or not 0 <= stage <= 3:
        raise ValueError(
            f'"zero_optimization.stage" is {json.dumps(stage)}, and must be 0, 1, 2 or 3, without quotes'
        )
    for key, model in _section_models().items():
        if key in config:
            config[key] = _checked_section(config[key], model, key)
    config["bf16"].setdefault("enabled", AUTO)
    _check_zero(config)
    if "optimizer" in config:
        _check_optimizer(config)
        params = config["optimizer"].setdefault("params", {})
        for name in ("lr", "weight_decay", *(("betas", "eps") if is_adam(config) else ())):
            params.setdefault(name, AUTO)  # which transformers replaces by the option; left out, it would not
    _check_whole(config)
    return config


def _check_names(found: Iterable[str], known: Iterable[str], section: str) -> None:
    for name in found:
        if name not in known:
            nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
            where = f' in "{section}"' if section else ""
            advice = f'; did you mean "{nearest[0]}"?' if nearest else "; remove it"
            raise ValueError(f'DeepSpeed has no "{name}"{where}{advice}')


def _of_kind(value: Any, kind: type, name: str) -> Any:
    """The value as it was meant: a whole number such as 5e8 as int. Raises ValueError for another kind."""
    if isinstance(value, float) and value.is_integer() and kind is int:
        return int(value)
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f'"{name}" is {json.dumps(value)}, and must be {KINDS[kind]}')
    return value


def _section_models() -> dict[str, type[BaseModel]]:
    """DeepSpeed's own models of sections, by the section's key."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.config import HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "hybrid_engine": HybridEngineConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
    }


def _checked_section(section: Any, model: type[BaseModel], name: str) -> dict[str, Any]:
    """A section of the types that DeepSpeed's model declares; nested sections too.

    The model as a whole converts "3" to 3, so each value is checked by itself, strictly. Values that are
    "auto" or null are left to transformers and DeepSpeed.
    """
    section = _of_kind(section, dict, name)
    fields = {field.alias or key: field for key, field in model.model_fields.items()} | model.model_fields
    section = {key: value for key, value in section.items() if not key.startswith(COMMENT)}
    _check_names(section, fields, name)
    checked = {}
    for key, value in section.items():
        if value is None:
            continue
        extra = fields[key].json_schema_extra
        if isinstance(extra, dict) and extra.get("deprecated"):
            raise ValueError(f'"{name}.{key}" is out of date; write "{extra.get("new_param")}" instead')
        nested = _nested_model(fields[key])
        if value == AUTO:
            checked[key] = value
        elif nested:
            checked[key] = _checked_section(value, nested, f"{name}.{key}")
        else:
            checked[key] = _checked_value(value, fields[key], f"{name}.{key}")
    return checked


def _nested_model(field: "FieldInfo") -> type[BaseModel] | None:
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _checked_value(value: Any, field: "FieldInfo", name: str) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    try:
        TypeAdapter(kind, config={"arbitrary_types_allowed": True}).validate_json(
            json.dumps(value), strict=True
        )
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].removeprefix("Input ")
        raise ValueError(f'"{name}" is {json.dumps(value)}, and {wanted}') from None
    return value


def _check_what_is_the_trainers(config: Mapping[str, Any]) -> None:
    """Raise ValueError for what the trainer does itself, or cannot do."""
    if "scheduler" in config:
        raise ValueError(
            'remove "scheduler"; the schedule is --lr-scheduler and --warmup-steps, and --warmup-shape log '
            "rises as WarmupLR does"
        )
    if config.get("tensor_parallel", {}).get("autotp_size", 0) not in (0, 1):
        raise ValueError(
            'remove "tensor_parallel"; the ranks divide data and weights (ZeRO) between them, not tensors'
        )
    for name in ("expert_parallel", "weight_quantization"):
        if name in config:
            raise ValueError(f'remove "{name}", which this trainer does not do')
    for name in ("autotuning", "data_efficiency", "hybrid_engine"):
        if config.get(name, {}).get("enabled"):
            raise ValueError(f'remove "{name}", which this trainer does not do')
    if config.get("fp16", {}).get("enabled") is True:
        raise ValueError('"fp16.enabled" is true; the trainer computes in bfloat16 or, by --no-bf16, float32')
    if config.get("gradient_allreduce_op", "mean") != "mean" or not config.get(
        "managed_gradient_accumulation", True
    ):
        raise ValueError(
            'remove "gradient_allreduce_op" and "managed_gradient_accumulation"; the trainer takes the mean '
            "over all supervised tokens of a step"
        )
    if config.get("checkpoint", {}).get("load_universal"):
        raise ValueError('remove "checkpoint.load_universal"; the trainer converts checkpoints where it must')


def _check_zero(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a model that could not be saved, and for a place that keeps no optimizer."""
    zero = config["zero_optimization"]
    gathers = zero.get("stage3_gather_16bit_weights_on_model_save")
    if zero["stage"] == 3 and gathers is not True:
        wanted = '"stage3_gather_16bit_weights_on_model_save": true'
        raise ValueError(f'ZeRO-3 cannot save the model without {wanted} in "zero_optimization"')
    for name in ("offload_optimizer", "offload_param"):
        device = zero.get(name, {}).get("device")
        if device == AUTO:
            raise ValueError(f'"zero_optimization.{name}.device" is "auto"; write "cpu", or "none"')
        if device == "nvme":
            _check_nvme(zero, name)


def _check_nvme(zero: Mapping[str, Any], name: str) -> None:
    from deepspeed.accelerator import get_accelerator

    where = f'"zero_optimization.{name}" on nvme'
    if zero["stage"] != 3:
        raise ValueError(f'{where} needs ZeRO stage 3; write "cpu" there')
    path = zero[name].get("nvme_path")
    if not path or not os.path.isdir(path):
        raise ValueError(f'{where}: "nvme_path" must be a directory on that disk, and is {json.dumps(path)}')
    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        raise ValueError(
            f'{where} needs the library libaio and its headers (libaio-dev); install it, or write "cpu"'
        )


def _check_optimizer(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an optimizer, or a parameter of one, that there is not."""
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    optimizer = config["optimizer"]
    _check_names(optimizer, ("type", "params", "legacy_fusion"), "optimizer")
    name = _of_kind(optimizer.get("type"), str, "optimizer.type")
    params = _of_kind(optimizer.get("params", {}), dict, "optimizer.params")
    of_torch = {
        key for key, value in vars(torch.optim).items() if inspect.isclass(value) and key != "Optimizer"
    }
    if name.lower() not in DEEPSPEED_OPTIMIZERS and name not in of_torch:
        known = {each.lower(): each for each in ("AdamW", "Adam", "Lion", "Muon", *sorted(of_torch))}
        nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)
        raise ValueError(f'there is no optimizer "{name}"; did you mean "{known[nearest[0]]}"?')
    if name.lower().startswith("mu") and name.lower() != "muon" and importlib.util.find_spec("mup") is None:
        raise ValueError(f'the optimizer "{name}" needs the package mup; install it')
    is_untested = name.lower() not in UNDER_ZERO and config["zero_optimization"]["stage"] > 0
    if is_untested and not config.get("zero_allow_untested_optimizer"):
        raise ValueError(
            f'DeepSpeed has not tested the optimizer "{name}" with ZeRO; it takes it all the same with '
            '"zero_allow_untested_optimizer": true'
        )
    if is_adam(config):
        _check_names(params, _adam_parameters(config), "optimizer.params")
    for key in ("lr", "eps", "weight_decay"):
        if params.get(key, AUTO) != AUTO:
            _of_kind(params[key], float, f"optimizer.params.{key}")
    for key in ("muon_lr", "adam_lr"):
        if key in params:
            raise ValueError(f'remove "optimizer.params.{key}"; the trainer has one learning rate, --lr')
    betas = params.get("betas", AUTO)
    if betas != AUTO and not (
        isinstance(betas, list)
        and len(betas) == 2
        and all(type(beta) in (int, float) and 0 <= beta < 1 for beta in betas)
    ):
        raise ValueError(
            f'"optimizer.params.betas" is {json.dumps(betas)}, and must be two numbers from 0 to below 1'
        )


def _adam_parameters(config: Mapping[str, Any]) -> set[str]:
    """The names of parameters that the Adam of this configuration takes."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    params = config["optimizer"].get("params", {})
    class_ = FusedAdam if offload_device(config) == "none" else DeepSpeedCPUAdam
    if params.get("torch_adam"):
        class_ = torch.optim.AdamW
    own = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}
    return own | (set(inspect.signature(class_).parameters) - {"params", "model_params", "adamw_mode"})


def _check_whole(config: Mapping[str, Any]) -> None:
    """Have DeepSpeed read it, for what only its own code knows; the batch is transformers' to fill in."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    filled = {key: value for key, value in config.items() if key not in FILLED}
    try:
        DeepSpeedConfig(filled | {"train_micro_batch_size_per_gpu": 1})
    except ValidationError as error:
        raise ValueError(f"DeepSpeed refuses it ({error.errors()[0]['msg']})") from None
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"DeepSpeed refuses it ({first_line(error)})") from None
