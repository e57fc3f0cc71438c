import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from tests.conftest import ROOT
from training.common.errors import UserError
from training.common.options import Options
from training.run.deepspeed_config import read_deepspeed_config
from training.run.deepspeed_values import (
    SMALLEST_BF16_STEP,
    adam_settings,
    check_learning_rate,
    take_values_of_file,
)

CONFIGS = sorted((ROOT / "config").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_our_configurations_leave_to_the_trainer_what_it_knows(path: Path) -> None:
    config = read_deepspeed_config(str(path))
    assert config["bf16"]["enabled"] == "auto"
    assert config["optimizer"]["type"] == "AdamW"
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert config["optimizer"]["params"][name] == "auto"
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[name] == "auto"
    assert config["gradient_clipping"] == "auto"
    assert config["zero_optimization"]["stage"] == (3 if "zero3" in path.name else 2)
    assert ("offload_optimizer" in config["zero_optimization"]) == ("no_offload" not in path.name)


def llama_factory(stage: int, *, autotp: int = 0, offload: tuple[str, ...] = ()) -> dict:
    """A configuration in the shape of those that LLaMA-Factory ships (examples/deepspeed there)."""
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    zero = {name: {"device": "cpu", "pin_memory": True} for name in offload}
    zero |= {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if stage == 3:
        zero |= {"sub_group_size": 1e9, "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9}
        zero |= {"reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
        zero |= {"stage3_param_persistence_threshold": "auto"}
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    else:
        zero |= {"allgather_partitions": True, "allgather_bucket_size": 5e8, "reduce_scatter": True}
        zero |= {"reduce_bucket_size": 5e8, "round_robin_gradients": True}
    scale = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16}
    config = dict.fromkeys((*auto, "gradient_clipping"), "auto") | {
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": "auto", "hysteresis": 2, "min_loss_scale": 1, **scale},
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "comms_config": {"verbose": False},
        "monitor_config": {"enabled": True, "tag": "DeepSpeedMonitor", "csv_monitor": {"enabled": False}},
    }
    if autotp:
        config |= {"_comment": "which models can be divided", "tensor_parallel": {"autotp_size": autotp}}
    return config


LLAMA_FACTORY = {
    "z0": llama_factory(0),
    "z2": llama_factory(2),
    "z2_offload": llama_factory(2, offload=("offload_optimizer",)),
    "z2_autotp": llama_factory(2, autotp=2),
    "z3": llama_factory(3),
    "z3_offload": llama_factory(3, offload=("offload_optimizer", "offload_param")),
}


Z2 = {"zero_optimization": {"stage": 2}}


def zero(stage: object = 2, **more: object) -> dict:
    return {"zero_optimization": {"stage": stage, **more}}


def adam(**params: object) -> dict:
    return Z2 | {"optimizer": {"type": "AdamW", "params": params}}


GATHER = "stage3_gather_16bit_weights_on_model_save"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"bf16": {}, "bf16": {}}', '"bf16" stands there twice'),
        # names
        ({"zero_optimisation": {"stage": 2}}, 'no "zero_optimisation"; did you mean "zero_optimization"?'),
        (zero(overlap_com=True), 'no "overlap_com" in "zero_optimization"; did you mean "overlap_comm"?'),
        (zero(offload_optimizer={"devise": "cpu"}), 'in "zero_optimization.offload_optimizer"; did you mean'),
        (Z2 | {"elasticity": {}}, 'has no "elasticity"'),
        (zero(cpu_offload=True), '"zero_optimization.cpu_offload" is out of date'),
        # types
        (zero("3"), '"zero_optimization.stage" is "3", and must be 0, 1, 2 or 3'),
        (zero(True), "stage"),
        (zero("auto"), "stage"),
        (zero(4), "stage"),
        ({}, '"zero_optimization.stage" is null'),
        ({"zero_optimization": 2}, '"zero_optimization" is 2, and must be an object'),
        (Z2 | {"bf16": True}, '"bf16" is true, and must be an object'),
        (Z2 | {"bf16": {"enabled": "yes"}}, '"bf16.enabled" is "yes", and should be a valid boolean'),
        (zero(overlap_comm="yes"), '"zero_optimization.overlap_comm" is "yes"'),
        (zero(reduce_bucket_size="5e8"), '"zero_optimization.reduce_bucket_size" is "5e8"'),
        (zero(reduce_bucket_size=0.5), "should be a valid integer"),
        (zero(offload_optimizer="cpu"), '"zero_optimization.offload_optimizer" is "cpu", and must be an ob'),
        (zero(offload_optimizer={"device": "disk"}), "should be 'none', 'cpu' or 'nvme'"),
        (zero(offload_optimizer={"device": "auto"}), 'write "cpu", or "none"'),
        (Z2 | {"gradient_clipping": "1.0"}, '"gradient_clipping" is "1.0", and must be a number'),
        (Z2 | {"gradient_clipping": -1}, "must not be below 0"),
        (Z2 | {"train_batch_size": "8"}, '"train_batch_size" is "8", and must be a whole number'),
        (Z2 | {"steps_per_print": True}, '"steps_per_print" is true, and must be a whole number'),
        # what goes together
        (zero(3), "cannot save the model"),
        (zero(3, **{GATHER: "auto"}), "cannot save the model"),
        (zero(3, **{GATHER: 1}), f'"zero_optimization.{GATHER}" is 1'),
        (zero(offload_optimizer={"device": "cpu", "ratio": 0.5}), "Partial offloading only supported for"),
        (zero(0) | {"bf16": {"bf16_master_weights_and_grads": True}}, "only supported with ZeRO Stage 1"),
        (Z2 | {"communication_data_type": "f16"}, "Supported data types"),
        # nvme
        (zero(offload_optimizer={"device": "nvme", "nvme_path": "."}), "needs ZeRO stage 3"),
        (zero(3, **{GATHER: True}, offload_param={"device": "nvme"}), '"nvme_path" must be a directory'),
        # optimizers
        (Z2 | {"optimizer": {"type": "AdamWW"}}, 'no optimizer "AdamWW"; did you mean "AdamW"?'),
        (Z2 | {"optimizer": {"params": {}}}, '"optimizer.type" is null, and must be text'),
        (Z2 | {"optimizer": "AdamW"}, '"optimizer" is "AdamW", and must be an object'),
        (Z2 | {"optimizer": {"type": "SGD"}}, '"zero_allow_untested_optimizer": true'),
        (adam(weight_dacay=0.1), 'no "weight_dacay" in "optimizer.params"; did you mean "weight_decay"?'),
        (adam(lr="1e-5"), '"optimizer.params.lr" is "1e-5", and must be a number'),
        (adam(betas=[0.9]), '"optimizer.params.betas" is [0.9]'),
        (adam(betas=[1.5, 2.0]), '"optimizer.params.betas" is [1.5, 2.0]'),
        (Z2 | {"optimizer": {"type": "Muon", "params": {"muon_lr": 0.1}}}, "one learning rate, --lr"),
        # what the trainer does itself
        (Z2 | {"scheduler": {"type": "WarmupLR"}}, 'remove "scheduler"'),
        (Z2 | {"tensor_parallel": {"autotp_size": 2}}, 'remove "tensor_parallel"'),
        (Z2 | {"fp16": {"enabled": True}}, "computes in bfloat16"),
        (Z2 | {"gradient_allreduce_op": "sum"}, 'remove "gradient_allreduce_op"'),
        (Z2 | {"checkpoint": {"load_universal": True}}, 'remove "checkpoint.load_universal"'),
    ],
)
def test_a_configuration_that_cannot_be_used(
    tmp_path: Path, content: str | dict | None, message: str
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_deepspeed_config(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_nvme_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = SimpleNamespace(is_compatible=lambda verbose: False)
    monkeypatch.setattr(get_accelerator(), "create_op_builder", lambda name: builder)
    config = zero(3, **{GATHER: True}, offload_optimizer={"device": "nvme", "nvme_path": str(tmp_path)})
    with pytest.raises(UserError, match="needs the library libaio"):
        read(tmp_path, config)
    builder.is_compatible = lambda verbose: True
    assert read(tmp_path, config)["zero_optimization"]["stage"] == 3


def read(directory: Path, config: dict) -> dict:
    (directory / "config.json").write_text(json.dumps(config))
    return read_deepspeed_config(str(directory / "config.json"))


@pytest.mark.parametrize("name", LLAMA_FACTORY)
def test_configurations_of_llama_factory(tmp_path: Path, capsys, name: str) -> None:
    if name == "z2_autotp":
        with pytest.raises(UserError, match='remove "tensor_parallel"'):
            read(tmp_path, LLAMA_FACTORY[name])
        return
    config = read(tmp_path, LLAMA_FACTORY[name])
    assert config == {key: value for key, value in LLAMA_FACTORY[name].items() if "_config" not in key}
    assert '"monitor_config" is nothing that DeepSpeed reads' in capsys.readouterr().out


def test_what_a_configuration_leaves_out_is_left_to_the_options(tmp_path: Path) -> None:
    written = zero(offload_optimizer=None, reduce_bucket_size=5e8) | {"steps_per_print": 1e3, "_why": "so"}
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(written).encode())  # Windows' mark
    config = read_deepspeed_config(str(tmp_path / "config.json"))
    assert config == zero(reduce_bucket_size=500_000_000) | {
        "steps_per_print": 1000,
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    assert type(config["zero_optimization"]["reduce_bucket_size"]) is int


def test_parameters_that_the_file_leaves_out_are_those_of_the_options(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"optimizer": {"type": "AdamW"}, "bf16": {}, "zero_optimization": {"stage": 2}}')
    config = read_deepspeed_config(str(path))
    assert config["optimizer"]["params"] == dict.fromkeys(("lr", "weight_decay", "betas", "eps"), "auto")
    assert config["bf16"] == {"enabled": "auto"}
    path.write_text('{"optimizer": {"type": "Lion"}, "zero_optimization": {"stage": 2}}')
    assert set(read_deepspeed_config(str(path))["optimizer"]["params"]) == {"lr", "weight_decay"}


def test_clipping_and_weight_decay_of_the_file_count_where_the_options_are_not_given() -> None:
    config = adam(weight_decay=0.1, betas=[0.9, 0.95], eps="auto") | {"gradient_clipping": 0.5}
    taken = take_values_of_file(Options(default_names=("weight_decay", "max_grad_norm")), config)
    assert (taken.weight_decay, taken.max_grad_norm) == (0.1, 0.5)
    same = Options(weight_decay=0.1, max_grad_norm=0.5, deepspeed="c.json")
    assert take_values_of_file(same, config) == same
    with pytest.raises(
        UserError, match=r'c.json: "gradient_clipping" is 0.5, and --max-grad-norm 2.0; leave'
    ):
        take_values_of_file(replace(same, max_grad_norm=2.0), config)
    assert take_values_of_file(same, Z2) == same
    assert adam_settings(config) == {"adam_beta1": 0.9, "adam_beta2": 0.95}


def test_a_rate_that_bf16_rounds_off_is_refused_where_there_are_no_float32_weights() -> None:
    without = {"bf16": {"enabled": "auto", "bf16_master_weights_and_grads": True}}
    with pytest.raises(UserError, match="--lr 5e-07 changes no bf16 weight"):
        check_learning_rate(without, 5e-7)
    check_learning_rate(without, 1e-4)
    check_learning_rate({"bf16": {"enabled": "auto"}}, 5e-7)
    check_learning_rate({}, 5e-7)


def test_the_smallest_step_is_where_a_bf16_weight_begins_to_change() -> None:
    weight = torch.tensor(2.0**-6, dtype=torch.bfloat16)
    assert weight + 0.99 * SMALLEST_BF16_STEP == weight
    assert weight + 1.01 * SMALLEST_BF16_STEP > weight
