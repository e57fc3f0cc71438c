"""Examples -> one batch of tensors, packed or padded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from training.consts import NOT_SUPERVISED

EncodedExamples = Sequence[Mapping[str, Sequence[int]]]

# For a rank that has no batch left while others have one more: an example without a supervised token.
NO_EXAMPLES = [{"input_ids": [0], "labels": [NOT_SUPERVISED]}]


def collate(examples: EncodedExamples) -> dict[str, Any]:
    """One packed batch: the examples end to end, without padding.

    position    0 1 2 3 4                     document_lengths       3 2
    input_ids   7 8 9 7 8                     supervised_positions   1 2 4
    labels      . 8 9 . 8      . = -100

    Returns int64 tensors of shape (1, tokens), (1, tokens) and (supervised tokens,), and the lengths as a
    list of int, such that `model(**batch).loss` is the mean over the supervised tokens. An example's first
    token is predicted from nothing, and so has no place among the positions. Without examples, the batch is
    one token that is not supervised.
    """
    examples = examples or NO_EXAMPLES
    labels = _tensors(examples, "labels")
    is_supervised = torch.cat([F.pad(of_example[1:] != NOT_SUPERVISED, (1, 0)) for of_example in labels])
    return {
        "input_ids": torch.cat(_tensors(examples, "input_ids"))[None],
        "labels": torch.cat(labels)[None],
        # What decides on shapes is known here: a model on a card would have to wait for the card to learn it.
        "document_lengths": [len(example["input_ids"]) for example in examples],
        "supervised_positions": is_supervised.nonzero()[:, 0],
    }


def collate_padded(examples: EncodedExamples) -> dict[str, torch.Tensor]:
    """One padded batch for any other model: the examples side by side, padded on the right to the longest.

    input_ids       7 8 9      labels    . 8 9      attention_mask   1 1 1
                    7 8 0                . 8 .                       1 1 0        . = -100

    Returns three int64 tensors of shape (examples, longest), such that `model(**batch).loss` is the mean over
    the supervised tokens. The model never sees the padding's id: the mask hides it, and its label is -100.
    """
    examples = examples or NO_EXAMPLES
    input_ids = _tensors(examples, "input_ids")
    return {
        "input_ids": pad_sequence(input_ids, batch_first=True),
        "labels": pad_sequence(_tensors(examples, "labels"), batch_first=True, padding_value=NOT_SUPERVISED),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in input_ids], batch_first=True),
    }


def collator(is_packed: bool) -> Callable[[EncodedExamples], dict[str, Any]]:
    """The function that makes a model's batches; `takes_packed_batches` in training.model.load says it."""
    return collate if is_packed else collate_padded


def _tensors(examples: EncodedExamples, key: str) -> list[torch.Tensor]:
    return [torch.as_tensor(example[key], dtype=torch.int64) for example in examples]
