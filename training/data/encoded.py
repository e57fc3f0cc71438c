"""Rows -> encoded examples, kept in a cache whose key covers everything that they depend on."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from training.common.columns import RowColumns
from training.common.console import Progress
from training.common.errors import UserError
from training.common.options import Learn
from training.consts import INTRO
from training.data.cache import make_once
from training.data.duplicates import RowHashes, row_hashes
from training.data.findings import LINES_KEPT, Findings
from training.data.groups import Prompts
from training.data.reader import NotRead, RawRow, RawRows, fingerprint, parse, read_raw_rows, read_rows
from training.text.conversation import Conversation, LeftOut, ReadRow, from_row, read_row
from training.text.encoding import check_tools, encode_turns, mask_labels, supervised_mask
from training.text.saved_template import default_system
from training.text.tokenizer import special_tokens, tokenizer_fingerprint

# How many rows a thread takes at a time. The ids of more rows do not stay in the processor's cache.
ROWS_PER_CHUNK = 128

# Where rows are long, a thread takes fewer: as many as have this size together, in bytes or characters. Of
# what is read, ahead of what the caller has taken, there is no more than MOST_AHEAD and one chunk.
SIZE_PER_CHUNK = 1 << 21
MOST_AHEAD = 1 << 26

# Threads run in parallel while they tokenize, which is most of the time. For the rest they need Python's
# lock, for which more threads than these would wait.
MOST_THREADS = 16

# The packages that decide what a row becomes. A change of any file in them makes the cache anew.
ENCODING_PACKAGES = ("text", "data")

# What is stored of each example: where its tokens end among those of all examples, the `number` of its row,
# the hashes of its first prompt and of its whole prompt, and where its states end, which are a file of their
# own (see `groups.Prompts`).
ROW = np.dtype([("end", "<i8"), ("line", "<i8"), ("first", "<u8"), ("whole", "<u8"), ("states_end", "<i8")])

# "input_ids" and "labels": two int32 arrays of one length.
Example = dict[str, np.ndarray]


class RowOptions(NamedTuple):
    """What the options say about reading rows: which answers are learnt, and which column holds what."""

    learn: Learn = "all"
    columns: RowColumns | None = None


AS_THEY_ARE = RowOptions()


class Kept(NamedTuple):
    """Of the row of an example: the hash of the whole, and what training sees of it."""

    row_hash: int
    conversation: Conversation


class Chunk(NamedTuple):
    """The examples made of some rows of a file, and what was found in these rows.

    input_ids: the ids of all examples end to end, (tokens,). supervised: their mask, (tokens,). rows: a ROW
    for each example, whose tokens and states are counted from the start of the chunk. states: those of all
    examples, (turns,). kept: an entry for each example. findings: those of all the rows.
    """

    input_ids: np.ndarray
    supervised: np.ndarray
    rows: np.ndarray
    states: np.ndarray
    kept: list[Kept]
    findings: Findings


class EncodedFile(Dataset):
    """The examples of a data file, which are read from the cache's files as they are needed.

    file_fingerprint: the reader's `fingerprint` of the data file. row_options: how its rows were read.
    system: what rows without a system text got. Raises UserError if the cache's files are not as they were
    written.
    """

    def __init__(
        self,
        directory: Path,
        data_path: str,
        file_fingerprint: str,
        row_options: RowOptions = AS_THEY_ARE,
        system: str = INTRO,
    ) -> None:
        self.data_path, self.file_fingerprint, self.row_options = data_path, file_fingerprint, row_options
        self.system = system
        try:
            self.summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
            kept = self.summary["kept"]
            self._input_ids = _map_file(directory / "input_ids.bin", np.dtype("<i4"), kept["tokens"])
            self._supervised = _map_file(directory / "learnt.bin", np.dtype("?"), kept["tokens"])
            self.rows = _map_file(directory / "rows.bin", ROW, kept["rows"])
            turns = int(self.rows["states_end"][-1]) if len(self.rows) else 0
            states = _map_file(directory / "states.bin", np.dtype("<u8"), turns)
            self.prompts = Prompts(self.rows["whole"], states, self.rows["states_end"])
        except (OSError, ValueError) as error:
            raise UserError(f"{directory}: damaged ({error}); remove it, and it is made again") from None

    @property
    def data_fingerprint(self) -> str:
        """What the examples were made of: the file, and how its rows were read."""
        if self.row_options == AS_THEY_ARE:
            return self.file_fingerprint
        return " ".join([self.file_fingerprint, *map(str, self.row_options)])

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens each example has."""
        return np.diff(self.rows["end"], prepend=0)

    def is_made_of(self, index: int, hashes: RowHashes) -> bool:
        """Whether an example was made of the row that has these hashes, or of its beginning."""
        states = self.prompts.states[self.prompts.ends[index - 1] if index else 0 : self.prompts.ends[index]]
        return [*hashes.beginnings, hashes.row][: len(states)] == states.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        end = self.rows["end"][index]
        start = self.rows["end"][index - 1] if index else 0
        input_ids = np.array(self._input_ids[start:end])
        return {"input_ids": input_ids, "labels": mask_labels(input_ids, self._supervised[start:end])}


