"""Rows -> encoded examples that fit, and the split into training and held-out ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from training.conversation import Conversation, from_row
from training.encoding import Encoded, encode_turns
from training.errors import UserError
from training.rows import read_rows

# One call of the tokenizer for so many rows: enough for its threads, little beside the data.
ROWS_PER_CALL = 1024

# How many places a message names before it only counts.
PLACES_SHOWN = 3

# input_ids and labels, two int32 arrays of one length: a tenth of the memory of Python lists.
Example = dict[str, np.ndarray]


@dataclass
class EncodedRows:
    """The examples of a data file, and the places of the rows that did not fit whole."""

    examples: list[Example] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def read_conversations(data_path: str) -> Iterator[tuple[str, Conversation]]:
    """(place, conversation) of every row. Raises UserError, with place and field, at the first bad one."""
    for place, row in read_rows(data_path):
        try:
            yield place, from_row(row, answered=True)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None


def encode_rows(data_path: str, tokenizer: PreTrainedTokenizerFast, max_length: int) -> EncodedRows:
    """All rows of `data_path`, each at most `max_length` tokens long.

    A longer row is cut after its last turn that fits, or dropped if its first turn does not; never cut inside
    an answer. Raises UserError for an unusable row, and when no row is left.
    """
    rows = EncodedRows()
    conversations = read_conversations(data_path)
    while chunk := list(islice(conversations, ROWS_PER_CALL)):
        encoded = encode_turns([conversation for _, conversation in chunk], tokenizer)
        for (place, _), row in zip(chunk, encoded, strict=True):
            length = _fitting_length(row, max_length)
            if length == 0:
                rows.dropped.append(place)
                continue
            if length < len(row.input_ids):
                rows.cut.append(place)
            rows.examples.append(
                {
                    "input_ids": np.array(row.input_ids[:length], dtype=np.int32),
                    "labels": np.array(row.labels[:length], dtype=np.int32),
                }
            )
    if not rows.examples:
        problem = f"every row is longer than --max-length {max_length}" if rows.dropped else "no rows"
        raise UserError(f"{data_path}: {problem}")
    return rows


def _fitting_length(row: Encoded, max_length: int) -> int:
    """The length after the last turn that ends within `max_length`; 0 if none does."""
    return max((end for end in row.turn_ends if end <= max_length), default=0)


def named(places: list[str]) -> str:
    """A few places, and how many more there are."""
    shown = ", ".join(places[:PLACES_SHOWN])
    return shown if len(places) <= PLACES_SHOWN else f"{shown} and {len(places) - PLACES_SHOWN} more"


def parse_test_size(value: str) -> int | float:
    """A count of rows to hold out (0, 1, 2, ...) as int, or a ratio between 0 and 1 as float.

    Raises ValueError for anything else.
    """
    try:
        size = int(value) if value.strip().isdigit() else float(value)
    except ValueError:
        size = -1.0
    if isinstance(size, float) and not 0 < size < 1:
        raise ValueError(f"{value} is neither a count (0, 1, 2, ...) nor a ratio between 0 and 1")
    return size


def held_out_count(rows: int, test_size: int | float) -> int:
    """How many of `rows` to hold out: the count, or the ratio of them, at least one.

    Where that leaves nothing to train on, a tenth.
    """
    count = max(1, round(rows * test_size)) if isinstance(test_size, float) else test_size
    return count if count < rows else rows // 10


def split(examples: list[Example], held_out: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples: chosen at random by `seed`, the same on every rank."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(order[:held_out])
    train = [example for index, example in enumerate(examples) if index not in chosen]
    return train, [examples[index] for index in sorted(chosen)]
