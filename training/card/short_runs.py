"""Part 5: three steps of the trainer in each way that one card allows, their peak memory beside the plan's.

This is the one part that needs all that the trainer needs. It is imported when it runs.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.card.page import Check
from training.card.scale import bloom_of
from training.card.timing import forget_peak
from training.common.option_texts import Source
from training.common.options import Options
from training.cost.memory import Memory
from training.cost.ways import CONFIGS, fitted_config, ways_of, work_of
from training.data.examples import build_datasets
from training.model.bloom import BloomForCausalLM
from training.model.save import save_model
from training.text.tokenizer import load_tokenizer_and_new_tokens

ROOT = Path(__file__).parents[2]
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
STEPS, ROWS = 3, 64

# The ZeRO stage of each way, whether it offloads the optimizer, and its options of the trainer.
WAYS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "ZeRO-2": (2, False, {}),
    "ZeRO-2, offload": (2, True, {}),
    "ZeRO-3": (3, False, {}),
    "LoRA": (2, False, {"lora_rank": 16}),
    "QLoRA": (2, False, {"lora_rank": 16, "load_in_4bit": True}),
}

# How much more than the plan says a card may hold, as a share of the plan.
BESIDE_THE_PLAN = 1.1

# Seconds after which a run has hung; the offloading one may have to build DeepSpeed's Adam first.
PATIENCE_S = 300

# The trainer in a process of its own, which prints at the end the most bytes that it had of the card.
RUN = """
import runpy, torch
try:
    runpy.run_module("training.trainer", run_name="__main__", alter_sys=True)
finally:
    print("peak", torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
"""


def measure_runs(check: Check) -> None:
    batch = check.scale.run_batch
    note = (
        f"bf16, {STEPS} steps of {batch.examples} rows with answers of {batch.length:,} tokens, one process"
    )
    check.add("model", str(check.scale.run), note=note)
    with tempfile.TemporaryDirectory(dir=check.directory) as name:
        directory = Path(name)
        tokenizer = byte_tokenizer()
        save_model(
            bloom_of(check.scale.run, BloomForCausalLM, torch.bfloat16, check.device),
            tokenizer,
            directory / "model",
        )
        forget_peak(check.device)
        row = {"instruction": "0123456789", "input": "", "output": "abcdefgh" * (batch.length // 8)}
        (directory / "rows.jsonl").write_text((json.dumps(row) + "\n") * ROWS, encoding="utf-8")
        for way in check.scale.ways:
            _measure(check, way, directory)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _measure(check: Check, way: str, directory: Path) -> None:
    stage, offload, adapter = WAYS[way]
    options = Options(
        data_path=(Source(str(directory / "rows.jsonl")),),
        input_model=str(directory / "model"),
        local_output_dir=directory,
        cache_dir=directory / "cache",
        run_name=way.replace(", ", "-"),
        deepspeed=str(ROOT / CONFIGS[stage, offload]),
        per_device_train_batch_size=check.scale.run_batch.examples,
        max_length=2048,
        max_steps=STEPS,
        test_size=0,
        save_only_model=True,
        **adapter,
    )
    planned = _plan(options, stage, offload)
    status, output = _run(options)
    last = output.rpartition("\npeak ")[0].strip().splitlines()[-1:] if status else []
    check.add(f"{way}: exit status", status, at_most=0, note="".join(last))
    if status:
        return
    note = f"planned: {planned.peak / 1e9:.3g} GB"
    if offload:
        note += f", and {planned.host / 1e9:.3g} GB of the host"
    if not check.on_card:
        check.add(f"{way}: peak of the card's memory", "needs a card", note=note)
        return
    peak = int(output.split()[-1])
    check.add(f"{way}: peak of the card's memory", peak / 1e9, "GB", note=note)
    check.add(f"{way}: of what was planned", 100 * peak / planned.peak, "%", at_most=100 * BESIDE_THE_PLAN)


def _plan(options: Options, stage: int, offload: bool) -> Memory:
    """What `training.plan` says of one card."""
    tokenizer, new_tokens = load_tokenizer_and_new_tokens(options.input_model)
    with contextlib.redirect_stdout(None):
        examples, _ = build_datasets(options, tokenizer)
    work = work_of(options, examples, cards=1, packed=True)
    config = fitted_config(options.input_model, tokenizer)
    ways = ways_of(options, config, new_tokens, work, cards=1, packed=True)
    return next(way.memory for way in ways if CONFIGS[stage, offload] in way.options)


def _run(options: Options) -> tuple[int, str]:
    """The exit status and the output of the trainer."""
    arguments = {
        "--data-path": options.data_path[0].path,
        "--input-model": options.input_model,
        "--local-output-dir": options.local_output_dir,
        "--cache-dir": options.cache_dir,
        "--run-name": options.run_name,
        "--deepspeed": options.deepspeed,
        "--per-device-train-batch-size": options.per_device_train_batch_size,
        "--max-length": options.max_length,
        "--max-steps": options.max_steps,
        "--test-size": options.test_size,
    }
    typed = [f"{name}={value}" for name, value in arguments.items()] + ["--save-only-model"]
    if options.lora_rank:
        typed.append(f"--lora-rank={options.lora_rank}")
    if options.load_in_4bit:
        typed.append("--load-in-4bit")
    try:
        finished = subprocess.run(
            [sys.executable, "-c", RUN, *typed],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, f"it did not end within {PATIENCE_S} s"
    return finished.returncode, finished.stdout
