"""Rows that are nearly the same as an earlier row, found by MinHash and confirmed by their texts.

Two rows are nearly the same if their sets of shingles (all stretches of 5 characters) have a Jaccard
similarity of 0.8: of the shingles that either row has, four fifths are in both. A MinHash is a signature of
such a set: the share of places at which two signatures agree estimates the similarity of the sets. Rows whose
signatures agree in a whole band of places are candidates, whose texts are then compared.
"""

from array import array
from collections import defaultdict

import numpy as np
from datasketch import MinHash

from training.data.findings import LINES_KEPT, NotedRows
from training.text.conversation import Conversation

SHINGLE = 5
SIMILAR = 0.8

# How many rows are compared, unless all are wanted: a million of them would take minutes and over 1 GB.
FIRST_ROWS = 100_000

# Two rows at the bound share one of these bands with a probability of 1 - (1 - 0.8**6)**21 = 99.8 %.
BANDS, BAND_PLACES = 21, 6
PLACES = BANDS * BAND_PLACES

# Candidates whose signatures promise less are not compared: the estimate's standard deviation is 0.036.
LEAST_ESTIMATE = 0.68

# Rows of one template have many candidates. A row is compared with the best of them by the estimate.
MOST_COMPARED = 16

# The factors of two hashes: odd numbers, of which nothing else is asked.
SHINGLE_FACTOR = np.uint64(0x9E3779B97F4A7C15)
BAND_FACTORS = np.random.default_rng(0).integers(1 << 63, size=BAND_PLACES, dtype=np.uint64) * 2 + 1


class NearDuplicates:
    """The rows of a file that are nearly the same as an earlier one, found by `found` once all were added.

    Equal rows count once. most_rows: how many different rows are compared, from the first.
    """

    def __init__(self, most_rows: int = FIRST_ROWS) -> None:
        self._most_rows = most_rows
        self._empty = MinHash(PLACES, hashfunc=int)
        self._hashes: set[int] = set()
        self._lines = array("q")
        self._texts: list[str] = []
        self._signatures = bytearray()
        self.left_out = 0

    @property
    def compared(self) -> int:
        """How many different rows are compared with each other."""
        return len(self._texts)

    def add(self, line: int, row_hash: int, conversation: Conversation) -> None:
        """Add the row on a line. row_hash: that of the whole row, by which equal rows are known."""
        if row_hash in self._hashes:
            return
        if self.compared == self._most_rows:
            self.left_out += 1
            return
        self._hashes.add(row_hash)
        text = "\n".join(part for turn in conversation.turns for part in turn.texts())
        signature = self._empty.copy()
        signature.update_batch(_shingle_hashes(text).tolist())
        self._lines.append(line)
        self._texts.append(text)
        self._signatures += signature.hashvalues.tobytes()

    def found(self, most_lines: int = LINES_KEPT) -> NotedRows:
        """How many rows would go if each that is nearly the same as one that stays went, in the file's order.

        The first `most_lines` are named, each as [line of the one that stays, line].
        """
        signatures = np.frombuffer(self._signatures, self._empty.hashvalues.dtype).reshape(-1, PLACES)
        buckets = _shared_buckets(signatures)
        staying: defaultdict[int, list[int]] = defaultdict(list)  # the rows that stay, by bucket
        noted = NotedRows()
        for row in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
            mine = buckets[row][buckets[row] >= 0].tolist()
            candidates = sorted({other for bucket in mine for other in staying[bucket]})
            twin = self._twin(row, candidates, signatures)
            if twin is None:
                for bucket in mine:
                    staying[bucket].append(row)
            else:
                noted.add(1, [[self._lines[twin], self._lines[row]]], most_lines)
        return noted

    def _twin(self, row: int, candidates: list[int], signatures: np.ndarray) -> int | None:
        """The candidate that is nearly the same as a row, if there is one."""
        if not candidates:
            return None
        estimates = (signatures[candidates] == signatures[row]).mean(axis=1)
        mine = _shingles(self._texts[row])
        for place in np.argsort(-estimates, kind="stable")[:MOST_COMPARED].tolist():
            if estimates[place] < LEAST_ESTIMATE:
                break
            other = _shingles(self._texts[candidates[place]])
            both = len(mine & other)
            if both >= SIMILAR * (len(mine) + len(other) - both):
                return candidates[place]
        return None


def _shingles(text: str) -> set[str]:
    """All stretches of 5 characters; of a shorter text, the text."""
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}


def _shingle_hashes(text: str) -> np.ndarray:
    """A 32-bit hash of each shingle, (shingles,), as 64-bit numbers; a shingle may occur again."""
    characters = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    count = max(1, len(characters) - SHINGLE + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(min(SHINGLE, len(characters))):
        hashes = (hashes + characters[place : place + count]) * SHINGLE_FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes >> np.uint64(32)


def _shared_buckets(signatures: np.ndarray) -> np.ndarray:
    """For each row and band a number that the rows with the same band share, or -1 where there is no other.

    Returns (rows, BANDS) int64.
    """
    buckets = np.full((len(signatures), BANDS), -1, np.int64)
    for band in range(BANDS):
        places = signatures[:, band * BAND_PLACES : (band + 1) * BAND_PLACES].astype(np.uint64)
        _, bucket, counts = np.unique(places @ BAND_FACTORS, return_inverse=True, return_counts=True)
        is_shared = counts[bucket] > 1
        buckets[is_shared, band] = bucket[is_shared] * BANDS + band
    return buckets
