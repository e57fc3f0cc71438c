"""Which rows are the same, and which ask the same but answer otherwise: by 64-bit hashes, in numpy.

By chance, two different texts share a hash in one of 37 million files of a million rows (n^2 / 2^65).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from training.consts import INTRO
from training.text.conversation import Conversation


class RowHashes(NamedTuple):
    """Of all of a conversation, and of each of its turns: the text up to its answer, and the answer."""

    row: int
    prompts: list[int]
    answers: list[int]


def row_hashes(conversation: Conversation) -> RowHashes:
    """Hashes of a conversation whose turns all have their answer; each text's starts from the one before."""
    so_far = xxh3_64_intdigest((conversation.system or INTRO).encode())
    prompts, answers = [], []
    for turn in conversation.turns:
        answer = turn.yayi.encode()
        prompt = xxh3_64_intdigest(turn.human.encode(), so_far)
        so_far = xxh3_64_intdigest(answer, prompt)
        prompts.append(prompt)
        answers.append(xxh3_64_intdigest(answer))
    return RowHashes(so_far, prompts, answers)


def duplicates(rows: np.ndarray, lines: np.ndarray) -> Iterator[np.ndarray]:
    """The lines of each set of equal rows, given the hash and the line of every row."""
    order = np.argsort(rows, kind="stable")
    for start, end in _runs(rows[order]):
        yield lines[order[start:end]]


def conflicts(prompts: np.ndarray, answers: np.ndarray, lines: np.ndarray) -> Iterator[np.ndarray]:
    """The lines of the rows that answer one prompt in different ways, given two hashes and the line per turn.

    Of each answer the first row comes first, and then those that repeat one of them.
    """
    order = np.lexsort((answers, prompts))
    prompts, answers, lines = prompts[order], answers[order], lines[order]
    for start, end in _runs(prompts):
        if answers[start] != answers[end - 1]:
            _, first = np.unique(answers[start:end], return_index=True)
            group = lines[start:end]
            yield np.concatenate([np.sort(group[first]), np.sort(np.delete(group, first))])


def _runs(sorted_values: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of each stretch of two or more equal values."""
    starts = np.flatnonzero(np.r_[True, sorted_values[1:] != sorted_values[:-1]])
    ends = np.r_[starts[1:], len(sorted_values)]
    repeated = ends - starts > 1
    return list(zip(starts[repeated].tolist(), ends[repeated].tolist(), strict=True))
