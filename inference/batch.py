"""Answer a whole file of rows, and go on where a run that was interrupted stopped.

python -m inference.batch --model checkpoints/demo --input questions.jsonl --output answers.jsonl

A row is one that training reads, or {"prompt": "...", "system": "..."}. An answer that its last turn has
already is left out and asked for anew: the model does not see it. The output has a line for each row, in the
order of the input: the row as it was, and added to it

    "answer"   what the model said
    "ended"    whether it said <|End|>; if not, --max-new-tokens cut it off

Until all rows are answered, the answers are in OUTPUT.partial. Whatever ended a run, the same command
continues it.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import click
import torch
from filelock import FileLock, Timeout
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from inference.generation import context_length, generation_config, spoken
from inference.options import load_chosen, model_options, sampling_of, sampling_options
from training.consts import END
from training.conversation import FORMAT_KEYS, Conversation, Turn, from_row
from training.encoding import encode_prompt
from training.errors import UserError, run_command
from training.rows import fingerprint, read_rows

# What is added to a row.
ANSWER, ENDED = "answer", "ended"

# Options that may change before a run is continued: they say where and how fast, not what is answered. (Only
# sampled answers are others in another batch, as with another seed.)
FREE_OPTIONS = ("input", "output", "device", "batch_size")

# Seconds between two lines about the progress, where there is no terminal for a bar.
SAY_EVERY_S = 10


@click.command(context_settings={"show_default": True})
@model_options
@click.option("--input", required=True, help="Rows to answer: a file, or the name of a data set on the hub.")
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON Lines file to write.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    help="Rows at a time: more are faster, and take more memory.",
)
@sampling_options
def main(**options: Any) -> None:
    """Answer every row of --input. Ctrl-C stops it, and the same command continues."""
    answer_file(SimpleNamespace(**options))


def answer_file(options: SimpleNamespace) -> None:
    """Write --output. What can be wrong with the files raises UserError before the model is loaded."""
    with held(options.output):
        questions = read_questions(options.input)
        partial = Partial(Path(f"{options.output}.partial"), what_is_answered(options))
        if len(partial.answers) < len(questions):
            answer_rest(questions, partial, options)
        write_output(options.output, questions, partial.answers)
        partial.path.unlink()
    say(summary(partial, options))


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


class Question(NamedTuple):
    """A row of the input, where it stands, and the conversation that the model is to continue."""

    place: str
    row: dict[str, Any]
    conversation: Conversation


def read_questions(path: str) -> list[Question]:
    """Raises UserError with the place of a row that cannot be asked, or cannot take its answer."""
    questions = []
    for place, row in read_rows(path):
        try:
            questions.append(Question(place, row, prompt_of(row)))
            check_takes_answer(row)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    if not questions:
        raise UserError(f"{path}: no rows")
    return questions


def prompt_of(row: Any) -> Conversation:
    """The conversation of a row, without its last answer. Raises ValueError naming the field at fault."""
    if isinstance(row, dict) and "prompt" in row and all(row.get(key) is None for key in FORMAT_KEYS):
        return _from_prompt(row["prompt"], row.get("system"))
    conversation = from_row(row)
    *before, last = conversation.turns
    return Conversation((*before, Turn(last.human)), conversation.system)


def _from_prompt(prompt: Any, system: Any) -> Conversation:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError('"prompt" is empty, or not text')
    if not isinstance(system, str | None):
        raise ValueError('"system" is not text')
    return Conversation((Turn(prompt),), system or "")


def check_takes_answer(row: dict[str, Any]) -> None:
    """Raise ValueError for a row that would lose something, or cannot be written as it is."""
    for key in (ANSWER, ENDED):
        if key in row:
            raise ValueError(f'"{key}" is there already, and would be written over; give it another name')
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None


def what_is_answered(options: SimpleNamespace) -> dict[str, Any]:
    """All that the answers depend on, by the name of the option."""
    record = {"--input": fingerprint(options.input)}
    for name, value in sorted(vars(options).items()):  # click has them as they were typed
        if name not in FREE_OPTIONS:
            record[f"--{name.replace('_', '-')}"] = value
    return record


class Answered(NamedTuple):
    """An answer, the index of its row, and how many tokens it took."""

    row: int
    answer: str
    ended: bool
    tokens: int


class Partial:
    """The answers so far, in a file that outlives the process.

    {"--input": "9b2f...", "--model": "checkpoints/demo", ...}                          what is answered
    {"seconds": 3.1, "answers": [{"row": 7, "answer": "...", "ended": true, "tokens": 52}, ...]}
    ...                                                                                 a line for each batch

    A last line without its end was torn by a kill or a full disk. It counts as not there, and its whole batch
    is answered again.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        """record: of `what_is_answered`. Raises UserError where something else is answered in the file."""
        self.path = path
        self.answers: dict[int, Answered] = {}
        self.seconds = 0.0
        self._first_line = json.dumps(record).encode() + b"\n"
        with refusals(path):
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not self._first_line.startswith(lines[0]):
            raise UserError(f"{path}: {difference(lines[0], record)}")
        whole = [line for line in lines if line.endswith(b"\n")]
        self._whole_bytes = sum(map(len, whole))
        for line in whole[1:]:
            self._remember(json.loads(line))

    def add(self, answers: Sequence[Answered], seconds: float) -> None:
        """Keep the answers of a batch: when this returns, they are on the disk."""
        batch = {"seconds": seconds, "answers": [answered._asdict() for answered in answers]}
        line = json.dumps(batch, ensure_ascii=False).encode() + b"\n"
        with refusals(self.path), open(self.path, "ab") as file:
            file.truncate(self._whole_bytes)
            file.write(line if self._whole_bytes else self._first_line + line)
            flush(file)
            self._whole_bytes = file.tell()
        self._remember(batch)

    def _remember(self, batch: dict[str, Any]) -> None:
        self.seconds += batch["seconds"]
        self.answers |= {answered["row"]: Answered(**answered) for answered in batch["answers"]}


