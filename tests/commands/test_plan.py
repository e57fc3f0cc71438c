"""The plan before a run: held to real models, to torch's counters and to DeepSpeed's estimators."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig

from tests.conftest import LEARNT, ROOT, SINGLE_TURN, write_rows
from tests.tiny_models import make_llama
from training import plan, trainer
from training.common.options import PLANNED, Options
from training.cost import ways
from training.cost.ways import CONFIGS, fitted_config
from training.data.examples import build_datasets
from training.text.tokenizer import load_tokenizer

# bloomz-7b1-mt
BLOOMZ = BloomConfig(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32)


def planned(out: str) -> dict[str, list[str]]:
    """The table's lines by what they plan."""
    lines = re.findall(r"^((?:all weights|LoRA).*?ZeRO-\d(?:, offload)?) +(.*)$", out, re.M)
    return {name: figures.split() for name, figures in lines}


def test_the_command_needs_a_configuration_and_a_tokenizer_but_no_weights(
    outcome, base: str, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "bare")
    BLOOMZ.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    command = f"--input-model {tmp_path / 'bare'} --num-gpus 8 --gpu-memory"
    status, out, err = outcome(plan.main, f"{command} 80")
    assert (status, err) == (0, "")
    assert "7,069.0 M parameters, vocabulary 250,880; 8 x 80.0 GB" in out
    assert "16,384 tokens in 8 example(s) of --max-length" in out
    table = planned(out)
    assert len(table) == 9
    assert all("fits" in figures for figures in table.values())
    assert "take: --deepspeed config/deepspeed_zero2_bf16_no_offload.json (all weights, ZeRO-2;" in out
    # Two copies of the bf16 weights and 12 bytes of optimizer.
    assert table["all weights, ZeRO-2"][-1] == f"{16 * 7.069016064:.1f}"

    _, out, _ = outcome(plan.main, f"{command} 40")
    assert "take: --deepspeed config/deepspeed_zero3_bf16_no_offload.json" in out
    _, out, _ = outcome(plan.main, f"{command} 40 --lora-rank 8 --max-length 512")
    assert "take: --lora-rank 8 --deepspeed config/deepspeed_zero2_bf16_no_offload.json" in out
    assert not any(name.startswith("all weights") for name in planned(out))
    _, out, _ = outcome(plan.main, f"{command} 4")
    assert "none fits: more cards" in out


