"""The plan before a run: held to real models, to torch's counters and to DeepSpeed's estimators."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig

from tests.conftest import LEARNT, ROOT, SINGLE_TURN, write_rows
from tests.tiny_models import make_llama, make_qwen
from training import plan, trainer
from training.common.options import PLANNED, Options
from training.cost import ways
from training.cost.memory import Adapter, MicroBatch, Shapes, memory_of, model_states, shapes_of
from training.cost.ways import CONFIGS, fitted_config
from training.data.collate import collate
from training.data.examples import build_datasets
from training.model.load import load_model
from training.model.lora import add_adapter
from training.text.tokenizer import load_tokenizer, new_tokens

ADAPTER = Adapter(rank=4, alpha=8, dropout=0.0, target="auto")

# bloomz-7b1-mt
BLOOMZ = BloomConfig(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32)


def kept_by(model: torch.nn.Module, **batch) -> int:
    """Bytes that a real forward pass keeps for the backward pass, without the weights and the head's part."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("adapter", [None, ADAPTER])
@pytest.mark.parametrize("architecture", ["bloom", "llama", "qwen"])
def test_what_is_counted_without_weights_is_what_a_real_model_has_and_keeps(
    base: str, tmp_path: Path, architecture: str, adapter: Adapter | None
) -> None:
    make = {"bloom": lambda _: base, "llama": make_llama, "qwen": make_qwen}[architecture]
    path = make(tmp_path / "tiny")
    tokenizer = load_tokenizer(path)
    new = new_tokens(path, tokenizer)
    model = load_model(path, tokenizer, dtype=torch.float32)
    if adapter:
        model = add_adapter(model, new, **adapter._asdict())
    batch = MicroBatch(examples=3, length=40)
    shapes = shapes_of(fitted_config(path, tokenizer), batch, torch.float32, adapter, new)
    weights = list(model.parameters())
    assert shapes.trainable == sum(weight.numel() for weight in weights if weight.requires_grad)
    assert shapes.frozen == sum(weight.numel() for weight in weights if not weight.requires_grad)
    assert shapes.largest == max(weight.numel() for weight in weights)

    computed = shapes.outer_bytes + shapes.layers * shapes.block_bytes
    if architecture == "bloom":
        examples = [{"input_ids": [7] * batch.length, "labels": [7] * batch.length}] * batch.examples
        bare = model.get_base_model() if adapter else model
        bare.lm_head = torch.nn.Identity()
        bare.lm_head.forward = lambda hidden, *_, **__: hidden
        kept = kept_by(bare, **{name: value for name, value in collate(examples).items() if name != "labels"})
    else:
        bare = (model.get_base_model() if adapter else model).base_model
        ids = torch.full((batch.examples, batch.length), 7)
        padding = torch.ones_like(ids)
        padding[0, -1] = 0  # without any, the library passes no mask
        kept = kept_by(bare, input_ids=ids, attention_mask=padding, use_cache=False)
    assert computed == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("ranks", [1, 8])
def test_the_states_of_a_full_run_are_those_of_deepspeed_s_estimators(ranks: int) -> None:
    trained, largest = 7_069_016_064, 250_880 * 4_096
    size = {"ranks": ranks, "width": 2}
    plain, offloaded = (
        model_states(trained, 0, largest, stage=2, offload=offload, **size) for offload in (False, True)
    )
    copied = 2 * trained // ranks  # what a step copies, which the estimators leave out
    _, card = estimate_zero2_model_states_mem_needs(trained, ranks, cpu_offload=False)
    assert plain.of_rank - copied == pytest.approx(card, rel=1e-6)
    _, card = estimate_zero2_model_states_mem_needs(trained, ranks, cpu_offload=True)
    assert offloaded.of_rank == card

    plain, offloaded = (
        model_states(trained, 0, largest, stage=3, offload=offload, **size) for offload in (False, True)
    )
    _, card, _ = estimate_zero3_model_states_mem_needs(
        trained, largest, ranks, cpu_offload=False, cpu_offload_params=False
    )
    # The estimator has 18 bytes a weight, and so not the 2 of either the weights or their gradients.
    assert plain.of_rank - 2 * copied == pytest.approx(card, rel=1e-6)
    host, card, _ = estimate_zero3_model_states_mem_needs(
        trained, largest, ranks, cpu_offload=True, cpu_offload_params=False, additional_buffer_factor=1.3
    )
    assert (offloaded.of_rank, offloaded.offloaded) == pytest.approx((card, host), rel=1e-6)


@pytest.fixture(scope="module")
def bloomz() -> Shapes:
    return shapes_of(BLOOMZ, MicroBatch(8, 2048), torch.bfloat16)


HOW = {
    "stage": 2,
    "offload": False,
    "ranks": 8,
    "dtype": torch.bfloat16,
    "supervised": 16384,
    "bucket": 2 * 10**8,
}


def test_bloomz_is_counted_from_its_configuration_alone(bloomz: Shapes) -> None:
    assert (bloomz.trainable, bloomz.frozen) == (7_069_016_064, 0)
    assert bloomz.hidden_states == 16384 * 4096 * 2


def test_what_makes_a_run_smaller_makes_its_plan_smaller(bloomz: Shapes) -> None:
    def peak(**other) -> int:
        return memory_of(bloomz, checkpointing=True, **(HOW | other)).peak

    assert peak() < memory_of(bloomz, checkpointing=False, **HOW).peak
    assert peak(ranks=16) < peak()
    assert peak(offload=True) < peak()
    assert peak(stage=3) < peak()
    assert peak(dtype=torch.float32) > peak()


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
    values = trainer.main.make_context("", f"{more} --input-model {base} --local-output-dir x".split()).params
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
    "test_size": ("--data-path {rows}", "--test-size 60"),
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
    where_model_and_rows_come_from = {"input_model", "cache_dir", "on_bad_row"}
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
