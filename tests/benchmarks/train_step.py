"""One step of fine-tuning, forward and backward, our way and others', each in a process of its own.

    python -m tests.benchmarks.train_step --data-path FILE --input-model bigscience/bloomz-7b1-mt --base bloom

A random model of one of BASES and real rows, tokenized by the input model's tokenizer; ids that the base
does not have are taken modulo its vocabulary, which changes no cost. "plain" is transformers alone, the rows
padded and all logits computed, as the original does; "trl" is TRL's SFTTrainer on that model. "Useful" tokens
are those that are not padding.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice

import click
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    BloomConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from training.card.scale import on_device
from training.card.timing import forget_peak, peak_bytes, seconds_of, the_device
from training.common.errors import run_command
from training.consts import NOT_SUPERVISED
from training.cost.flops import matrix_products
from training.cost.memory import empty_model
from training.data.collate import collate, collate_padded
from training.data.encoded import read_conversations
from training.run.speed import count_tokens, product_flops_per_second
from training.text.encoding import encode
from training.text.tokenizer import load_tokenizer

# The shapes of bloom-560m, Qwen2.5-0.5B and Llama-3.2-1B, with the whole vocabulary and a part of the layers.
BASES: dict[str, PretrainedConfig] = {
    "bloom": BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=6, n_head=16),
    "qwen": Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=6,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "llama": LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
    ),
}  # fmt: skip
WAYS = ("trl", "plain", "ours")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Rows = list[dict[str, list[int]]]
Step = Callable[[], torch.Tensor]


def model_of(base: str, way: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of the same random weights for every way, on the card where there is one."""
    torch.manual_seed(0)
    config = BASES[base]
    plain = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).to(dtype)
    if way != "ours":
        return plain.to(the_device()).train()
    ours = empty_model(config, dtype, packed=True)
    ours.load_state_dict(plain.state_dict(), assign=True)
    ours.tie_weights()
    for name, buffer in plain.named_buffers():  # those that are not saved, such as rotary frequencies
        module, _, own_name = name.rpartition(".")
        ours.get_submodule(module).register_buffer(own_name, buffer, persistent=False)
    return ours.to(the_device()).train()


def in_vocabulary(row: dict[str, list[int]], config: PretrainedConfig) -> dict[str, list[int]]:
    """A row whose ids and labels are tokens of the model."""
    return {
        name: [token if token == NOT_SUPERVISED else token % config.vocab_size for token in tokens]
        for name, tokens in row.items()
    }


def step_of(way: str, model: PreTrainedModel, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> Step:
    """A function that computes the loss of these rows and its gradients once."""
    if way == "trl":
        return trl_step(model, rows, tokenizer)
    batch = on_device((collate if way == "ours" else collate_padded)(rows), model.device)

    def step() -> torch.Tensor:
        loss = model(**batch).loss
        loss.backward()
        return loss

    return step


def trl_step(model: PreTrainedModel, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> Step:
    """A function that lets TRL's SFTTrainer take one step on these rows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(rows),
        max_length=None,
        bf16=model.dtype == torch.bfloat16,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
    )
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    supervised = (batch["labels"] != NOT_SUPERVISED).sum().to(model.device)
    return lambda: trainer.training_step(model, batch, supervised)


def measure(step: Step, model: PreTrainedModel, steps: int) -> dict[str, float]:
    """Seconds a step, peak memory in bytes, the loss, and the FLOP/s of matrix products before and after.

    On a card the peak is of its memory, without the products that are measured; on a CPU, of the process.
    """
    seconds, losses = [], []
    products = [product_flops_per_second(model.dtype, model.device, seconds=2)]
    forget_peak(model.device)
    for _ in range(steps + 1):  # the first one warms up
        model.zero_grad()
        seconds.append(seconds_of(lambda: losses.append(step().detach()), model.device))
    peak = peak_bytes(model.device)
    products.append(product_flops_per_second(model.dtype, model.device, seconds=2))
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak": peak,
        "loss": losses[-1].item(),
        "bound": sum(products) / 2,
    }


def needed_flops(base: str, rows: Rows) -> int:
    """The FLOPs of the matrix products of these rows in the benchmark's model."""
    model = empty_model(BASES[base], torch.float32, packed=True)
    return matrix_products(model).flops(count_tokens(collate(rows)))


@click.command(context_settings={"show_default": True})
@click.option("--data-path", required=True, help="Rows to train on; the first usable ones are taken.")
@click.option("--input-model", required=True, help="Model whose tokenizer is used.")
@click.option("--base", type=click.Choice(list(BASES)), default="bloom", help="Shape of the model.")
@click.option("--rows", "count", type=click.IntRange(min=1), default=8, help="Rows a step.")
@click.option("--steps", type=click.IntRange(min=1), default=3, help="Steps to take the median of.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16")
@click.option(
    "--way", type=click.Choice(WAYS), help="Used by this benchmark itself: run one way, and print JSON."
)
def main(
    data_path: str, input_model: str, base: str, count: int, steps: int, dtype: str, way: str | None
) -> None:
    """Print a table of tokens a second and peak memory."""
    tokenizer = load_tokenizer(input_model)
    conversations = islice(read_conversations(data_path), count)
    rows = [in_vocabulary(encode(conversation, tokenizer), BASES[base]) for _, conversation in conversations]
    if way:
        model = model_of(base, way, DTYPES[dtype])
        try:
            print(json.dumps(measure(step_of(way, model, rows, tokenizer), model, steps)))
        except torch.OutOfMemoryError:  # of a card
            print("null")
        return
    tokens = sum(len(row["input_ids"]) for row in rows)
    padded = len(rows) * max(len(row["input_ids"]) for row in rows)
    supervised = sum(label != NOT_SUPERVISED for row in rows for label in row["labels"])
    click.echo(
        f"{len(rows)} examples, {tokens:,} tokens, {supervised:,} of them supervised, {padded:,} padded; "
        f"{base}, {dtype}"
    )
    click.echo(f"{'':8}{'s a step':>10}{'useful tokens/s':>17}{'peak GB':>9}{'of GEMM bound':>15}{'loss':>9}")
    found = {}
    for name in WAYS:
        if name == "trl" and find_spec("trl") is None:
            click.echo("trl         is not installed: pip install trl")
            continue
        command = [sys.executable, "-m", "tests.benchmarks.train_step", *sys.argv[1:], "--way", name]
        finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        result = json.loads(finished.stdout.splitlines()[-1])
        if result is None:
            click.echo(f"{name:8}runs out of the card's memory")
            continue
        found[name] = result
        share = needed_flops(base, rows) / result["seconds"] / result["bound"]
        click.echo(
            f"{name:8}{result['seconds']:10.4g}{tokens / result['seconds']:17.1f}"
            f"{result['peak'] / 1e9:9.2f}{share:15.0%}{result['loss']:9.4f}"
        )
    if "plain" in found and "ours" in found:
        plain, ours = found["plain"], found["ours"]
        speed, memory = plain["seconds"] / ours["seconds"], ours["peak"] / plain["peak"]
        click.echo(f"ours is {speed:.2f} times as fast, at {memory:.2f} of the peak")


if __name__ == "__main__":
    run_command(main)
