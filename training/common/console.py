"""What commands print, from rank 0 alone: lines on stdout, progress on stderr, and a bar on a terminal."""

import errno
import io
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO

from tqdm import tqdm

# Seconds between two progress lines about the same work.
PROGRESS_EVERY_S = 10


# Characters by which a text could steer a terminal: all control characters but the tab and the newline, and
# those that change the direction of what follows.
STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# The progress bar at the foot of a terminal, while one is shown.
_bar: tqdm | None = None


def say(line: str, *, on_stderr: bool = False) -> None:
    """Print a line from rank 0, above the bar while there is one."""
    if os.environ.get("RANK", "0") != "0":
        return
    stream = sys.stderr if on_stderr else sys.stdout
    line = visible(line)
    with unless_unread(stream):
        if _bar is not None:
            _bar.write(line)
        else:
            print(line, file=stream, flush=True)


@contextmanager
def unless_unread(stream: TextIO) -> Iterator[None]:
    """A block that writes to a stream, and may go on where that fails: a line that is lost ends no work.

    What is written to a closed pipe or a terminal that is gone is discarded from then on; a log file on a
    full disk is tried again by the next line.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def visible(text: str) -> str:
    """The text with an escape, such as \\x1b, for each character that would steer a terminal."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show_any_text() -> None:
    """Have stdout and stderr show a character that their encoding lacks as an escape, such as \\u4f60."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def bar() -> Iterator[tqdm]:
    """A progress bar of a run's steps at the foot of a terminal; nothing where stdout is no terminal."""
    global _bar
    is_shown = os.environ.get("RANK", "0") == "0" and bool(sys.stdout) and sys.stdout.isatty()
    with tqdm(unit="step", file=sys.stdout, disable=not is_shown, dynamic_ncols=True) as shown:
        _bar = shown if is_shown else None
        try:
            yield shown
        finally:
            _bar = None


def quiet_libraries() -> None:
    """Turn off the bars and the log lines of the libraries; their errors stay."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed"
    )  # raised by DeepSpeed's imports
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity_error()


class Progress:
    """Prints every PROGRESS_EVERY_S seconds how much work is done, and how fast; nothing for quick work."""

    def __init__(self, work: str, unit: str) -> None:
        self._work, self._unit = work, unit
        self._done = 0
        self._started = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said >= PROGRESS_EVERY_S:
            self._said = now
            speed = self._done / (now - self._started)
            say(f"{self._work}: {self._done:,} {self._unit}, {speed:,.0f} a second", on_stderr=True)


def log_line(logs: dict[str, float]) -> str:
    """The line for a log entry of `run.sft_trainer`: a training step's, an evaluation's, or the last one."""
    if "loss" in logs:
        norm = f"gradient norm {logs['grad_norm']:.3g}  " if "grad_norm" in logs else ""
        bound = logs.get("matrix_product_share")
        share = f"{bound:.0%} of the GEMM bound  " if bound is not None else ""
        left = f", {duration(logs['seconds_left'])} left" if "seconds_left" in logs else ""
        return (
            f"loss {logs['loss']:.4f}  {norm}rate {logs['learning_rate']:.3g}  "
            f"{logs['tokens_per_second']:,.0f} tokens/s, {logs['learnt_tokens_per_second']:,.0f} supervised, "
            f"{logs['padding_share']:.0%} padding  {share}epoch {logs['epoch']:.2f}{left}{_card_text(logs)}"
        )
    name = evaluated_name(logs)
    if name is not None:
        prefix = evaluation_prefix(name)
        return (
            f"evaluation loss{f' of {name}' if name else ''} {logs[f'{prefix}_loss']:.4f} on "
            f"{logs[f'{prefix}_tokens']:,} tokens; answers: {logs[f'{prefix}_ended_share']:.0%} ended, "
            f"{logs[f'{prefix}_length_share']:.2f} times as long as the data's, "
            f"{logs[f'{prefix}_repeated_share']:.0%} repeated{_card_text(logs)}"
        )
    return f"trained for {duration(logs['train_runtime'])}"


def evaluation_prefix(name: str) -> str:
    """What the keys of an evaluation's log entry begin with; the rows held out have the name "".

    That is `eval`, as in eval_loss, or `eval_NAME` for a file of --eval-data-path, as in eval_NAME_loss.
    """
    return f"eval_{name}" if name else "eval"


def evaluated_name(logs: Mapping[str, float]) -> str | None:
    """The name of what a log entry is the evaluation of, or None where it is another entry."""
    keys = (re.fullmatch(r"eval_(?:(.+)_)?loss", key) for key in logs)
    return next((key[1] or "" for key in keys if key), None)


def _card_text(logs: dict[str, float]) -> str:
    """What a log entry says of the memory of a card, if anything."""
    if "card_allocated" not in logs:
        return ""
    planned = f", planned {bytes_text(logs['card_planned'])}" if "card_planned" in logs else ""
    return (
        f"; a card had at most {bytes_text(logs['card_allocated'])} allocated{planned}, and "
        f"{bytes_text(logs['card_reserved'])} reserved"
    )


def duration(seconds: float) -> str:
    """Whole seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def bytes_text(count: float) -> str:
    """A number of bytes in GB, or in MB where that is less than one GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
