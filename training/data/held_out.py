"""held_out.jsonl in the run directory: the rows that a run has held out, for other measurements.

python -m evaluation.perplexity --model RUN --data-path RUN/held_out.jsonl --output DIRECTORY
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.common.errors import UserError
from training.common.files import write_atomic
from training.data.duplicates import row_hashes
from training.data.encoded import EncodedFile
from training.data.examples import Examples
from training.data.reader import parse, read_raw_rows
from training.text.conversation import Conversation, read_row
from training.text.formats import written_formats

HELD_OUT = "held_out.jsonl"


def write_held_out(held_out: Examples, path: Path) -> None:
    """Write the rows of the examples, in order, as messages rows: uncut, and a weight of 0 for each answer
    that is context.

    The rows are read again. Raises UserError where a data file is not what it was when it was encoded.
    """
    as_messages = written_formats()["messages"]

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as output:
            start = 0
            for file in held_out.files:
                numbers = held_out.indices - start
                of_file = numbers[(numbers >= 0) & (numbers < len(file))]
                for conversation in conversations_of(file, of_file):
                    output.write(json.dumps(as_messages(conversation), ensure_ascii=False) + "\n")
                start += len(file)

    write_atomic(path, write)


def conversations_of(file: EncodedFile, numbers: np.ndarray) -> Iterator[Conversation]:
    """The conversations from which these examples were made, whole, in the order of the file.

    The file is read once, as a stream. Raises UserError, at the latest after the last row, where the file has
    changed.
    """
    if not len(numbers):
        return
    wanted = dict(zip(file.rows["line"][numbers].tolist(), numbers.tolist(), strict=True))
    has_changed = UserError(f"{file.data_path}: has changed since it was encoded; start again")
    raw_rows = read_raw_rows(file.data_path)
    for raw in raw_rows:
        if raw.number not in wanted:
            continue
        try:
            read = read_row(parse(raw), file.row_options.columns)
            conversation = read.to_learn(file.row_options.learn)
        except ValueError:
            raise has_changed from None
        if not file.is_made_of(wanted.pop(raw.number), row_hashes(conversation, file.system)):
            raise has_changed
        yield conversation
    if wanted or raw_rows.fingerprint != file.file_fingerprint:
        raise has_changed
