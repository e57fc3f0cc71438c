"""Whether a model learns a domain as well with additional tokens for it: held-out loss per character.

    python -m tests.benchmarks.vocabulary --corpus FILE --input-model checkpoints/tiny-bloom

One row in ten is held out. The model as it is, and the model extended by `training.extend_vocabulary` on the
other rows, are trained on those: the same rows in the same order, for equally many steps. The loss is the
sum over the held-out answers in nats, divided by the number of their characters. The model has to be a Bloom.
"""

import json
import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from training import extend_vocabulary
from training.card.scale import on_device
from training.card.timing import the_device
from training.common.errors import run_command
from training.data.collate import collate
from training.data.reader import parse, read_raw_rows
from training.extend_vocabulary import HELD_OUT_EVERY
from training.model.load import load_model
from training.text.conversation import Conversation, from_row
from training.text.encoding import encode
from training.text.tokenizer import load_tokenizer


def read_usable(path: str) -> tuple[list[dict], list[Conversation]]:
    """The rows that can be trained on, and their conversations."""
    rows, conversations = [], []
    for raw in read_raw_rows(path):
        try:
            row = parse(raw)
            conversations.append(from_row(row, answered=True))
            rows.append(row)
        except ValueError:
            continue
    return rows, conversations


def loss_per_character(
    path: str,
    training: list[Conversation],
    held_out: list[Conversation],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> float:
    """The loss per character of the held-out answers, in nats, after training."""
    tokenizer = load_tokenizer(path)
    model = load_model(path, tokenizer, dtype=torch.float32, device_map={"": str(the_device())})
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    random = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = random.choice(len(training), batch_size, replace=False)
        batch = on_device(collate([encode(training[number], tokenizer) for number in chosen]), model.device)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return evaluate(model, tokenizer, held_out)


@torch.no_grad()
def evaluate(model, tokenizer, conversations: list[Conversation]) -> float:
    nats, characters = 0.0, 0
    for conversation in conversations:
        example = encode(conversation, tokenizer)
        loss = model(**on_device(collate([example]), model.device)).loss.item()
        nats += loss * sum(label >= 0 for label in example["labels"])
        characters += sum(len(turn.yayi) for turn in conversation.turns)
    return nats / characters


@click.command(context_settings={"show_default": True})
@click.option("--corpus", required=True, help="Rows to learn from; unusable ones are skipped.")
@click.option("--input-model", required=True, help="A small Bloom.")
@click.option("--num-tokens", type=click.IntRange(min=1), default=1000, help="Tokens to add.")
@click.option("--steps", type=click.IntRange(min=1), default=300, help="Steps of each training.")
@click.option("--batch-size", type=click.IntRange(min=1), default=2, help="Rows a step.")
@click.option(
    "--lr", type=float, default=3e-3, help="Learning rate at the first step; it falls linearly to 0."
)
@click.option("--seed", default=0, help="Seed for the order of the rows.")
def main(
    corpus: str, input_model: str, num_tokens: int, steps: int, batch_size: int, lr: float, seed: int
) -> None:
    """Print what the extension saves, and the losses with and without it."""
    rows, conversations = read_usable(corpus)
    chosen = np.arange(len(rows)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    training, held_out = (
        [conversation for conversation, out in zip(conversations, chosen, strict=True) if out == is_out]
        for is_out in (False, True)
    )
    with tempfile.TemporaryDirectory() as directory:
        file, extended = Path(directory, "training.jsonl"), Path(directory, "extended")
        lines = (
            json.dumps(row, ensure_ascii=False) for row, out in zip(rows, chosen, strict=True) if not out
        )
        file.write_text("\n".join(lines), encoding="utf-8")
        options = (
            f"--input-model {input_model} --num-tokens {num_tokens} --corpus {file} --output-dir {extended}"
        )
        extend_vocabulary.main.main(options.split(), standalone_mode=False)
        for name, path in (("as it is", input_model), ("extended", str(extended))):
            loss = loss_per_character(
                path, training, held_out, steps=steps, batch_size=batch_size, lr=lr, seed=seed
            )
            click.echo(f"{name}: {loss:.4f} nats a held-out character after {steps} steps")


if __name__ == "__main__":
    run_command(main)
