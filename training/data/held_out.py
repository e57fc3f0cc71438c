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
    """The conversations of which these examples of the file were made, in the file's order and uncut.

    The file is read once, as a stream. Several rows of a JSON array may stand on one line; the hashes of
    their texts tell them apart. Raises UserError, at the latest after the last row, where the file has
    changed.
    """
    if not len(numbers):
        return
    lines, wanted = file.rows["line"], set(numbers.tolist())
    on_line = {
        int(line): list(range(*np.searchsorted(lines, [line, line + 1]))) for line in lines[numbers].tolist()
    }
    raw_rows = read_raw_rows(file.data_path)
    for raw in raw_rows:
        examples = on_line.get(raw.number)
        if not examples:
            continue
        try:
            read = read_row(parse(raw), file.row_options.columns)
            conversation = read.to_learn(file.row_options.learn)
        except ValueError:
            continue  # a row that cannot be used
        if file.is_made_of(examples[0], row_hashes(conversation)) and examples.pop(0) in wanted:
            yield conversation
    if any(on_line.values()) or raw_rows.fingerprint != file.file_fingerprint:
        raise UserError(f"{file.data_path}: has changed since it was encoded; start again")
