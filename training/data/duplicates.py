"""Rows that are equal, and rows that answer the same prompt differently, found by 64-bit hashes in numpy.

Among a million different texts, the probability that any two have the same hash is 1 in 37 million
(n^2 / 2^65).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from training.consts import INTRO, TOOL
from training.text.calls import answer_with_calls, declarations_text
from training.text.conversation import Conversation


class RowHashes(NamedTuple):
    """Hashes of a conversation and of its parts.

    row: of the whole. prompts: of all text before the first answer of each turn. beginnings: of all text up
    to the end of each turn but the last; it is the `row` of a row that ends there. answers: of each answer
    alone, those that call tools included. before_answers: of all text before each of these, the results of
    tools included.
    """

    row: int
    prompts: list[int]
    beginnings: list[int]
    answers: list[int]
    before_answers: list[int]


def row_hashes(conversation: Conversation, default_system: str = INTRO) -> RowHashes:
    """The hashes of a conversation whose turns all have their answer.

    The hash of each text is seeded with the hash of all text before it. default_system: the system text of a
    conversation that has none.
    """
    so_far = xxh3_64_intdigest((conversation.system or default_system).encode())
    if conversation.tools:
        so_far = xxh3_64_intdigest(declarations_text(conversation.tools).encode(), so_far)
    prompts, ends, answers, before_answers = [], [], [], []

    def answered(text: str) -> int:
        answers.append(xxh3_64_intdigest(text.encode()))
        before_answers.append(so_far)
        return xxh3_64_intdigest(text.encode(), so_far)

    for turn in conversation.turns:
        assert turn.yayi is not None or turn.ends_with_calls
        so_far = xxh3_64_intdigest(turn.human.encode(), so_far)
        prompts.append(so_far)
        for use in turn.tool_uses:
            so_far = answered(answer_with_calls(use.text, use.calls))
            for result in use.results:
                so_far = xxh3_64_intdigest((TOOL + result).encode(), so_far)
        if turn.yayi is not None:
            so_far = answered(turn.yayi)
        ends.append(so_far)
    return RowHashes(so_far, prompts, ends[:-1], answers, before_answers)


def duplicates(rows: np.ndarray, lines: np.ndarray) -> Iterator[np.ndarray]:
    """The lines of each set of equal rows. rows, lines: the hash and the line of every row, both (rows,)."""
    order = np.argsort(rows, kind="stable")
    for start, end in _runs(rows[order]):
        yield lines[order[start:end]]


def conflicts(prompts: np.ndarray, answers: np.ndarray, lines: np.ndarray) -> Iterator[np.ndarray]:
    """For each prompt that has different answers, the lines of the rows that have it.

    prompts, answers, lines: the hash of all text before it, the hash and the line of every answer, all
    (answers,). The first row with each answer comes first; then come the rows that repeat one of these.
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