def flush(file: IO) -> None:
    """To the disk itself."""
    file.flush()
    os.fsync(file.fileno())


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


def answer_rest(questions: Sequence[Question], partial: Partial, options: SimpleNamespace) -> None:
    """Answer what is not in `partial`, the longest prompts first, so that want of memory shows at once."""
    model, tokenizer = load_chosen(options)
    prompts = [encode_prompt(question.conversation, tokenizer) for question in questions]
    check_room(questions, prompts, context_length(model))
    rest = [row for row in range(len(questions)) if row not in partial.answers]
    rest.sort(key=lambda row: len(prompts[row]), reverse=True)
    batches = [rest[start : start + options.batch_size] for start in range(0, len(rest), options.batch_size)]
    config = generation_config(tokenizer, **sampling_of(options))
    try:
        for batch in shown(batches, len(partial.answers), len(questions)):
            # Anew for each batch, so that a run that is continued samples what an undisturbed one does.
            if options.seed is not None:
                torch.manual_seed(options.seed + len(partial.answers))
            started = time.perf_counter()
            answers = answer_batch(model, tokenizer, {row: prompts[row] for row in batch}, config)
            partial.add(answers, time.perf_counter() - started)
    except KeyboardInterrupt:
        say(f"stopped with {len(partial.answers):,} rows answered; the same command goes on from there")
        raise
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch-size {options.batch_size}: the memory does not suffice; "
            "the same command with a smaller one goes on from here"
        ) from None


def check_room(questions: Sequence[Question], prompts: Sequence[list[int]], context: int) -> None:
    """Raise UserError for the first prompt that leaves no room for an answer."""
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) >= context:
            raise UserError(
                f"{question.place}: its {len(prompt):,} tokens leave no room for an answer in the model's "
                f"context of {context:,}; shorten the row, or take it out"
            )


def answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: dict[int, list[int]],
    config: GenerationConfig,
) -> list[Answered]:
    """The answers to prompts, which are given by row. At temperature 0 each is what it would be alone.

    input_ids        s 7 h 9 9 y     attention_mask  1 1 1 1 1 1     s, h, y = <|System|>, <|Human|>, <|YaYi|>
                     e e s 7 h y                     . . 1 1 1 1     e = <|End|>, the padding
    """
    input_ids = left_padded(prompts.values(), config.pad_token_id)
    mask = left_padded([[1] * len(prompt) for prompt in prompts.values()], 0)
    sequences = model.generate(
        input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
    )
    new_ids = sequences[:, input_ids.shape[1] :].tolist()
    return [answered(row, ids, tokenizer) for row, ids in zip(prompts, new_ids, strict=True)]


def left_padded(rows: Iterable[list[int]], padding: int) -> torch.Tensor:
    """(rows, tokens of the longest)."""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side="left")


def answered(row: int, new_ids: list[int], tokenizer: PreTrainedTokenizerFast) -> Answered:
    """new_ids: the answer's up to its `<|End|>`, and padding as far as the longest of the batch."""
    end_id = tokenizer.convert_tokens_to_ids(END)
    ended = end_id in new_ids
    tokens = new_ids.index(end_id) + 1 if ended else len(new_ids)
    return Answered(row, "".join(spoken(tokenizer, new_ids)), ended, tokens)


def shown(batches: Sequence[list[int]], done: int, total: int) -> Iterator[list[int]]:
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


def write_output(output: Path, questions: Sequence[Question], answers: dict[int, Answered]) -> None:
    """In the order of the input. The file has its name once it is complete and on the disk."""
    unfinished = output.with_name(f".{output.name}.unfinished")
    with refusals(output):
        try:
            with open(unfinished, "w", encoding="utf-8") as file:
                for row, question in enumerate(questions):
                    added = {ANSWER: answers[row].answer, ENDED: answers[row].ended}
                    file.write(json.dumps(question.row | added, ensure_ascii=False) + "\n")
                flush(file)
            unfinished.rename(output)
        finally:
            unfinished.unlink(missing_ok=True)


def summary(partial: Partial, options: SimpleNamespace) -> str:
    """One line; the speed is that of answering, whichever runs did it."""
    answers, seconds = partial.answers.values(), partial.seconds
    rows, tokens = len(answers), sum(answer.tokens for answer in answers)
    cut_off = sum(not answer.ended for answer in answers)
    return (
        f"{options.output}: {rows:,} rows, {tokens:,} tokens; {rows / seconds:,.1f} rows/s, "
        f"{tokens / seconds:,.0f} tokens/s; {cut_off:,} answers cut off at --max-new-tokens "
        f"{options.max_new_tokens}"
    )


if __name__ == "__main__":
    run_command(main)
