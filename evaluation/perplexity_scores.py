"""Held-out loss: the rows that it is measured on, a model's loss on them, and the figures of each domain."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evaluation.tables import markdown
from training.common.console import say
from training.common.errors import UserError
from training.consts import NOT_SUPERVISED
from training.data.audit import rows_text, unread_lines
from training.data.collate import collator
from training.data.findings import LINES_KEPT, Unread
from training.data.reader import parse, read_raw_rows
from training.data.sources import expand_path
from training.model.load import takes_packed_batches
from training.text.conversation import Conversation, LeftOut, read_row
from training.text.encoding import check_tools, encode_turns

# The names for all domains together, and for rows whose instruction has no prefix.
ALL, NO_DOMAIN = "all", "none"


class Sums(NamedTuple):
    """Sums over some rows: their number, supervised tokens, characters of answers, and loss in nats."""

    rows: int
    tokens: int
    characters: int
    loss: float


def loss_figures(sums: Sums) -> dict[str, float]:
    """The sums, with the loss per supervised token in nats, its exponential, and the loss per character."""
    loss = sums.loss / sums.tokens
    return {
        "rows": sums.rows,
        "tokens": sums.tokens,
        "characters": sums.characters,
        "loss": loss,
        "perplexity": math.exp(loss),
        "loss_per_character": sums.loss / sums.characters,
    }


def read_held_out(path: str) -> list[tuple[str, Conversation]]:
    """(place, conversation) of each row; what is not read of the rows is counted on the terminal, and so are
    rows that training leaves out.

    Raises UserError for a row that training would not take.
    """
    rows = []
    for file in expand_path(path):
        unread, left_out = Unread(), 0
        raw_rows = read_raw_rows(file)
        for raw in raw_rows:
            place = f"{file}:{raw.number}"
            try:
                read = read_row(parse(raw))
                rows.append((place, read.to_learn()))
            except LeftOut:
                left_out += 1
                continue
            except ValueError as error:
                raise UserError(f"{place}: {error}") from None
            unread.add(raw.number, read)
        raw_rows.say_remarks()
        if left_out:
            say(
                f"{file}: left out, feedback that calls the answer a bad one: {rows_text(left_out)}",
                on_stderr=True,
            )
        for line in unread_lines(file, unread):
            say(line, on_stderr=True)
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def encode_held_out(
    rows: Sequence[tuple[str, Conversation]], tokenizer: PreTrainedTokenizerFast, context: int
) -> list[tuple[Conversation, dict[str, list[int]]]]:
    """(conversation, its input_ids and labels) of each row, cut as training cuts it: after its last turn
    within the model's context. The rows that are cut are counted on the terminal.

    rows: as of `read_held_out`. Raises UserError for a row of which no answer to learn fits, and for one with
    tools where the model was taught none.
    """
    fitting, cut = [], []
    for place, conversation in rows:
        try:
            check_tools(conversation, tokenizer)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        encoded = encode_turns([conversation], tokenizer, context)[0]
        kept = encoded.within(context)
        turns = conversation.turns[: len(kept.turn_ends)]
        if not turns:
            raise UserError(
                f"{place}: its first supervised answer does not end within the {context:,} tokens of the "
                "model's context; shorten the row, or take it out"
            )
        if len(turns) < len(conversation.turns):
            cut.append(place)
        fitting.append((replace(conversation, turns=turns), kept.with_labels()))
    if cut:
        places = ", ".join(cut[:LINES_KEPT]) + ", ..." * (len(cut) > LINES_KEPT)
        within = f"cut after the last turn within the {context:,} tokens of the model's context"
        say(f"{within}: {rows_text(len(cut))} ({places})", on_stderr=True)
    return fitting


def count_supervised(examples: Sequence[dict[str, list[int]]]) -> int:
    """The number of supervised tokens in encoded examples."""
    return sum(label != NOT_SUPERVISED for example in examples for label in example["labels"])


@torch.inference_mode()
def total_loss(model: PreTrainedModel, examples: Sequence[dict[str, list[int]]], batch_size: int) -> float:
    """The summed loss of all supervised tokens in nats.

    Raises UserError where it is NaN or infinite, or where the memory does not suffice for a batch.
    """
    collate = collator(takes_packed_batches(model))
    total = 0.0
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size])
        try:
            batch = send_to_device(batch, model.device)
            total += model(**batch, num_items_in_batch=1).loss.item()
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch-size {batch_size}: the memory does not suffice; give a smaller one"
            ) from None
    if not math.isfinite(total):
        raise UserError(
            "the loss is NaN or infinite: the weights are broken, or overflow; try --dtype float32"
        )
    return total


def perplexity_report(results: Sequence[dict[str, Any]]) -> str:
    """The results of one or more models on the same data, as Markdown: a line for each domain and model."""
    header = [
        "domain",
        "model",
        "rows",
        "supervised tokens",
        "loss a token",
        "perplexity",
        "loss a character",
    ]
    lines = []
    for domain in dict.fromkeys(domain for result in results for domain in result["domains"]):
        for result in results:
            if one := result["domains"].get(domain):
                counts = (f"{one[name]:,}" for name in ("rows", "tokens"))
                losses = (f"{one[name]:,.4f}" for name in ("loss", "perplexity", "loss_per_character"))
                lines.append([domain, result["model"], *counts, *losses])
    return markdown(header, lines)
