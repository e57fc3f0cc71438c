"""Held-out loss and perplexity of a model, by domain.

python -m evaluation.perplexity --model checkpoints/demo --data-path data/yayi_train_example.json \\
    --output checkpoints/evaluation/demo-perplexity

The loss is training's: the mean of -ln p over the learnt tokens, those of the answers. Loss per character
compares models whose tokenizers differ. The domain is the prefix of the first instruction, 【...领域任务】.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import torch
from transformers import PreTrainedModel

from evaluation.tables import markdown
from inference.generation import context_length
from inference.options import load_chosen, model_options
from inference.resumable import held, refusals, write_text
from training.common.errors import UserError, run_command
from training.consts import NOT_LEARNT
from training.data.collate import collator
from training.data.reader import read_rows
from training.model.load import is_packed
from training.text.conversation import Conversation, domain_of, from_row
from training.text.encoding import encode

# The row of all domains together, and that of rows whose instruction has no prefix.
ALL, NO_DOMAIN = "all", "none"


@click.command(context_settings={"show_default": True})
@model_options
@click.option("--data-path", required=True, help="Held-out rows: a file, or a data set on the hub.")
@click.option(
    "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory to write."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Rows at a time.")
def main(**options: Any) -> None:
    """Measure how well a model foretells the answers of rows that it has not learnt."""
    evaluate(SimpleNamespace(**options, seed=None))


def evaluate(options: SimpleNamespace) -> None:
    """Write --output. Raises UserError for a row that cannot be used."""
    result_file = options.output / "result.json"
    with refusals(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    with held(result_file):
        rows = read_answered(options.data_path)
        model, tokenizer = load_chosen(options, untaught=True)
        examples = [encode(conversation, tokenizer) for _, conversation in rows]
        check_length([place for place, _ in rows], examples, context_length(model))
        by_domain: dict[str, list[int]] = defaultdict(list)
        for index, (_, conversation) in enumerate(rows):
            by_domain[domain_of(conversation) or NO_DOMAIN].append(index)
        sums = {}
        for domain, indices in by_domain.items():
            answers = [turn.yayi for index in indices for turn in rows[index][1].turns]
            several = [examples[index] for index in indices]
            loss = summed_loss(model, several, options.batch_size)
            sums[domain] = Sums(len(indices), count_learnt(several), sum(map(len, answers)), loss)
        sums[ALL] = Sums(*map(sum, zip(*sums.values(), strict=True)))
        result = {"kind": "perplexity", "model": options.model, "data": options.data_path}
        result["domains"] = {domain: figures(sums[domain]) for domain in (ALL, *by_domain)}
        write_text(result_file, [json.dumps(result, ensure_ascii=False, indent=1) + "\n"])
    print(report([result]), end="")


class Sums(NamedTuple):
    """Of some rows: their number, learnt tokens, characters of answers, and their loss in nats."""

    rows: int
    tokens: int
    characters: int
    loss: float


def figures(sums: Sums) -> dict[str, float]:
    """With the loss a token, its exponential, and the loss a character."""
    loss = sums.loss / sums.tokens
    return {
        "rows": sums.rows,
        "tokens": sums.tokens,
        "characters": sums.characters,
        "loss": loss,
        "perplexity": math.exp(loss),
        "loss_per_character": sums.loss / sums.characters,
    }


def read_answered(path: str) -> list[tuple[str, Conversation]]:
    """Places and conversations. Raises UserError for a row that training would not take."""
    rows = []
    for place, row in read_rows(path):
        try:
            rows.append((place, from_row(row, answered=True)))
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def check_length(places: Sequence[str], examples: Sequence[dict[str, list[int]]], context: int) -> None:
    """Raise UserError for the first row that is longer than what the model was made for."""
    for place, example in zip(places, examples, strict=True):
        if len(example["input_ids"]) > context:
            raise UserError(
                f"{place}: its {len(example['input_ids']):,} tokens are more than the model's context of "
                f"{context:,}; shorten the row, or take it out"
            )


def count_learnt(examples: Sequence[dict[str, list[int]]]) -> int:
    return sum(label != NOT_LEARNT for example in examples for label in example["labels"])


@torch.inference_mode()
def summed_loss(model: PreTrainedModel, examples: Sequence[dict[str, list[int]]], batch_size: int) -> float:
    """The loss of all learnt tokens together, in nats, by the model's own loss in training."""
    collated = collator(is_packed(model.config))
    total = 0.0
    for start in range(0, len(examples), batch_size):
        batch = collated(examples[start : start + batch_size])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        total += model(**batch, num_items_in_batch=1).loss.item()
    if not math.isfinite(total):
        raise UserError("the loss is no number: the weights are broken, or overflow; try --dtype float32")
    return total


def report(results: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown; several models on the same data side by side, in lines."""
    header = ["domain", "model", "rows", "learnt tokens", "loss a token", "perplexity", "loss a character"]
    lines = []
    for domain in dict.fromkeys(domain for result in results for domain in result["domains"]):
        for result in results:
            if one := result["domains"].get(domain):
                counts = (f"{one[name]:,}" for name in ("rows", "tokens"))
                losses = (f"{one[name]:,.4f}" for name in ("loss", "perplexity", "loss_per_character"))
                lines.append([domain, result["model"], *counts, *losses])
    return markdown(header, lines)


if __name__ == "__main__":
    run_command(main)
