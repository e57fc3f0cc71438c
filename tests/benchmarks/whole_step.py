"""Whole optimizer steps of the trainer's command, beside those of a plain transformers Trainer.

    python -m tests.benchmarks.whole_step --data-path FILE --input-model bigscience/bloomz-7b1-mt

Both fine-tune the same random model, one of `tests.benchmarks.train_step.BASES`, on the same rows and under
the same DeepSpeed file, as one process: all weights, then (ours only) an adapter of rank 16. The plain
Trainer pads its batches and computes all logits. The first steps, in which memory is taken, are not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from tests.benchmarks.train_step import BASES, in_vocabulary, model_of
from training.common.errors import run_command
from training.data.collate import collate_padded
from training.data.encoded import read_conversations
from training.model.save import save_model
from training.text.encoding import encode
from training.text.formats import written_formats
from training.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]

# Steps that are not counted, and those that are.
WARM_UP, COUNTED = 2, 3

WAYS = {"plain": [], "ours": [], "ours, LoRA 16": ["--lora-rank", "16"]}


class Seconds(TrainerCallback):
    """The seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def plain_steps(directory: Path, rows: list[dict[str, list[int]]], deepspeed: str, bf16: bool) -> list[float]:
    """The seconds of a plain Trainer's optimizer steps, each on all rows."""
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(environment | {"MASTER_PORT": "29871"})
    args = TrainingArguments(
        output_dir=str(directory / "plain"), max_steps=WARM_UP + COUNTED, learning_rate=1e-5, bf16=bf16,
        per_device_train_batch_size=len(rows), deepspeed=deepspeed, use_cpu=not torch.cuda.is_available(),
        save_strategy="no", logging_strategy="no", report_to=[], remove_unused_columns=False,
    )  # fmt: skip
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=dtype)
    seconds = Seconds()
    Trainer(
        model=model, args=args, train_dataset=rows, data_collator=collate_padded, callbacks=[seconds]
    ).train()
    return seconds.seconds


def our_steps(directory: Path, name: str, command: list[str], tokens: int) -> tuple[list[float], int]:
    """The seconds of the trainer's optimizer steps, and the peak memory of its process in bytes."""
    _, peak = run([*command, "--run-name", name])
    entries = (directory / name / "metrics.jsonl").read_text("utf-8").splitlines()
    speeds = [
        entry["tokens_per_second"] for entry in map(json.loads, entries) if "tokens_per_second" in entry
    ]
    return [tokens / speed for speed in speeds], peak


def run(command: list[str]) -> tuple[str, int]:
    """What a command printed last, and its peak memory in bytes. Raises CalledProcessError where it fails."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines[-1], usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@click.command(context_settings={"show_default": True})
@click.option("--data-path", required=True, help="Rows to train on; the first usable ones are taken.")
@click.option("--input-model", required=True, help="Model whose tokenizer is used.")
@click.option("--base", type=click.Choice(list(BASES)), default="bloom", help="Shape of the model.")
@click.option("--rows", "count", type=click.IntRange(min=1), default=8, help="Rows a step.")
@click.option("--deepspeed", default=str(ROOT / "config/deepspeed_zero2_bf16.json"), help="DeepSpeed's file.")
@click.option("--bf16/--no-bf16", default=True, help="bfloat16, or float32.")
@click.option("--plain", "directory", hidden=True, help="Used by this benchmark itself.")
def main(
    data_path: str,
    input_model: str,
    base: str,
    count: int,
    deepspeed: str,
    bf16: bool,
    directory: str | None,
) -> None:
    """Print a table of useful tokens a second and peak memory."""
    tokenizer = load_tokenizer(input_model)
    conversations = [each for _, each in islice(read_conversations(data_path), count)]
    rows = [in_vocabulary(encode(conversation, tokenizer), BASES[base]) for conversation in conversations]
    if directory:
        print(json.dumps(plain_steps(Path(directory), rows, deepspeed, bf16)))
        return
    tokens = sum(len(row["input_ids"]) for row in rows)
    kind = "bfloat16" if bf16 else "float32"
    click.echo(f"{len(rows)} examples a step, {tokens:,} tokens; {base}, {kind}, {Path(deepspeed).name}")
    click.echo(f"{'':16}{'s a step':>10}{'useful tokens/s':>17}{'peak GB':>9}")
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        model = model_of(base, "plain", torch.bfloat16 if bf16 else torch.float32)
        save_model(model, tokenizer, here / "model")
        to_messages = written_formats()["messages"]
        lines = [json.dumps(to_messages(each), ensure_ascii=False) + "\n" for each in conversations]
        (here / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        ours = [
            sys.executable, "-m", "training.trainer", "--data-path", str(here / "rows.jsonl"),
            "--input-model", str(here / "model"), "--local-output-dir", place, "--cache-dir", place,
            "--test-size", "0", "--max-steps", str(WARM_UP + COUNTED), "--logging-steps", "1",
            "--per-device-train-batch-size", str(count), "--deepspeed", deepspeed,
            "--no-gradient-checkpointing", "--report-to", "none", "--save-only-model",
            "--bf16" if bf16 else "--no-bf16",
        ]  # fmt: skip
        for way, more in WAYS.items():
            if way == "plain":
                again = [sys.executable, "-m", "tests.benchmarks.whole_step", *sys.argv[1:], "--plain", place]
                printed, peak = run(again)
                seconds = json.loads(printed)
            else:
                seconds, peak = our_steps(
                    here, way.replace(", ", "-").replace(" ", "-"), [*ours, *more], tokens
                )
            step = statistics.median(seconds[-COUNTED:])
            click.echo(f"{way:16}{step:10.2f}{tokens / step:17.1f}{peak / 1e9:9.2f}")


if __name__ == "__main__":
    run_command(main)
