"""Examples -> one batch of tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from training.consts import NOT_LEARNT


def collate(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Examples side by side, padded on the right to the longest.

    input_ids       7 8 9      labels    . 8 9      attention_mask   1 1 1
                    7 8 0                . 8 .                       1 1 0        . = -100

    Returns three int64 tensors of shape (examples, longest), such that `model(**batch).loss` is the mean over
    the learnt tokens. The padding id is never seen: the mask hides it and its label is -100.
    """
    return {
        "input_ids": _padded([example["input_ids"] for example in examples], 0),
        "labels": _padded([example["labels"] for example in examples], NOT_LEARNT),
        "attention_mask": _padded([[1] * len(example["input_ids"]) for example in examples], 0),
    }


def _padded(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=padding)
