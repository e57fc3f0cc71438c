"""Long answering jobs that can be interrupted at any moment: the same command goes on where they stopped.

Each batch of answers is kept in OUTPUT.partial as soon as it is there. Only when all rows are answered is
OUTPUT written, and OUTPUT.partial removed:

    with claim_output(output):
        journal = Journal(output, {"--model": "checkpoints/demo", ...})
        work_through(rows_without_answer, journal, total, batch_size, answer)
        write_rows(output, rows)
        journal.path.unlink()
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tqdm import tqdm

from training.common.console import say
from training.common.errors import UserError
from training.common.files import flush, hold_lock, write_atomic

# Seconds between two lines about the progress, where there is no terminal for a bar.
SAY_EVERY_S = 10


@contextlib.contextmanager
def claim_output(output: Path) -> Iterator[None]:
    """In the block, `output` does not exist, and no other process of this kind writes it.

    Raises UserError where it is there already, cannot be written, or another process is writing it.
    """
    if not os.path.isdir(output.parent):
        raise UserError(f"{output.parent}: no such directory")
    file = Path(f"{output}.partial.lock")
    with contextlib.ExitStack() as stack:
        with refusals(output):
            message = f"{output}: another process is writing it; wait for it, or end it"
            stack.enter_context(hold_lock(file, message))
        # Removed while the lock is held: once it is free, the file may be another process's.
        stack.callback(file.unlink, missing_ok=True)
        if os.path.lexists(output):
            raise UserError(f"{output}: is there already; move it, or give another --output")
        yield


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn errors of the file system in the block, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; once that is mended, the same command goes on") from None


def record_of(options: SimpleNamespace, about: dict[str, str], free_options: Sequence[str]) -> dict[str, Any]:
    """All that the answers depend on: `about`, and the value of every option that is not free to change."""
    record = dict(about)
    for name, value in sorted(vars(options).items()):
        if name not in free_options:
            record[f"--{name.replace('_', '-')}"] = value
    return record


class Journal:
    """The answers so far, by the number of their row, and the seconds that they took, kept in OUTPUT.partial.

    {"--input": "9b2f...", "--model": "checkpoints/demo", ...}                          what is answered
    {"seconds": 3.1, "answers": [{"row": 7, "answer": "...", "ended": true, "tokens": 52}, ...]}
    ...                                                                                 a line for each batch

    A last line without a newline was cut short by a kill or a full disk. It is ignored, and its batch is
    answered again.
    """

    def __init__(self, output: Path, record: dict[str, Any]) -> None:
        """Read the journal of `output`, if there is one.

        record: all that the answers depend on. Raises UserError where the file was begun with another record.
        """
        self.path = Path(f"{output}.partial")
        self.answers: dict[int, dict[str, Any]] = {}
        self.seconds = 0.0
        self._first_line = json.dumps(record).encode() + b"\n"
        with refusals(self.path):
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not self._first_line.startswith(lines[0]):
            raise UserError(f"{self.path}: {difference(lines[0], record)}")
        complete_lines = [line for line in lines if line.endswith(b"\n")]
        self._complete_bytes = sum(map(len, complete_lines))
        for line in complete_lines[1:]:
            self._remember(json.loads(line))

    def add(self, answers: Sequence[dict[str, Any]], seconds: float) -> None:
        """Keep the answers of a batch, each with its "row"; when this returns, they are fsynced."""
        batch = {"seconds": seconds, "answers": answers}
        line = json.dumps(batch, ensure_ascii=False).encode() + b"\n"
        with refusals(self.path), open(self.path, "ab") as file:
            file.truncate(self._complete_bytes)
            file.write(line if self._complete_bytes else self._first_line + line)
            file.flush()
            flush(self.path)
            self._complete_bytes = file.tell()
        self._remember(batch)

    def _remember(self, batch: dict[str, Any]) -> None:
        self.seconds += batch["seconds"]
        self.answers |= {answer["row"]: answer for answer in batch["answers"]}


def difference(first_line: bytes, record: dict[str, Any]) -> str:
    """Why a file that begins with this line cannot be continued with this record, and what to do."""
    try:
        begun = json.loads(first_line)
    except ValueError:
        begun = None
    if not isinstance(begun, dict) or begun.keys() != record.keys():
        return "not from this command; move it, or give another --output"
    names = [name for name in record if begun[name] != record[name]]
    then, now = (", ".join(f"{name} {options[name]}" for name in names) for options in (begun, record))
    return f"begun with {then}, not {now}; go on with what it was begun with, or remove it to start anew"


def work_through(
    rows: Sequence[int],
    journal: Journal,
    total: int,
    batch_size: int,
    answer: Callable[[list[int]], list[dict[str, Any]]],
) -> None:
    """Answer `rows` in this order, a batch at a time, into `journal`, which has `total` answers afterwards.

    answer: gives the answers to the rows of a batch, each with its "row".
    """
    batches = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    try:
        for batch in _with_progress(batches, len(journal.answers), total):
            started = time.perf_counter()
            answers = answer(batch)
            journal.add(answers, time.perf_counter() - started)
    except KeyboardInterrupt:
        count = len(journal.answers)
        say(f"stopped with {count:,} rows answered; the same command goes on from there", on_stderr=True)
        raise
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch-size {batch_size}: the memory does not suffice; "
            "the same command with a smaller one goes on from here"
        ) from None


def _with_progress(batches: Sequence[list[int]], done: int, total: int) -> Iterator[list[int]]:
    """The batches; the progress is a bar on a terminal, and elsewhere a line now and then."""
    if done:
        say(f"going on with {done:,} of {total:,} rows answered", on_stderr=True)
    said = time.monotonic()
    with tqdm(total=total, initial=done, unit="row", disable=None, dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            done += len(batch)
            bar.update(len(batch))
            if bar.disable and time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                say(f"{done:,} of {total:,} rows answered", on_stderr=True)


def write_output(output: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file atomically, as `write_atomic` does; errors of the file system become a UserError."""
    with refusals(output):
        write_atomic(output, content)


def write_rows(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines."""

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    write_output(output, write)


def write_result(output: Path, result: dict[str, Any]) -> None:
    """Write the result of an evaluation as indented JSON."""
    write_output(output, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
