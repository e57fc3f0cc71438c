"""Tables of scores as one picture: bars with intervals, and a radar of the categories."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from training.common.errors import UserError

Painter = Callable[[Axes, dict[str, Any]], None]

# Bars of what was published, and of what was measured here.
PUBLISHED, MEASURED = "0.75", "tab:blue"

# A radar with fewer categories is no shape.
FEWEST_SPOKES = 3

# Names by which fonts with Chinese characters go; they are looked at first.
CHINESE_NAMES = ("CJK", "SC", "Hei", "Song", "Kai", "Han")


def draw(tables: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel of bars for each table, and a radar where it has categories.

    A row with "interval" was measured here, any other was published. Raises UserError where no font on the
    machine has the characters of the tables.
    """
    with matplotlib.rc_context({"font.family": ["DejaVu Sans", *chinese_fonts(_texts(tables))]}):
        panels = [panel for table in tables for panel in _panels(table)]
        lines = -(-len(panels) // 2)
        figure = Figure(figsize=(15, 4.8 * lines), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for place, (paint, table, kind) in enumerate(panels, start=1):
            paint(figure.add_subplot(lines, 2, place, projection=kind), table)
        # Under another name first: whoever looks while it is drawn sees the one before.
        new = path.with_name(f".{path.name}")
        figure.savefig(new, format="png", bbox_inches="tight")
        new.replace(path)


def _panels(table: dict[str, Any]) -> list[tuple[Painter, dict[str, Any], str | None]]:
    """How to paint a table, in one panel or two: the function, the table, the kind of axes."""
    bars, radar = (_bars, table, None), (_radar, table, "polar")
    return [bars, radar] if len(table["categories"]) >= FEWEST_SPOKES else [bars]


def _texts(tables: Sequence[dict[str, Any]]) -> Iterable[str]:
    for table in tables:
        yield from (table["title"], table["score"], *table["categories"])
        yield from (row["model"] for row in table["rows"])


def chinese_fonts(texts: Iterable[str]) -> list[str]:
    """The family of a font on this machine that has what matplotlib's own lacks of `texts`, if anything."""
    own = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    lacking = {ord(character) for text in texts for character in text if character.isprintable()} - own.keys()
    if not lacking:
        return []
    fonts = font_manager.fontManager.ttflist
    for font in sorted(fonts, key=lambda font: not any(name in font.name for name in CHINESE_NAMES)):
        if lacking <= FT2Font(font.fname).get_charmap().keys():
            return [font.name]
    raise UserError(
        f"no font on this machine has {''.join(map(chr, sorted(lacking)[:8]))}…, for the picture; install "
        "one (Debian: apt-get install fonts-noto-cjk)"
    )


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
    """The measured models; of the published ones the best, and the original's own."""
    count = len(table["categories"])
    angles = [2 * math.pi * index / count for index in range(count)]
    for row in table["rows"]:
        measured = "interval" in row
        if not measured and row["rank"] != 1 and not row["model"].startswith("YaYi"):
            continue
        scores = [math.nan if score is None else score for score in row["scores"]]
        width, line = (2.4, "-") if measured else (1.4, "--")
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
