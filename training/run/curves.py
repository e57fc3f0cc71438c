"""loss.png: the losses and the learning rate of a run, drawn."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from training.common.console import evaluated_name, evaluation_prefix
from training.common.files import write_atomic

# The share of the points that the smoothed curve's mean spans.
SMOOTHED_SHARE = 1 / 20

# The colours of the evaluations' curves, in turn; the first is that of the held-out rows.
EVALUATION_COLORS = ("tab:red", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


def draw_curves(log_history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw what `run.sft_trainer` logged, 1200 pixels wide; write nothing before there is a training loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training = [entry for entry in log_history if "loss" in entry]
    evaluations = evaluations_of(log_history)
    if not training:
        return

    def series(entries: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
        return [entry["step"] for entry in entries], [entry[name] for entry in entries]

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    steps, losses = series(training, "loss")
    loss_axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="training")
    loss_axes.plot(steps, smooth(losses), color="tab:blue", label="training, smoothed")
    number = 0
    for color, (name, entries) in zip(cycle(EVALUATION_COLORS), evaluations.items(), strict=False):
        number += bool(name)
        shown = name if name.isascii() else f"file {number}"  # the font may lack the characters
        losses = series(entries, f"{evaluation_prefix(name)}_loss")
        loss_axes.plot(*losses, color=color, marker="o", label=f"evaluation {shown}".rstrip())
    loss_axes.set_ylabel("loss per token", fontsize=14)
    loss_axes.legend(fontsize=13)
    rate_axes.plot(*series(training, "learning_rate"), color="tab:green")
    rate_axes.set_ylabel("learning rate", fontsize=14)
    rate_axes.set_xlabel("optimizer step", fontsize=14)
    for axes in (loss_axes, rate_axes):
        axes.tick_params(labelsize=12)
        axes.grid(alpha=0.3)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


def evaluations_of(log_history: Sequence[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """The log entries of evaluations, by the name of what was evaluated on; "" is that of held-out rows."""
    evaluations: dict[str, list[dict[str, float]]] = {}
    for entry in log_history:
        name = evaluated_name(entry)
        if name is not None:
            evaluations.setdefault(name, []).append(entry)
    return evaluations


def smooth(values: Sequence[float]) -> list[float]:
    """The exponential moving average without its bias to 0 (https://arxiv.org/abs/1412.6980, section 3).

    The previous mean weighs (span - 1) / (span + 1), so that the weights lie as far back on average as those
    of a plain mean over `span` points. Up to 20 points, the span is one point, and nothing is smoothed.
    """
    span = max(1, SMOOTHED_SHARE * len(values))
    weight = (span - 1) / (span + 1)
    means, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        means.append(mean / (1 - weight**count))
    return means
