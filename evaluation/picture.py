"""Tables of scores as one picture: bars with intervals, and a radar of the categories."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry
from matplotlib.ft2font import FT2Font

from training.common.errors import UserError
from training.common.files import write_atomic

Painter = Callable[[Axes, dict[str, Any]], None]

# Colours of the models that the original authors published, and of those measured here.
PUBLISHED, MEASURED = "0.75", "tab:blue"

# A radar with fewer categories encloses no area.
FEWEST_SPOKES = 3

# matplotlib's font with a placeholder for every character.
PLACEHOLDER_NAME = "Last Resort"

# What the names of fonts with Chinese characters contain; such fonts are looked at first.
CHINESE_NAMES = ("CJK", "SC", "Hei", "Song", "Kai", "Han")


def draw(tables: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel of bars for each table, and a radar of the categories where it has enough of them.

    A row with "interval" was measured here; any other was published. Raises UserError where no font on the
    machine has the characters of the tables.
    """
    with matplotlib.rc_context({"font.family": ["DejaVu Sans", *chinese_fonts(_texts(tables))]}):
        panels = [panel for table in tables for panel in _panels(table)]
        lines = -(-len(panels) // 2)
        figure = Figure(figsize=(15, 4.8 * lines), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for place, (paint, table, kind) in enumerate(panels, start=1):
            paint(figure.add_subplot(lines, 2, place, projection=kind), table)
        write_atomic(path, lambda new: figure.savefig(new, format="png", bbox_inches="tight"))


def _panels(table: dict[str, Any]) -> list[tuple[Painter, dict[str, Any], str | None]]:
    """The panels of a table, one or two: the function that paints it, the table, and the kind of axes."""
    bars, radar = (_bars, table, None), (_radar, table, "polar")
    return [bars, radar] if len(table["categories"]) >= FEWEST_SPOKES else [bars]


def _texts(tables: Sequence[dict[str, Any]]) -> Iterable[str]:
    for table in tables:
        yield from (table["title"], table["score"], *table["categories"])
        yield from (row["model"] for row in table["rows"])


def chinese_fonts(texts: Iterable[str]) -> list[str]:
    """The family of a font on this machine with the characters of `texts` that matplotlib's own font lacks.

    The list is empty where that font suffices. Raises UserError where no font has those characters.
    """
    own = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    missing = {ord(character) for text in texts for character in text if character.isprintable()} - own.keys()
    if not missing:
        return []
    for font in _fonts_on_machine():
        if missing <= FT2Font(font.fname).get_charmap().keys():
            return [font.name]
    raise UserError(
        f"no font on this machine has {''.join(map(chr, sorted(missing)[:8]))}…, for the picture; install "
        "one (Debian: apt-get install fonts-noto-cjk)"
    )


def _fonts_on_machine() -> Iterator[FontEntry]:
    """The fonts that are there now, those with a Chinese name first.

    matplotlib reads its list from a cache that is written once: fonts installed later are not in
    it, and removed ones still are. Later ones are searched for only if the caller takes none of the list.
    """

    def sorted_fonts(fonts: Iterable[FontEntry]) -> list[FontEntry]:
        existing_fonts = (
            font
            for font in fonts
            if os.path.isfile(font.fname) and not font.name.startswith(PLACEHOLDER_NAME)
        )
        return sorted(existing_fonts, key=lambda font: not any(name in font.name for name in CHINESE_NAMES))

    manager = font_manager.fontManager
    listed_fonts = list(manager.ttflist)
    yield from sorted_fonts(listed_fonts)
    for path in set(font_manager.findSystemFonts()) - {font.fname for font in listed_fonts}:
        with contextlib.suppress(OSError, RuntimeError):  # not a font, or not one that can be scaled
            manager.addfont(path)
    yield from sorted_fonts(font for font in manager.ttflist if font not in listed_fonts)


def _bars(axes: Axes, table: dict[str, Any]) -> None:
    rows = sorted(table["rows"], key=lambda row: row["mean"])
    colours = [MEASURED if "interval" in row else PUBLISHED for row in rows]
    axes.barh(range(len(rows)), [row["mean"] for row in rows], color=colours)
    axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
    for middle, row in enumerate(rows):
        low, high = row.get("interval", (row["mean"], row["mean"]))
        if "interval" in row:
            axes.plot([low, high], [middle, middle], color="black", marker="|")
        axes.annotate(
            f"{row['mean']:.2f}", (high, middle), (5, 0), textcoords="offset points", va="center", fontsize=11
        )
    axes.set_title(table["title"], fontsize=15)
    axes.set_xlabel(table["score"], fontsize=12)
    axes.set_xlim((1, 5.3) if table["kind"] == "subjective" else (0, 1.08))
    axes.tick_params(labelsize=12)


def _radar(axes: Axes, table: dict[str, Any]) -> None:
    """Paint the measured models, the best of the published ones, and the original's own."""
    count = len(table["categories"])
    angles = [2 * math.pi * index / count for index in range(count)]
    for row in table["rows"]:
        is_measured = "interval" in row
        if not is_measured and row["rank"] != 1 and not row["model"].startswith("YaYi"):
            continue
        scores = [math.nan if score is None else score for score in row["scores"]]
        width, line = (2.4, "-") if is_measured else (1.4, "--")
        circle = [*angles, angles[0]], [*scores, scores[0]]
        axes.plot(*circle, line, linewidth=width, marker="o", markersize=4, label=row["model"])
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [name.replace("（", "\n（") for name in table["categories"]], fontsize=10)
    for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
        side = math.sin(angle)  # the text stands outside of the circle
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.set_ylim((0, 5) if table["kind"] == "subjective" else (0, 1))
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(loc="upper left", bbox_to_anchor=(1.2, 1.05), fontsize=10)
