"""The plan's figures beside the peak memory of real runs on this machine.

python -m tests.benchmarks.plan

Random Blooms of three sizes are trained for two steps, one process each, with every configuration. On a card,
its peak is measured. A process without one holds what the plan gives for a card and for the host; what Python
and the libraries take is measured by the same run of a Bloom with hardly any weights.
"""

import contextlib
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from transformers import BloomConfig, BloomForCausalLM

from tests.conftest import ROOT, SINGLE_TURN
from training import tiny_bloom, trainer
from training.common.options import Options
from training.cost.ways import CONFIGS, fitted_config, ways_of, work_of
from training.data.examples import build_datasets
from training.model.context import longest_row
from training.model.save import save_model
from training.text.tokenizer import load_tokenizer, new_tokens

# vocabulary, hidden size, layers, heads
SIZES = {
    "hardly there": (2048, 64, 1, 2),
    "51 M": (50048, 512, 8, 8),
    "162 M": (100352, 768, 12, 12),
    "305 M": (150016, 1024, 12, 16),
}
# The trainer, without its measurement of matrix products: its matrices may be larger than a model here.
RUN = """
from training import trainer
from training.card.timing import peak_bytes, the_device
from training.run import speed
speed.LARGEST_PRODUCT = speed.SMALLEST_PRODUCT
trainer.main(standalone_mode=False)
print(peak_bytes(the_device()))
"""

KINDS = {"all weights": "", "LoRA 16": "--lora-rank 16"}


@click.command(context_settings={"show_default": True})
@click.option("--batch-size", default=16, help="Examples of a micro-batch.")
@click.option("--gradient-checkpointing/--no-gradient-checkpointing", default=False)
@click.option("--stage", "stages", type=click.Choice([2, 3]), multiple=True, default=[2, 3])
@click.option("--size", "sizes", type=click.Choice(list(SIZES)[1:]), multiple=True, default=list(SIZES)[1:])
def main(batch_size: int, gradient_checkpointing: bool, stages: tuple[int], sizes: tuple[str]) -> None:
    """Print a line a run: what was planned, what was measured, in GB, and their quotient."""
    checkpointing = "--gradient-checkpointing" if gradient_checkpointing else "--no-gradient-checkpointing"
    shared = f"--per-device-train-batch-size {batch_size} {checkpointing}"
    print(f"{'':8} {'':30} {'planned':>9} {'measured':>9} {'planned / measured':>20}")
    with tempfile.TemporaryDirectory() as directory:
        for name in SIZES:  # in other processes: a process starts with the peak memory of its parent
            spawn(build, name, Path(directory))
        peak_of_run("hardly there", shared, Path(directory))  # encodes the rows, once for all
        for kind, adapter in KINDS.items():
            for (stage, offload), config in CONFIGS.items():
                if stage not in stages:
                    continue
                how = f"{shared} {adapter} --deepspeed {config}"
                process = peak_of_run("hardly there", how, Path(directory))
                for size in sizes:
                    planned = process + planned_bytes(size, how, stage, offload, Path(directory))
                    measured = peak_of_run(size, how, Path(directory))
                    way = f"{kind}, ZeRO-{stage}{', offload' if offload else ''}"
                    print(
                        f"{size:8} {way:30} {planned / 1e9:9.2f} {measured / 1e9:9.2f} "
                        f"{planned / measured:20.2f}",
                        flush=True,
                    )


def spawn(function: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def build(size: str, directory: Path) -> None:
    vocabulary, hidden_size, layers, heads = SIZES[size]
    tokenizer = tiny_bloom.train_tokenizer(tiny_bloom.training_texts(str(SINGLE_TURN)))
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=vocabulary, hidden_size=hidden_size, n_layer=layers, n_head=heads)
    save_model(BloomForCausalLM(config).to(torch.bfloat16), tokenizer, directory / size)


def arguments(size: str, how: str, directory: Path, run_name: str) -> list[str]:
    return [
        "--data-path", str(SINGLE_TURN), "--input-model", str(directory / size),
        "--local-output-dir", str(directory), "--cache-dir", str(directory / "cache"),
        "--run-name", run_name, "--test-size", "0", "--max-steps", "2", "--save-steps", "1000",
        "--save-only-model", *how.split(),
    ]  # fmt: skip


def peak_of_run(size: str, how: str, directory: Path) -> int:
    """The peak memory of a run in bytes: of the card, or of the process without one."""
    run_name = f"run-{len(list(directory.iterdir()))}"
    command = [sys.executable, "-c", RUN, *arguments(size, how, directory, run_name)]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return int(finished.stdout.split()[-1])


def planned_bytes(size: str, how: str, stage: int, offload: bool, directory: Path) -> int:
    """The planned bytes of the card, or of a process without one, not counting Python and its libraries."""
    context = trainer.main.make_context("plan", arguments(size, how, directory, "run"))
    options = Options(**context.params)
    options.max_length = longest_row(options.input_model, options.max_length)
    tokenizer = load_tokenizer(options.input_model)
    with contextlib.redirect_stdout(None):
        rows, _ = build_datasets(options, tokenizer)
    work = work_of(options, rows, cards=1, packed=True)
    config = fitted_config(options.input_model, tokenizer)
    ways = ways_of(options, config, new_tokens(options.input_model, tokenizer), work, cards=1, packed=True)
    memory = next(way.memory for way in ways if CONFIGS[stage, offload] in way.options)
    return memory.peak + (0 if torch.cuda.is_available() else memory.offloaded)


if __name__ == "__main__":
    main()
