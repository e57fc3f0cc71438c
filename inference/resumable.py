"""What a long command has answered so far, in a file that outlives it: the same command goes on from there.

with held(output):
    journal = Journal(output, {"--model": "checkpoints/demo", ...})
    work_through(rest, journal, total, batch_size, answer_batch)
    write_rows(output, rows)
    journal.path.unlink()
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from training.common.errors import UserError

# Seconds between two lines about the progress, where there is no terminal for a bar.
SAY_EVERY_S = 10


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """`output` is not there, and no other process will write it; UserError where that cannot be had."""
    if not os.path.isdir(output.parent):
        raise UserError(f"{output.parent}: no such directory")
    lock = FileLock(f"{output}.partial.lock")  # the system gives it back however the process ends
    with refusals(output):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{output}: another process is writing it; wait for it, or end it") from None
    try:
        if os.path.lexists(output):
            raise UserError(f"{output}: is there already; move it, or give another --output")
        yield
    finally:
        # While it is held: once released, the file may be another process's.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What the system refuses, for want of room or of rights, is for the user to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; once that is mended, the same command goes on") from None


def record_of(options: SimpleNamespace, about: dict[str, str], free: Sequence[str]) -> dict[str, Any]:
    """All that answers depend on: `about`, and every option but the `free` ones, as it was typed."""
    record = dict(about)
    for name, value in sorted(vars(options).items()):
        if name not in free:
            record[f"--{name.replace('_', '-')}"] = value
    return record


class Journal:
    """The answers so far, by the number of their row, and the seconds that they took; in OUTPUT.partial.

    {"--input": "9b2f...", "--model": "checkpoints/demo", ...}                          what is answered
    {"seconds": 3.1, "answers": [{"row": 7, "answer": "...", "ended": true, "tokens": 52}, ...]}
    ...                                                                                 a line for each batch

    A last line without its end was torn by a kill or a full disk. It counts as not there, and its whole batch
    is answered again.
    """

    def __init__(self, output: Path, record: dict[str, Any]) -> None:
        """record: all that the answers depend on. Raises UserError where the file is of another."""
        self.path = Path(f"{output}.partial")
        self.answers: dict[int, dict[str, Any]] = {}
        self.seconds = 0.0
        self._first_line = json.dumps(record).encode() + b"\n"
        with refusals(self.path):
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not self._first_line.startswith(lines[0]):
            raise UserError(f"{self.path}: {difference(lines[0], record)}")
        whole = [line for line in lines if line.endswith(b"\n")]
        self._whole_bytes = sum(map(len, whole))
        for line in whole[1:]:
            self._remember(json.loads(line))

    def add(self, answers: Sequence[dict[str, Any]], seconds: float) -> None:
        """Keep the answers of a batch, each with its "row": when this returns, they are on the disk."""
        batch = {"seconds": seconds, "answers": answers}
        line = json.dumps(batch, ensure_ascii=False).encode() + b"\n"
        with refusals(self.path), open(self.path, "ab") as file:
            file.truncate(self._whole_bytes)
            file.write(line if self._whole_bytes else self._first_line + line)
            flush(file)
            self._whole_bytes = file.tell()
        self._remember(batch)

    def _remember(self, batch: dict[str, Any]) -> None:
        self.seconds += batch["seconds"]
        self.answers |= {answer["row"]: answer for answer in batch["answers"]}


def difference(first_line: bytes, record: dict[str, Any]) -> str:
    """Why a file that begins with this line is not one to continue, and what to do."""
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
    """Answer `rows`, a batch at a time and in this order, into `journal`, which then has `total` of them."""
    batches = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    try:
        for batch in _shown(batches, len(journal.answers), total):
            started = time.perf_counter()
            answers = answer(batch)
            journal.add(answers, time.perf_counter() - started)
    except KeyboardInterrupt:
        say(f"stopped with {len(journal.answers):,} rows answered; the same command goes on from there")
        raise
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch-size {batch_size}: the memory does not suffice; "
            "the same command with a smaller one goes on from here"
        ) from None


def _shown(batches: Sequence[list[int]], done: int, total: int) -> Iterator[list[int]]:
    """The batches; how far they are is shown by a bar on a terminal, elsewhere by a line now and then."""
    if done:
        say(f"going on with {done:,} of {total:,} rows answered")
    said = time.monotonic()
    with tqdm(total=total, initial=done, unit="row", disable=None, dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            done += len(batch)
            bar.update(len(batch))
            if bar.disable and time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                say(f"{done:,} of {total:,} rows answered")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_rows(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    """As JSON Lines. The file has its name once it is complete and on the disk."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(output, lines)


def write_text(output: Path, parts: Iterable[str]) -> None:
    """The same for any text."""
    unfinished = output.with_name(f".{output.name}.unfinished")
    with refusals(output):
        try:
            with open(unfinished, "w", encoding="utf-8") as file:
                file.writelines(parts)
                flush(file)
            unfinished.rename(output)
        finally:
            unfinished.unlink(missing_ok=True)


def flush(file: IO) -> None:
    """To the disk itself."""
    file.flush()
    os.fsync(file.fileno())
