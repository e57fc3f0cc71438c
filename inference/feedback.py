"""What people say about answers, as rows that training reads: a rated or corrected answer is a line.

A thumb up, a thumb down, and a correction, with --feedback said.jsonl:

    {"messages": [..., {"role": "assistant", "content": "..."}], "label": true, "model": ..., "time": ...,
     "source": "feedback"}
    {"messages": [..., {"role": "assistant", "content": "..."}], "label": false, ...}
    {"messages": [..., {"role": "assistant", "content": "the corrected answer"}], ...}

The earlier answers have "weight": 0, so that only the last is learnt. Training leaves out the rows whose
label is false, and counts them. What a person takes back is removed from the file.
"""

import contextlib
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from inference.dialogue_row import messages_row
from training.common.errors import UserError
from training.common.files import try_write, write_atomic
from training.data.file_kinds import named_file
from training.text.conversation import Conversation
from training.text.keys import FEEDBACK


class FeedbackFile:
    """The JSON Lines file of --feedback, to which any number of threads and processes may append."""

    def __init__(self, path: Path, model: str) -> None:
        """model: the name of the model whose answers are rated.

        Nothing is written yet. Raises UserError where no row can be appended, or where the file holds
        something else than JSON Lines.
        """
        self.path, self._model = Path(os.path.expanduser(path)), model
        named = named_file(str(self.path))
        if named.kind != "json" or named.is_compressed:
            raise UserError(f"--feedback {path}: its name is of another kind of file; call it NAME.jsonl")
        try:
            if not self.path.exists():
                try_write(self.path.parent)
            elif not self.path.is_file():
                raise UserError(f"--feedback {path}: not a file; name one, such as feedback.jsonl")
            elif not _is_json_lines(self.path):
                raise UserError(
                    f"--feedback {path}: its last line is no JSON object, so no row can follow; name another"
                )
        except OSError as error:
            raise UserError(f"--feedback {path}: {error.strerror}") from None

    def add(self, conversation: Conversation, *, label: bool | None = None) -> int:
        """Append a row: whole and fsynced when this returns, and otherwise nothing of it.

        conversation: what the model read, and the answer in the last turn: the model's own, or the corrected
        one. label: whether a person called the model's answer a good one; None for a corrected answer.
        Returns how many calls of tools no row can hold (`messages_row`). Raises UserError where the answer is
        blank, or the file cannot be written.
        """
        row, left_out = feedback_row(conversation, self._model, label)
        line = json.dumps(row, ensure_ascii=False) + "\n"
        try:
            self._append(line.encode())
        except UnicodeEncodeError:
            raise UserError("half of a surrogate pair, which is no character") from None
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        return left_out

    def take_back(self, conversation: Conversation, *, label: bool | None = None) -> None:
        """Remove the newest row that `add` has written for these two, if the file still has one.

        Raises UserError where the file cannot be written; then it is as it was.
        """
        row, _ = feedback_row(conversation, self._model, label)
        try:
            with self._locked() as file:
                lines = file.read().splitlines(keepends=True)
                if places := [place for place, line in enumerate(lines) if _is_same(line, row)]:
                    del lines[places[-1]]
                    self._replace(b"".join(lines))
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None

    def _replace(self, content: bytes) -> None:
        """Put a file with that content in the place of the locked one, and lock it until that is done."""
        with contextlib.ExitStack() as until_done:

            def write(path: Path) -> None:
                file = until_done.enter_context(open(path, "wb"))
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(content)
                file.flush()
                shutil.copymode(self.path, path)

            write_atomic(self.path.resolve(), write)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        """The file, at its beginning, which no other process changes in the meantime."""
        while True:
            with open(self.path, "a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self._has_our_name(file):
                    file.seek(0)
                    yield file
                    return

    def _has_our_name(self, file: io.FileIO) -> bool:
        """False where whoever had the lock before has put another file in its place."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _append(self, line: bytes) -> None:
        with self._locked() as file:
            size = file.seek(0, os.SEEK_END)
            # An editor may have left the last line without its newline, and so may a power cut.
            file.seek(max(size - 1, 0))
            line = line if file.read(1) in (b"", b"\n") else b"\n" + line
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise


def feedback_row(conversation: Conversation, model: str, label: bool | None) -> tuple[dict[str, object], int]:
    """(the row of a conversation whose last answer was rated or corrected, how many calls are not in it).

    The parts are those of `FeedbackFile.add`.
    """
    *earlier, last = conversation.turns
    if not (last.yayi or "").strip():
        raise UserError("the answer is empty")
    last = replace(last.with_earlier_as_context(), is_context=False)
    turns = (*(turn.as_context() for turn in earlier), last)
    row, left_out = messages_row(replace(conversation, turns=turns))
    if label is not None:
        row["label"] = label
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    return {**row, "model": model, "time": time, "source": FEEDBACK}, left_out


def _is_same(line: bytes, row: dict[str, object]) -> bool:
    """Whether a line holds a row, but for the time at which it was written."""
    try:
        written = json.loads(line)
    except ValueError:
        return False
    return isinstance(written, dict) and written | {"time": row["time"]} == row


def _is_json_lines(path: Path) -> bool:
    """Whether a file is empty, or its last line, which a newline need not end, is a JSON object."""
    with open(path, "r+b") as file:  # which fails where the file may not be written
        fcntl.flock(file, fcntl.LOCK_SH)  # another process may be at the middle of a line
        content = file.read().strip()
    try:
        return not content or isinstance(json.loads(content.splitlines()[-1]), dict)
    except ValueError:
        return False
