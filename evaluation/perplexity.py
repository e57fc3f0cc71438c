"""Held-out loss and perplexity of a model, by domain.

python -m evaluation.perplexity --model checkpoints/demo --data-path data/yayi_train_example.json \\
    --output checkpoints/evaluation/demo-perplexity

The loss is training's: the mean of -ln p over the supervised tokens, those of the answers. Loss per character
compares models whose tokenizers differ. A row that is longer than the model's context is cut as in training:
after its last turn that fits. The domain is the prefix of the first instruction, 【...领域任务】.
"""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from evaluation.output import check_no_model
from evaluation.perplexity_scores import (
    ALL,
    NO_DOMAIN,
    Sums,
    count_supervised,
    encode_held_out,
    loss_figures,
    perplexity_report,
    read_held_out,
    total_loss,
)
from inference.generation import context_length
from inference.options import load_from_options, model_options
from inference.resumable import claim_output, refusals, write_result
from training.common.command_line import PathOrName, UserPath
from training.common.errors import run_command
from training.text.conversation import domain_of


@click.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--data-path",
    type=PathOrName(),
    required=True,
    help="Held-out rows: a file, a folder, a pattern, or a data set on the hub.",
)
@click.option(
    "--output", required=True, type=UserPath(file_okay=False, path_type=Path), help="Directory to write."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Rows at a time.")
def main(**options: Any) -> None:
    """Measure how well a model predicts the answers of rows that it was not trained on."""
    measure_perplexity(SimpleNamespace(**options, seed=None))


def measure_perplexity(options: SimpleNamespace) -> None:
    """Write --output. Raises UserError for a row that cannot be used."""
    result_file = options.output / "result.json"
    check_no_model(options.output)
    with refusals(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    with claim_output(result_file):
        rows = read_held_out(options.data_path)
        model, tokenizer = load_from_options(options, allow_untaught=True)
        by_domain = defaultdict(list)
        for conversation, example in encode_held_out(rows, tokenizer, context_length(model)):
            by_domain[domain_of(conversation) or NO_DOMAIN].append((conversation, example))
        sums = {}
        for domain, encoded in by_domain.items():
            answers = [
                answer
                for conversation, _ in encoded
                for turn in conversation.turns
                for answer in turn.answers()
            ]
            characters = sum(len(text) for text, is_context in answers if not is_context)
            examples = [example for _, example in encoded]
            loss = total_loss(model, examples, options.batch_size)
            sums[domain] = Sums(len(examples), count_supervised(examples), characters, loss)
        sums[ALL] = Sums(*map(sum, zip(*sums.values(), strict=True)))
        result = {"kind": "perplexity", "model": options.model, "data": options.data_path}
        result["domains"] = {domain: loss_figures(sums[domain]) for domain in (ALL, *by_domain)}
        write_result(result_file, result)
    print(perplexity_report([result]), end="")


if __name__ == "__main__":
    run_command(main)
