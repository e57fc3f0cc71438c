"""Which rows must be on one side of the split, so that nothing that is held out was trained on.

    你好 -> 您好                      the beginning of two dialogues that then differ: always trained on
    你好 -> 您好 -> 退货 -> 可以        held out or not, whatever becomes of the next
    你好 -> 您好 -> 发票 -> 可以
    退货 -> 可以                      the beginning of the next alone: on one side with it
    退货 -> 可以 -> 几天 -> 七天

Rows with the same whole prompt, which is all that stands before their last answer, are on one side, too.
Where tools are called for that answer, the calls and their results are no part of the prompt. By
this rule, all dialogues that open with one greeting would be on one side in a set that has a row for each
answer of a dialogue. Therefore a beginning is always trained on, and is bound to no dialogue, where its whole
prompt is also that of a row of another dialogue:

    你好 -> 您好                      trained on, as is every row whose whole prompt is 你好
    你好 -> 您好 -> 退货 -> 可以        held out or not, whatever becomes of the last
    你好 -> 在的
    你好 -> 在的 -> 发票 -> 可以
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# The group of rows that are always trained on.
TRAINED = -1


class Prompts(NamedTuple):
    """What `groups` has to know of rows: hashes of the text up to some point, as `row_hashes` makes them.

    whole: of all text before the last answer, (rows,). states: of all text up to each answer, that answer
    included, row after row, (turns,). ends: where the states of each row end, (rows,).
    """

    whole: np.ndarray
    states: np.ndarray
    ends: np.ndarray

    @classmethod
    def together(cls, files: list["Prompts"]) -> "Prompts":
        """Those of several files, whose rows count on."""
        starts = np.cumsum([0, *(len(file.states) for file in files[:-1])])
        return cls(
            np.concatenate([file.whole for file in files]),
            np.concatenate([file.states for file in files]),
            np.concatenate([file.ends + start for file, start in zip(files, starts, strict=True)]),
        )


def groups(prompts: Prompts) -> np.ndarray:
    """The group of each row, or TRAINED, (rows,). Rows of one group must be on one side."""
    count = len(prompts.ends)
    if not count:
        return np.empty(0, np.int64)
    row = prompts.states[prompts.ends - 1]  # the hash of each whole row
    goes_on, number = _longest_dialogues(prompts, row)
    # A row that begins one longest dialogue is bound to it; one that begins several is always trained on.
    is_shared = np.zeros(count, dtype=bool)
    is_shared[np.isin(row, goes_on[_counts(goes_on) > 1])] = True
    bound_to = np.arange(count)
    is_bound = np.isin(row, goes_on) & ~is_shared
    order = np.argsort(goes_on, kind="stable")
    bound_to[is_bound] = number[order[np.searchsorted(goes_on[order], row[is_bound])]]

    _, first, prompt = np.unique(prompts.whole, return_index=True, return_inverse=True)
    # One whose whole prompt is that of rows of other dialogues would bind these to its own.
    is_of_several = np.bincount(prompt, bound_to != bound_to[first][prompt]) > 0
    is_loose = is_bound & is_of_several[prompt]
    bound_to[is_loose] = np.flatnonzero(is_loose)
    is_shared |= is_loose
    nodes = count + int(prompt.max()) + 1  # a node for each row, then one for each whole prompt
    here = np.arange(count)
    edges = np.concatenate([np.stack([here, bound_to]), np.stack([here, count + prompt])], axis=1)
    graph = coo_array((np.ones(edges.shape[1], dtype=bool), (edges[0], edges[1])), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1][:count].astype(np.int64)
    group[np.isin(group, group[is_shared])] = TRAINED
    return group


def _longest_dialogues(prompts: Prompts, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a state that is a whole row, and a row that goes on from there to where none goes on further.

    Equal rows count once. Returns the states and the rows' numbers, both (pairs,).
    """
    lengths = np.diff(prompts.ends, prepend=0)
    is_inner = np.ones(len(prompts.states), dtype=bool)
    is_inner[prompts.ends - 1] = False
    inner = prompts.states[is_inner]
    of_row = np.repeat(np.arange(len(row)), lengths)[is_inner]
    _, first = np.unique(row, return_index=True)
    is_longest = np.zeros(len(row), dtype=bool)
    is_longest[first] = True
    is_longest &= ~np.isin(row, inner)
    wanted = is_longest[of_row] & np.isin(inner, row)
    return inner[wanted], of_row[wanted]


def _counts(values: np.ndarray) -> np.ndarray:
    """How often each value is there, (values,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse]
