"""One step of fine-tuning a Bloom, forward and backward, our way and others', each in a process of its own.

    python -m tests.benchmarks.train_step --data-path FILE --input-model bigscience/bloomz-7b1-mt

A random Bloom (hidden 1024, 6 layers, 16 heads, 250,880 tokens) and real rows, tokenized by the model's
tokenizer. Against plain transformers, the rows padded and all logits computed, as the original does.
"Useful" are the tokens of the rows, without padding.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import islice

import click
import torch
from transformers import BloomConfig
from transformers import BloomForCausalLM as LibraryBloom

from training.batching import collate, collate_padded
from training.consts import NOT_LEARNT
from training.dataset import read_conversations
from training.encoding import encode
from training.errors import UserError, run_command
from training.modeling_bloom import BloomForCausalLM
from training.tokenizer import load_tokenizer

HIDDEN, LAYERS, HEADS, VOCABULARY = 1024, 6, 16, 250_880
WAYS = ("plain", "ours")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def gemm_flops_a_second(dtype: torch.dtype, size: int = 1024, seconds: float = 2.0) -> float:
    """What the machine reaches in a product of two matrices of one layer's size."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, 4 * size, dtype=dtype)
    a @ b
    start, products = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        a @ b
        products += 1
    return products * 2 * size * size * 4 * size / spent


def matrix_flops(rows: list[dict[str, list[int]]]) -> float:
    """FLOPs of the matrix products that these rows need, forward and backward.

    6 for every weight and token (https://arxiv.org/abs/2001.08361, section 2.1), the head's for learnt tokens
    only; and 6 * hidden a layer for each pair of tokens that causal attention looks at, for the scores and
    again for the values.
    """
    tokens = sum(len(row["input_ids"]) for row in rows)
    learnt = sum(label != NOT_LEARNT for row in rows for label in row["labels"])
    pairs = sum(len(row["input_ids"]) * (len(row["input_ids"]) + 1) / 2 for row in rows)
    layer = 12 * HIDDEN * HIDDEN
    return 6 * (LAYERS * layer * tokens + VOCABULARY * HIDDEN * learnt) + 12 * LAYERS * HIDDEN * pairs


def step(way: str, rows: list[dict[str, list[int]]], dtype: torch.dtype, steps: int) -> dict[str, float]:
    """Seconds a step, the process's peak memory in bytes, the loss, and the machine's speed around it."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)
    config.hidden_dropout = config.attention_dropout = 0.0
    model = LibraryBloom(config).to(dtype)
    if way == "ours":  # the same random weights, in the same memory
        weights = model.state_dict()
        with torch.device("meta"):
            model = BloomForCausalLM(config)
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
    model.train()
    batch = (collate if way == "ours" else collate_padded)(rows)
    seconds, gemm = [], [gemm_flops_a_second(dtype)]
    for _ in range(steps + 1):  # the first one warms up
        model.zero_grad()
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        seconds.append(time.perf_counter() - start)
    gemm.append(gemm_flops_a_second(dtype))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak": peak,
        "loss": loss.item(),
        "gemm": sum(gemm) / 2,
    }


@click.command(context_settings={"show_default": True})
@click.option("--data-path", required=True, help="Rows to learn; the first ones that can be used.")
@click.option("--input-model", required=True, help="Model whose tokenizer is used.")
@click.option("--rows", "count", type=click.IntRange(min=1), default=8, help="Rows a step.")
@click.option("--steps", type=click.IntRange(min=1), default=3, help="Steps to take the median of.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16")
@click.option("--way", type=click.Choice(WAYS), help="For its own use: run one way, and print JSON.")
def main(data_path: str, input_model: str, count: int, steps: int, dtype: str, way: str | None) -> None:
    """Print a table of tokens a second and peak memory."""
    tokenizer = load_tokenizer(input_model)
    if len(tokenizer) > VOCABULARY:
        raise UserError(f"{input_model}: its tokenizer has more than {VOCABULARY:,} tokens")
    conversations = islice(read_conversations(data_path), count)
    rows = [encode(conversation, tokenizer) for _, conversation in conversations]
    if way:
        print(json.dumps(step(way, rows, DTYPES[dtype], steps)))
        return
    tokens = sum(len(row["input_ids"]) for row in rows)
    padded = len(rows) * max(len(row["input_ids"]) for row in rows)
    learnt = sum(label != NOT_LEARNT for row in rows for label in row["labels"])
    click.echo(f"{len(rows)} rows, {tokens:,} tokens, {learnt:,} of them learnt, {padded:,} padded; {dtype}")
    click.echo(f"{'':8}{'s a step':>10}{'useful tokens/s':>17}{'peak GB':>9}{'of GEMM bound':>15}{'loss':>9}")
    found = {}
    for name in WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.train_step", *sys.argv[1:], "--way", name]
        finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found[name] = result = json.loads(finished.stdout.splitlines()[-1])
        share = matrix_flops(rows) / result["seconds"] / result["gemm"]
        click.echo(
            f"{name:8}{result['seconds']:10.2f}{tokens / result['seconds']:17.1f}"
            f"{result['peak'] / 1e9:9.2f}{share:15.0%}{result['loss']:9.4f}"
        )
    plain, ours = found["plain"], found["ours"]
    speed, memory = plain["seconds"] / ours["seconds"], ours["peak"] / plain["peak"]
    click.echo(f"ours is {speed:.2f} times as fast, at {memory:.2f} of the peak")


if __name__ == "__main__":
    run_command(main)