def test_with_data_the_batches_and_the_time_are_those_of_the_run(outcome, base: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", LEARNT)
    more = f"--data-path {rows} --cache-dir {tmp_path} --test-size 0 --per-device-train-batch-size 4"
    command = f"--input-model {base} --num-gpus 1 --gpu-memory 2 {more}"
    _, out, _ = outcome(plan.main, f"{command} --epochs 3")
    tokenizer = load_tokenizer(base)
    run = f"{more} --input-model {base} --local-output-dir x --max-length 2048"
    values = trainer.main.make_context("", run.split()).params
    lengths = build_datasets(Options(**values), tokenizer)[0].lengths
    assert f"longest micro-batch: {4 * -(-lengths.sum() // 4):,} tokens in 4 example(s)\n" in out
    assert f"for {3 * lengths.sum():,} tokens" in out
    _, halved, _ = outcome(plan.main, f"{command} --epochs 3 --utilization 0.2 --gpu-tflops 1e-6")
    _, whole, _ = outcome(plan.main, f"{command} --epochs 3 --utilization 0.4 --gpu-tflops 1e-6")
    seconds = [
        sum(int(part) * factor for part, factor in zip(clock.split(":"), (3600, 60, 1), strict=True))
        for clock in re.findall(r"^time: (\S+) for", halved + whole, re.M)
    ]
    assert seconds[0] == pytest.approx(2 * seconds[1], abs=2)


def test_the_trainer_plans_and_stops(outcome, base: str, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    arguments = f"--data-path {SINGLE_TURN} --input-model {base} --local-output-dir {out_dir}"
    status, out, _ = outcome(trainer.main, f"{arguments} --cache-dir {tmp_path / 'cache'} --plan")
    assert status == 0
    assert len(planned(out)) == 9
    assert "take: --deepspeed config/" in out
    assert not out_dir.exists()


def test_what_is_no_model_is_one_line(outcome, tmp_path: Path) -> None:
    command = f"--input-model {tmp_path} --num-gpus 1 --gpu-memory 8"
    status, _, err = outcome(plan.main, command)
    assert (status, err) == (
        2,
        f"error: {tmp_path}: a directory without config.json: there is no model in it\n",
    )
    (tmp_path / "adapter_config.json").write_text("{}")
    status, _, err = outcome(plan.main, command)
    assert status == 2
    assert err.startswith(f"error: {tmp_path}: an adapter; merge it into its base first")


def test_each_way_has_its_configuration() -> None:
    for (stage, offload), path in CONFIGS.items():
        zero = json.loads((ROOT / path).read_text())["zero_optimization"]
        assert (zero["stage"], "offload_optimizer" in zero) == (stage, offload)
        if stage == 2:
            assert zero["reduce_bucket_size"] == ways.ZERO2_BUCKET
    assert {os.path.basename(path) for path in CONFIGS.values()} == set(os.listdir(ROOT / "config"))


def test_a_configuration_without_a_bloom_is_planned_by_padded_batches(outcome, tmp_path: Path) -> None:
    path = make_llama(tmp_path / "llama")
    _, out, _ = outcome(plan.main, f"--input-model {path} --num-gpus 2 --gpu-memory 8 --max-length 64")
    parameters = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).num_parameters()
    grown = fitted_config(path, load_tokenizer(path))
    added = (grown.vocab_size - AutoConfig.from_pretrained(path).vocab_size) * grown.hidden_size
    assert f"{(parameters + 2 * added) / 1e6:,.1f} M parameters" in out


# For each option a command, and what changes the answer when it is added.
CHANGES = {
    "data_path": ("", "--data-path {rows}"),
    "max_length": ("--data-path {rows}", "--max-length 900"),
    "system": ("--data-path {rows}", f"--system {'字' * 99}"),
    "test_size": ("--data-path {rows}", "--test-size 60"),
    "eval_data_path": ("--data-path {rows}", "--eval-data-path {rows}"),
    "lora_rank": ("--lora-rank 8", "--lora-rank 256"),
    "lora_dropout": ("--lora-rank 8", "--lora-dropout 0.5"),
    "lora_target": ("--lora-rank 8", "--lora-target dense"),
    "load_in_4bit": ("--lora-rank 8", "--load-in-4bit"),
    "epochs": ("--data-path {rows}", "--epochs 3"),
    "max_steps": ("--data-path {rows}", "--max-steps 3"),
    "per_device_train_batch_size": ("", "--per-device-train-batch-size 2"),
    "tokens_per_batch": ("", "--tokens-per-batch 4096"),
    "gradient_accumulation_steps": ("--data-path {rows} --max-steps 3", "--gradient-accumulation-steps 2"),
    "seed": ("--data-path {rows}", "--seed 1"),
    "bf16": ("", "--no-bf16"),
    "gradient_checkpointing": ("", "--no-gradient-checkpointing"),
    "save_only_model": ("", "--save-only-model"),
}


@pytest.fixture(scope="module")
def bare_and_rows(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a model without weights whose plan is of some GB, and a file of rows."""
    directory = tmp_path_factory.mktemp("bare")
    shutil.copytree(base, directory / "model")
    config = BloomConfig(vocab_size=50_000, hidden_size=2048, n_layer=4, n_head=16)
    config.save_pretrained(directory / "model")
    rows = [{"instruction": f"{i}", "output": "字" * (40 + 20 * i)} for i in range(100)]
    return directory, write_rows(directory / "rows.jsonl", rows)


def test_every_option_that_the_plan_offers_has_such_a_change() -> None:
    where_model_and_rows_come_from = {"input_model", "cache_dir", "on_bad_row", "columns", "learn"}
    assert CHANGES.keys() | where_model_and_rows_come_from == set(PLANNED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_the_option_changes_the_plan(outcome, bare_and_rows, name: str) -> None:
    directory, rows = bare_and_rows
    command = f"--input-model {directory / 'model'} --num-gpus 2 --gpu-memory 8 --cache-dir {directory}"

    def answer(more: str) -> str:
        status, out, err = outcome(plan.main, f"{command} {more.format(rows=rows)}")
        assert (status, err) == (0, "")
        return out

    before, change = CHANGES[name]
    assert answer(before) != answer(f"{before} {change}")
