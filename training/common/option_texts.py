"""What the text of an option stands for: sources with weights, counts or shares, names, a system text."""

import os
import re
from typing import NamedTuple

from training.consts import BREAKER


class Source(NamedTuple):
    """A data file or data set, and how often each of its rows is to be seen in an epoch."""

    path: str
    weight: float = 1.0


def parse_source(value: str) -> Source:
    """`FILE` or `FILE:WEIGHT`, the weight a number above 0; `~` is the home directory.

    Raises ValueError for another weight.
    """
    value = os.path.expanduser(value)
    if os.path.exists(value):
        return Source(value)
    match = re.fullmatch(r"(.+):(-?[0-9.]+(?:e-?[0-9]+)?)", value)
    if match is None:
        return Source(value)
    try:
        weight = float(match[2])
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise ValueError(f"{value}: the weight after the last colon is not a number above 0")
    return Source(match[1], weight)


def source_text(source: Source) -> str:
    """The text that `parse_source` reads as this source."""
    return source.path if source.weight == 1 else f"{source.path}:{source.weight!r}"


def parse_count_or_share(value: str) -> int | float:
    """A count (0, 1, 2, ...) as int, or a share between 0 and 1 as float.

    Raises ValueError for anything else.
    """
    try:
        size = int(value) if value.strip().isdigit() else float(value)
    except ValueError:
        size = -1.0
    if isinstance(size, float) and not 0 < size < 1:
        raise ValueError(f"{value} is neither a count (0, 1, 2, ...) nor a share between 0 and 1")
    return size


def parse_layer_names(value: str) -> str:
    """Names separated by commas, without the blanks beside them. Raises ValueError where one is empty."""
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise ValueError(f"{value!r} has an empty name; give names of layers, separated by commas")
    return ",".join(names)


def parse_system(value: str) -> str:
    """A system text. Raises ValueError for one without characters, or in another encoding than UTF-8."""
    if not value.replace(BREAKER, "").strip():
        raise ValueError("empty; leave the option out for the default")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("not UTF-8; check the terminal's encoding")
    return value
