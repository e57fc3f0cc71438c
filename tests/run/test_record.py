from pathlib import Path

import pytest

from tests.conftest import write_rows
from training.common.command_line import parse_value, text_of_value
from training.common.errors import UserError
from training.common.option_texts import Source
from training.common.options import OPTION_NAMES, Options
from training.run.deepspeed_values import check_gradient_sums
from training.run.record import (
    NOT_KEPT,
    Beginning,
    beginning,
    check_checkpoint,
    check_same_run,
    keep_recorded,
)

WRITTEN = {"kind": "adamw", "offload": "none", "round_robin_gradients": False}


def file(optimizer: str = "AdamW", **zero: object) -> dict:
    return {"optimizer": {"type": optimizer}, "zero_optimization": {"stage": 2, **zero}}


def content(world_size: int = 2, **state: object) -> dict:
    return {"world_size": world_size, "optimizer state": WRITTEN | state}


def test_a_run_keeps_to_what_it_began_with(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"instruction": "q", "output": "a"}])
    options = Options(
        data_path=(Source(rows),), input_model="m", local_output_dir=tmp_path, cache_dir=tmp_path
    )
    new = Beginning("whole prompts", adds_pad=True, has_tools=False)
    assert beginning(None, options) == new
    recorded = {"together": "whole prompts", "adds pad token": True, "tools": True}
    assert beginning(recorded, options) == new._replace(has_tools=True)
    of_earlier_version = Beginning("first prompts", adds_pad=False, has_tools=False)
    assert beginning({}, options) == of_earlier_version


def test_a_checkpoint_that_deepspeed_can_load() -> None:
    check_checkpoint(Path("c"), content(), file(), 1)
    check_checkpoint(Path("c"), content(), file(offload_optimizer={"device": "cpu"}), 2)
    check_checkpoint(Path("c"), content(round_robin_gradients=True), file(round_robin_gradients=True), 2)
    check_checkpoint(Path("c"), {"world_size": 2}, file(), 1)  # of an earlier version


@pytest.mark.parametrize(
    ("written", "now", "message"),
    [
        (content(), file("Lion"), 'with "optimizer" "adamw", and DeepSpeed\'s file has "lion" now'),
        (content(), {"zero_optimization": {"stage": 2}}, 'and DeepSpeed\'s file has "none" now'),
        (content(), file(round_robin_gradients=True), '"round_robin_gradients" false, and'),
        (content(round_robin_gradients=True), file(), '"round_robin_gradients" true, and'),
        (content(1, round_robin_gradients=True), file(round_robin_gradients=True), "and 2 would scramble"),
        ({"world_size": 1}, file(round_robin_gradients=True), "and 2 would scramble"),
    ],
)
def test_a_checkpoint_that_deepspeed_would_load_wrongly(written: dict, now: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_checkpoint(Path("run/checkpoint-3"), written, now, 2)
    assert "--input-model run/checkpoint-3" in str(error.value)


def test_an_adapters_checkpoint_is_merged_before_a_new_run_begins_from_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"training\.merge_adapter"):
        check_checkpoint(tmp_path, content(), file("Lion"), 2)


@pytest.mark.parametrize(
    ("now", "remedy"),
    [
        ("ZeRO stage 3, bf16", "give --deepspeed as before"),
        ("ZeRO stage 2, float32", "give --bf16 as before"),
        (
            "ZeRO stage 2, bf16, LoRA of rank 4, alpha 8, auto",
            "give --lora-rank, --lora-alpha, ",
        ),
    ],
)
def test_another_optimizer_is_told_which_options_to_give(tmp_path: Path, now: str, remedy: str) -> None:
    record = {"optimizer": "ZeRO stage 2, bf16"}
    with pytest.raises(UserError, match=remedy):
        check_same_run(tmp_path, {"optimizer": now}, record, anyway=True)


def test_options_that_are_not_given_stay_what_the_run_had() -> None:
    began = Options(
        lr=3e-4, lora_rank=4, bf16=False, max_steps=9, test_size=0.25, warmup_steps=0.5, deepspeed="c.json",
        lr_scheduler="cosine", tokens_per_batch=700, seed=3, run_name="run", report_to=("wandb", "mlflow"),
        eval_data_path=("a, b.jsonl", 'c"d.jsonl'), system="你是\n一名记者。",
    )  # fmt: skip
    record = {"options": {name: text_of_value(getattr(began, name)) for name in OPTION_NAMES}}
    required = ("data_path", "input_model", "local_output_dir")
    not_given = tuple(name for name in OPTION_NAMES if name not in (*required, "lr", "resume"))
    kept = keep_recorded(Options(lr=1e-5, resume=True, run_name="run", default_names=not_given), record)
    assert (kept.lr, kept.resume) == (1e-5, True)
    for name in not_given:
        if name not in NOT_KEPT:
            assert getattr(kept, name) == getattr(began, name), name
    given = tuple(name for name in not_given if name != "per_device_train_batch_size")
    longer = Options(epochs=9, default_names=tuple(name for name in not_given if name != "epochs"))
    assert (keep_recorded(longer, record).epochs, keep_recorded(longer, record).max_steps) == (9, None)
    other = Options(per_device_train_batch_size=2, default_names=given)
    assert keep_recorded(other, record).micro_batch == {"batch_size": 2}


def test_no_files_to_evaluate_on_stay_none() -> None:
    assert text_of_value(("wandb", "mlflow")) == "wandb,mlflow"  # as earlier versions wrote it
    assert parse_value(Options, "eval_data_path", text_of_value(())) == ()


@pytest.mark.parametrize("name", ["bf16", "epochs", "test_size", "lr_scheduler", "cache_dir", "run_name"])
def test_the_text_of_an_option_is_read_as_its_value(name: str) -> None:
    value = getattr(Options(run_name="a b"), name)
    found = parse_value(Options, name, str(value))
    assert (found, type(found)) == (value, type(value))


def test_sums_of_gradients_in_another_type_are_said_and_refuse_no_run(tmp_path: Path, capsys) -> None:
    """A run of an earlier version, which did not record them, goes on with a configuration of this one."""
    same = {"data": 1, "model": 1, "global batch": 1, "seed": 1, "optimizer": "ZeRO stage 2, bf16"}
    same["options"] = {}
    check_same_run(tmp_path, same | {"gradient sums": "fp32"}, same, anyway=False)
    said = "gradients of several micro-batches are added up in fp32, and were in bf16\n"
    assert capsys.readouterr().out == said
    for sums in ("fp32", "bf16"):
        check_same_run(tmp_path, same | {"gradient sums": sums}, same | {"gradient sums": sums}, anyway=False)
    assert capsys.readouterr().out == ""


def test_sums_of_gradients_that_deepspeed_cannot_make_are_refused() -> None:
    def config(stage: int, sums: str) -> dict:
        return {"zero_optimization": {"stage": stage}, "data_types": {"grad_accum_dtype": sums}}

    with pytest.raises(UserError, match=r"without ZeRO .* gradients of bf16 weights in bf16 only"):
        check_gradient_sums(config(0, "fp32"), bf16=True)
    with pytest.raises(UserError, match=r'"data_types\.grad_accum_dtype" is \'float\'; write one of fp32'):
        check_gradient_sums(config(2, "float"), bf16=True)
    check_gradient_sums(config(0, "fp32"), bf16=False)
    check_gradient_sums(config(2, "fp32"), bf16=True)
    check_gradient_sums({}, bf16=True)
