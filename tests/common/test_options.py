from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml

from training import plan, trainer
from training.common.command_line import as_yaml
from training.common.errors import UserError
from training.common.option_texts import Source, source_text
from training.common.options import ADAPTER_LEARNING_RATE, LEARNING_RATE, OF_ONE_START, Options, values_of_run

REQUIRED = ("--data-path", "a", "--input-model", "b", "--local-output-dir", "c")


def parsed(arguments: str) -> Options:
    return Options(**trainer.main.make_context("trainer", [*REQUIRED, *arguments.split()]).params)


def test_a_default_that_depends_on_another_option_is_resolved() -> None:
    assert (parsed("").lr, parsed("").lora_alpha) == (LEARNING_RATE, None)
    adapter = parsed("--lora-rank 4")
    assert (adapter.lr, adapter.lora_alpha) == (ADAPTER_LEARNING_RATE, 8)
    assert set(adapter.default_names) == {"lr", "lora_alpha", "test_size"}
    given = parsed("--lora-rank 4 --lr 1e-5 --lora-alpha 8 --test-size 7")
    assert (given.lr, given.lora_alpha, given.default_names) == (1e-5, 8, ())


def test_rows_are_held_out_unless_files_to_evaluate_on_are_given() -> None:
    assert parsed("").test_size == 0.05
    files = parsed("--eval-data-path a,b.jsonl --eval-data-path c.jsonl")
    assert (files.eval_data_path, files.test_size) == (("a,b.jsonl", "c.jsonl"), 0)
    assert parsed("--eval-data-path a.jsonl --test-size 0.1").test_size == 0.1


def test_reporters_are_given_one_by_one() -> None:
    assert parsed("").report_to == ("tensorboard",)
    assert parsed("--report-to swanlab --report-to tensorboard").report_to == ("swanlab", "tensorboard")
    assert parsed("--report-to none").report_to == ("none",)
    with pytest.raises(UserError, match=r"--report-to none: contradicts"):
        parsed("--report-to none --report-to wandb")


def test_a_micro_batch_is_of_examples_or_of_tokens() -> None:
    assert parsed("").micro_batch == {"batch_size": 8}
    assert parsed("--per-device-train-batch-size 3").micro_batch == {"batch_size": 3}
    assert parsed("--tokens-per-batch 99").micro_batch == {"tokens_per_batch": 99}
    with pytest.raises(UserError, match=r"--tokens-per-batch and --per-device-train-batch-size contradict"):
        parsed("--tokens-per-batch 99 --per-device-train-batch-size 8")


@pytest.mark.parametrize(("text", "value"), [("100", 100), ("0", 0), ("1", 1), ("0.03", 0.03)])
def test_the_warm_up_is_steps_or_a_share(text: str, value: int | float) -> None:
    found = parsed(f"--warmup-steps {text}").warmup_steps
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("text", "message"), [(" \n", "empty"), ("\ue000", "empty"), ("a\udce4", "UTF-8")])
def test_a_system_text_without_characters_or_in_another_encoding_is_refused(text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        trainer.main.make_context("trainer", [*REQUIRED, "--system", text])


def test_what_a_run_goes_by_is_taken_back_by_config(tmp_path: Path) -> None:
    arguments = (
        "--data-path x.jsonl:0.5 --lr 5e-7 --lora-rank 3 --no-bf16 --warmup-steps 0.1 --test-size 7 "
        "--cache-dir 缓存 --tokens-per-batch 99 --load-in-4bit --run-name r --resume --local_rank 1 "
        "--epochs 0.3 --report-to wandb --report-to mlflow --eval-data-path e.jsonl --eval-data-path f.jsonl "
        "--system 你是一名'记者'。"
    )
    options = parsed(arguments)
    (tmp_path / "options.yaml").write_text(as_yaml(values_of_run(options)), encoding="utf-8")
    again = Options(
        **trainer.main.make_context("trainer", ["--config", str(tmp_path / "options.yaml")]).params
    )
    for each in fields(Options):
        if each.name == "default_names" or each.name in OF_ONE_START:
            continue
        assert getattr(again, each.name) == getattr(options, each.name), each.name
    assert (again.resume, again.local_rank, again.plan) == (False, None, False)


@pytest.mark.parametrize("source", [Source("a"), Source("a", 0.1), Source("a:b", 1e-3), Source("a", 3.0)])
def test_a_source_is_what_its_text_says(source: Source) -> None:
    (found,) = parsed(f"--data-path {source_text(source)}").data_path[1:]
    assert found == source


@pytest.mark.parametrize("key", ["per-device-train-batch-size", "per_device_train_batch_size"])
def test_keys_may_have_dashes_or_underscores(key: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({key: 5}))
    assert parsed(f"--config {tmp_path / 'c.yaml'}").micro_batch == {"batch_size": 5}


def test_the_plan_offers_no_option_that_does_not_change_it() -> None:
    offered = {option.opts[0] for option in plan.main.params if not option.hidden}
    assert {"--max-length", "--lora-rank", "--bf16", "--config", "--num-gpus"} <= offered
    for other in ("--lr", "--warmup-steps", "--save-steps", "--resume", "--local-output-dir", "--deepspeed"):
        assert other not in offered