def _map_file(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    if path.stat().st_size != length * dtype.itemsize:
        raise ValueError(f"{path.name} has another size")
    return np.memmap(path, dtype, mode="r") if length else np.empty(0, dtype)


def encoding_code() -> list[Path]:
    """The files that decide what a row becomes."""
    training = Path(__file__).parents[1]
    files = [path for package in ENCODING_PACKAGES for path in sorted((training / package).glob("*.py"))]
    return [training / "consts.py", *files]


def load_encoded(
    data_path: str,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    cache_dir: Path,
    row_options: RowOptions = AS_THEY_ARE,
) -> EncodedFile:
    """The examples of `data_path`, each at most `max_length` tokens long, and the summary of its findings.

    A longer row is cut after its last turn that fits, never inside an answer; it is dropped if no turn that
    fits has an answer to learn. A row that cannot be used is only in the summary. Raises UserError for a file
    that cannot be read.
    """
    data, system = fingerprint(data_path), default_system(tokenizer)
    depends_on = [
        data,
        tokenizer_fingerprint(tokenizer),
        system,
        str(max_length),
        *map(str, row_options),
        tokenizers.__version__,
        *(path.read_text(encoding="utf-8") for path in encoding_code()),
    ]
    key = hashlib.blake2b("\0".join(depends_on).encode(), digest_size=16).hexdigest()

    def make(directory: Path) -> None:
        raw_rows = read_raw_rows(data_path)
        _write_encoded(raw_rows, tokenizer, max_length, row_options, directory)
        if raw_rows.fingerprint != data:
            raise UserError(f"{data_path}: changed while it was read; start again")

    return EncodedFile(make_once(cache_dir / key, make), data_path, data, row_options, system)


def _write_encoded(
    raw_rows: RawRows,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    row_options: RowOptions,
    directory: Path,
) -> None:
    findings = new_findings(tokenizer, max_length)
    tokens = turns = 0
    with (
        open(directory / "input_ids.bin", "wb") as ids_file,
        open(directory / "learnt.bin", "wb") as supervised_file,
        open(directory / "rows.bin", "wb") as rows_file,
        open(directory / "states.bin", "wb") as states_file,
    ):
        for chunk in encode_chunks(raw_rows, tokenizer, max_length, row_options):
            chunk.rows["end"] += tokens
            tokens += len(chunk.input_ids)
            ids_file.write(chunk.input_ids.astype("<i4").tobytes())
            supervised_file.write(chunk.supervised.tobytes())
            chunk.rows["states_end"] += turns
            turns += len(chunk.states)
            rows_file.write(chunk.rows.tobytes())
            states_file.write(chunk.states.astype("<u8").tobytes())
            findings += chunk.findings
    findings.add_remarks(raw_rows.remarks)
    summary = json.dumps(findings.summary(), ensure_ascii=False)
    (directory / "summary.json").write_text(summary, encoding="utf-8")


def new_findings(
    tokenizer: PreTrainedTokenizerFast, max_length: int, most_lines: int = LINES_KEPT
) -> Findings:
    """Findings without any rows, to which those of chunks are added; `most_lines` is as in `Findings`."""
    return Findings(max_length, special_tokens(tokenizer), most_lines)


def encode_chunks(
    raw_rows: RawRows,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    row_options: RowOptions = AS_THEY_ARE,
    most_lines: int = LINES_KEPT,
) -> Iterator[Chunk]:
    """Encode all rows in the file's order, on all cores, in memory that does not grow with the file.

    A file without rows gives one empty chunk. Raises UserError for a file that cannot be read; a row
    that cannot be used is in its chunk's findings. most_lines: how many lines these keep of what they find.
    """
    progress = Progress(f"encoding {raw_rows.data_path}", "rows")
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of its own inside each of ours would be too many
    with ThreadPoolExecutor(threads) as pool:
        at_work: deque[tuple[Future[Chunk], int]] = deque()
        is_first = True
        while (rows := _rows_of_chunk(raw_rows)) or is_first:
            has_bom = is_first and raw_rows.has_bom
            chunk = pool.submit(_encode_chunk, rows, tokenizer, max_length, row_options, most_lines, has_bom)
            at_work.append((chunk, sum(_size(raw.content) for raw in rows)))
            is_first = False
            count = len(rows)
            del rows, chunk
            while len(at_work) > threads or sum(size for _, size in at_work) > MOST_AHEAD:
                yield at_work.popleft()[0].result()
            progress.advance(count)
        while at_work:
            yield at_work.popleft()[0].result()


def _rows_of_chunk(raw_rows: Iterator[RawRow]) -> list[RawRow]:
    """The next rows, as many as one thread takes at a time; none at the end."""
    rows, size = [], 0
    for raw in islice(raw_rows, ROWS_PER_CHUNK):
        rows.append(raw)
        size += _size(raw.content)
        if size >= SIZE_PER_CHUNK:
            break
    return rows


def _size(content: Any) -> int:
    """The bytes or characters in the content of a raw row, whatever that is."""
    if isinstance(content, bytes | str):
        return len(content)
    values = content.values() if isinstance(content, dict) else content
    return sum(map(_size, values)) if isinstance(values, Iterable) else 0


def _encode_chunk(
    raw_rows: list[RawRow],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    row_options: RowOptions,
    most_lines: int,
    has_bom: bool,
) -> Chunk:
    findings = new_findings(tokenizer, max_length, most_lines)
    if has_bom:
        findings.add_bom()
    usable: list[tuple[int, ReadRow, Conversation]] = []
    for raw in raw_rows:
        try:
            read = read_row(parse(raw), row_options.columns)
            conversation = read.to_learn(row_options.learn)
            check_tools(conversation, tokenizer)
            usable.append((raw.number, read, conversation))
        except LeftOut:
            findings.add_left_out(raw.number)
        except ValueError as error:
            findings.add_unusable(raw.number, str(error), ends_file=isinstance(raw.content, NotRead))

    kept_ids: list[int] = []
    kept_answers: list[tuple[int, int]] = []
    kept_states: list[int] = []
    rows: list[tuple[int, int, int, int, int]] = []
    all_kept: list[Kept] = []
    system = default_system(tokenizer)
    all_encoded = encode_turns([conversation for _, _, conversation in usable], tokenizer, max_length)
    for (line, read, conversation), encoded in zip(usable, all_encoded, strict=True):
        kept = encoded.within(max_length)
        length, turns = len(kept.input_ids), len(kept.turn_ends)
        hashes = row_hashes(conversation, system)
        findings.add_usable(line, read, conversation, hashes, encoded, length)
        if length:
            start_of_row = len(kept_ids)
            kept_ids += kept.input_ids
            kept_answers += [(start_of_row + start, start_of_row + end) for start, end in kept.answers]
            kept_states += [*hashes.beginnings, hashes.row][:turns]
            all_kept.append(Kept(hashes.row, replace(conversation, turns=conversation.turns[:turns])))
            prompts = hashes.prompts
            rows.append((len(kept_ids), line, prompts[0], prompts[turns - 1], len(kept_states)))

    return Chunk(
        input_ids=np.fromiter(kept_ids, np.int32, len(kept_ids)),
        supervised=supervised_mask(len(kept_ids), kept_answers),
        rows=np.array(rows, dtype=ROW),
        states=np.array(kept_states, dtype=np.uint64),
        kept=all_kept,
        findings=findings,
    )


def read_conversations(data_path: str) -> Iterator[tuple[str, Conversation]]:
    """(place, conversation) of every row that training does not leave out.

    Raises UserError, with place and field, at the first bad one.
    """
    for place, row in read_rows(data_path):
        try:
            yield place, from_row(row, answered=True)
        except LeftOut:
            continue
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
