"""The pictures of the technical report, the same for both languages, of what its sections found."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.common.files import write_atomic

OURS, LIBRARY, THIRD = "tab:blue", "tab:orange", "tab:green"

Found = dict[str, Any]


def draw_figures(found: Found, directory: Path) -> list[Path]:
    """Draw each picture whose sections were measured. found: the sections' figures by their names."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        if not is_drawn(name, found):
            continue
        figure = Figure(figsize=(8, 4.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, found)
        paths.append(directory / f"{name}.png")
        write_atomic(paths[-1], lambda new, figure=figure: figure.savefig(new, format="png"))
    return paths


def is_drawn(name: str, found: Found) -> bool:
    """Whether there is a picture of this name, and a section that it shows was measured."""
    return name in FIGURES and any(section in found for section in SECTIONS_OF.get(name, (name,)))


def draw_alibi(figure: Figure, found: Found) -> None:
    lines = found["alibi"]
    axes = figure.add_subplot()
    offsets = [max(line["offset"], 128) for line in lines]
    for name, color, marker in (
        ("library", LIBRARY, "o"),
        ("one number each", THIRD, "s"),
        ("ours", OURS, "o"),
    ):
        label = {
            "library": "library, bf16",
            "one number each": "one bf16 number each",
            "ours": "ours, bf16 columns",
        }
        axes.plot(offsets, [line[name] for line in lines], marker, color=color, ls="-", label=label[name])
    for name, color in (("library", LIBRARY), ("ours", OURS)):
        bounds = [line[f"{name} bound"] for line in lines]
        axes.plot(offsets, bounds, color=color, ls="--", lw=1, label=f"bound of {label[name].split(',')[0]}")
    axes.set(xscale="log", yscale="log", xlabel="position in the document (tokens)")
    axes.set(ylabel="largest error of the bias (nats)", title="ALiBi's bias between neighbouring keys")
    _finish(axes)
    axes.set_xscale("log", base=2)


def draw_bf16(figure: Figure, found: Found) -> None:
    axes = figure.add_subplot()
    lines = found["bf16"]
    positions = [max(line["offset"], 128) for line in lines]
    for name, color in (("library, bf16", LIBRARY), ("ours, bf16", OURS), ("ours, float32", THIRD)):
        axes.plot(positions, [line[name] for line in lines], "o-", color=color, label=name)
    axes.set(yscale="log", xlabel="tokens before (log scale)", ylabel="relative error of the logits")
    axes.set_title("A Bloom's logits against the library's in float32")
    axes.set_xscale("log", base=2)
    _finish(axes)


def draw_attention(figure: Figure, found: Found) -> None:
    seconds, size = figure.subplots(1, 2)
    lines = found["attention"]
    lengths = [line["length"] for line in lines]
    ways = (
        ("scores", "all scores", THIRD),
        ("bias", "dense bias", LIBRARY),
        ("columns", "key columns", OURS),
    )
    for name, label, color in ways:
        seconds.plot(lengths, [line[name] for line in lines], "o-", color=color, label=label)
        size.plot(lengths, [line[f"{name}, bytes"] / 1e6 for line in lines], "o-", color=color, label=label)
    seconds.set(title="one layer, forward and backward", ylabel="seconds")
    size.set(title="what ALiBi and the scores take", ylabel="MB")
    for axes in (seconds, size):
        axes.set(yscale="log", xlabel="tokens of the document")
        axes.set_xscale("log", base=2)
        _finish(axes)


def draw_train_step(figure: Figure, found: Found) -> None:
    """Useful tokens a second and peak memory of each way, as multiples of the padded way's."""
    speed, memory = figure.subplots(1, 2)
    cases = [case for case in _cases(found) if "plain" in case[1]]
    names = [name for name, _ in cases]
    ways = (("trl", "TRL", THIRD), ("plain", "transformers, padded", LIBRARY), ("ours", "ours", OURS))
    for axes, key, title in (
        (speed, "tokens a second", "useful tokens a second"),
        (memory, "peak GB", "peak memory"),
    ):
        for number, (way, label, color) in enumerate(ways):
            present = [place for place, (_, of_ways) in enumerate(cases) if way in of_ways]
            heights = [cases[place][1][way][key] / cases[place][1]["plain"][key] for place in present]
            bars = axes.bar(
                [place + (number - 1) * 0.27 for place in present], heights, 0.25, label=label, color=color
            )
            axes.bar_label(bars, fmt="%.2g", fontsize=7)
        axes.axhline(1, color="0.6", lw=0.8)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set(title=title, ylabel="times that of transformers, padded")
    speed.margins(y=0.3)  # room for the legend
    speed.legend(fontsize=8)


SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def _cases(found: Found) -> Iterator[tuple[str, Found]]:
    where = {"train_step_float32": "CPU", "train_step_bf16": "CPU", "train_step_card": "card"}
    for section, kind in where.items():
        for one in found.get(section, ()):
            yield f"{one['base']}\n{SHORT_DTYPES[one['dtype']]}\n{kind}", one["ways"]


def draw_vocabulary(figure: Figure, found: Found) -> None:
    axes = figure.add_subplot()
    savings = found["vocabulary"]["savings"]
    for corpus, tokenizer in dict.fromkeys((line["corpus"], line["tokenizer"]) for line in savings):
        lines = [line for line in savings if (line["corpus"], line["tokenizer"]) == (corpus, tokenizer)]
        fewer = [100 * (1 - line["tokens"] / lines[0]["tokens"]) for line in lines]
        first, *more = corpus.split(", ")
        label = f"{tokenizer}: {first}{', ...' if more else ''}"
        axes.plot([line["pieces"] for line in lines], fewer, "o-", label=label)
    axes.set(xlabel="new tokens", ylabel="fewer tokens in held-out texts (%)")
    axes.set_title("What tokens of a domain's own words save")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


FIGURES: dict[str, Callable[[Figure, Found], None]] = {
    "alibi": draw_alibi,
    "bf16": draw_bf16,
    "attention": draw_attention,
    "train_step": draw_train_step,
    "vocabulary": draw_vocabulary,
}
# The sections that a picture shows, where they are not the one of its name.
SECTIONS_OF = {"train_step": ("train_step_float32", "train_step_bf16", "train_step_card")}
