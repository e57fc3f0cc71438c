"""What `training.card_check` found: rows with their bounds, kept in card.json and card.md as they come."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from training.card.scale import Scale
from training.common.console import say
from training.common.errors import first_line
from training.common.files import write_atomic

# What is said of a row that has a bound.
HOLDS, FAILS, NOT_JUDGED = "holds", "FAILS", "not judged on a CPU"

# What became of a part.
DONE, NOT_POSSIBLE, BROKE_OFF = "done", "not possible here", "BROKE OFF"

EXPLANATION = """\
A row **holds** its bound or **FAILS** it; a row without a bound is for information. GB are 10^9 bytes, and \
TFLOP/s 10^12 operations a second. "The library" is transformers' own Bloom, "ours" the one that this recipe \
trains and serves. Errors are relative to the library in float32: the norm of the difference, divided by the \
norm of what is right.\
"""


class NotPossibleHere(Exception):
    """What a part needs is not on this machine. Its text says what."""


@dataclass
class Row:
    """One figure. `bound` is its bound in words, `verdict` whether it holds; both are empty without one."""

    what: str
    value: float | str
    unit: str = ""
    bound: str = ""
    verdict: str = ""
    note: str = ""


@dataclass
class Part:
    """What was measured of one subject. `reason` says why it ended where it is not done."""

    number: int
    title: str
    outcome: str = DONE
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def failures(self) -> int:
        return sum(row.verdict == FAILS for row in self.rows) + (self.outcome == BROKE_OFF)


@dataclass
class Check:
    """What the parts share: where to measure, how much, what was found so far.

    flops_per_second: what a bf16 matrix product reaches, and bytes_per_second: what a copy within the
    device's memory reads and writes; both None until part 0 has measured them.
    """

    directory: Path
    device: torch.device
    scale: Scale
    is_quick: bool
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    parts: list[Part] = field(default_factory=list)

    @property
    def on_card(self) -> bool:
        return self.device.type != "cpu"

    def add(
        self,
        what: str,
        value: float | str,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        of_card: bool = False,
        note: str = "",
    ) -> None:
        """Add a row to the part that is running. of_card: whether its bound says something on a card only."""
        bound = verdict = ""
        if at_most is not None or at_least is not None:
            assert not isinstance(value, str)
            if at_most is not None:
                bound, is_kept = f"at most {number(at_most)}", value <= at_most  # a NaN fails
            else:
                bound, is_kept = f"at least {number(at_least)}", value >= (at_least or 0.0)
            verdict = HOLDS if is_kept else FAILS
            if of_card and not self.on_card:
                verdict = NOT_JUDGED
        self.parts[-1].rows.append(Row(what, value, unit, bound, verdict, note))
        shown = f"{number(value)} {unit}".strip() + (f" ({note})" if note else "")
        say(f"  {what}: {shown}" + (f"; {bound}: {verdict}" if bound else ""))

    @contextmanager
    def part(self, number: int, title: str) -> Iterator[None]:
        """A block that is one part. What it cannot do is written down, and the other parts go on."""
        part = Part(number, title)
        self.parts.append(part)
        say(f"{number}. {title}")
        start = time.monotonic()
        try:
            yield
        except torch.OutOfMemoryError as error:
            part.outcome, part.reason = BROKE_OFF, f"out of memory: {first_line(error)}"
        except (NotPossibleHere, ImportError) as error:
            part.outcome, part.reason = NOT_POSSIBLE, first_line(error)
        except (RuntimeError, TypeError, ValueError, AttributeError, OSError) as error:
            # Another torch, or a card that nobody has tried, may refuse a call in any of these ways.
            part.outcome = NOT_POSSIBLE if _is_missing(error) else BROKE_OFF
            part.reason = f"{type(error).__name__}: {first_line(error)}"
        part.seconds = time.monotonic() - start
        if part.outcome != DONE:
            say(f"  {part.outcome}: {part.reason}")
        self.write()

    @property
    def failures(self) -> int:
        """How many rows fail their bound, and parts broke off."""
        return sum(part.failures for part in self.parts)

    def write(self) -> None:
        """Write both pages, with the parts so far."""
        content = {
            "sizes": self.scale.name,
            "device": str(self.device),
            "failures": self.failures,
            "parts": [asdict(part) for part in self.parts],
        }
        write_atomic(self.directory / "card.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        write_atomic(self.directory / "card.md", "\n".join(self._page()) + "\n")

    def verdict(self) -> str:
        """The outcome in one line."""
        judged = sum(row.verdict in (HOLDS, FAILS) for part in self.parts for row in part.rows)
        if self.failures:
            broken = sum(part.outcome == BROKE_OFF for part in self.parts)
            text = f"{self.failures - broken} of {judged} bounds FAIL"
            return text + (f", and {broken} part(s) BROKE OFF" if broken else "")
        return f"all {judged} bounds hold" + ("" if self.on_card else "; no card was measured")

    def _page(self) -> Iterator[str]:
        yield f"# What this machine does with our Bloom: {self.verdict()}"
        yield ""
        command = f"python -m training.card_check{' --quick' if self.is_quick else ''}"
        seconds = sum(part.seconds for part in self.parts)
        yield f"Measured by `{command}` with the sizes for {self.scale.name}, in {seconds:.0f} s."
        yield EXPLANATION
        for part in self.parts:
            yield ""
            yield f"## {part.number}. {part.title}"
            yield ""
            if part.outcome != DONE:
                yield f"**{part.outcome}**: {part.reason}"
                yield ""
            if part.rows:
                yield "| what | value | unit | bound | verdict | note |"
                yield "| --- | ---: | --- | --- | --- | --- |"
            for row in part.rows:
                verdict = f"**{row.verdict}**" if row.verdict == FAILS else row.verdict
                cells = [row.what, number(row.value), row.unit, row.bound, verdict, row.note]
                yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _is_missing(error: Exception) -> bool:
    """Whether a library lacks a function, or an argument of it, as another version may."""
    text = str(error)
    if isinstance(error, AttributeError):
        return text.startswith("module ")
    return isinstance(error, TypeError) and "unexpected keyword argument" in text


def number(value: float | str | None) -> str:
    """A figure with as many digits as say something; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (value is not None and abs(value) >= 100):
        return f"{value:,.0f}"
    return f"{value:.3g}"
