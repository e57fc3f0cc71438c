"""Answer a whole file of rows, and go on where a run that was interrupted stopped.

python -m inference.batch --model checkpoints/demo --input questions.jsonl --output answers.jsonl
python -m inference.batch --model checkpoints/demo --input - --output - < questions.jsonl > answers.jsonl

A row is one that training reads, or {"prompt": "...", "system": "..."}, or a line of a .txt file. If its last
turn has an answer, the model does not see that answer, and gives its own. The output has a line for each row,
in the order of the input: the row as it was, and added to it

    "answer"   what the model said
    "ended"    whether it said <|End|>; if not, --max-new-tokens cut it off

A row whose own "answer" is not empty is an error; "output" is a name under which a reference answer may stay.

Until all rows are answered, the answers are in OUTPUT.partial, or in ~/.cache/yayi where --output is -.
Whatever ended a run, the same command continues it; rows of the input may have been edited since. Where
--output is -, a run with an edited input starts anew.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click

from inference.batch_answers import batch_answerer, check_prompt_lengths
from inference.edited_input import INPUT, PROMPT, keep_answers, prompt_digest
from inference.generation import context_length
from inference.options import load_from_options, model_options, sampling_options
from inference.resumable import Journal, claim_output, record_of, refusals, work_through, write_rows
from training.common.command_line import PathOrName, UserPath
from training.common.console import say
from training.common.errors import UserError, run_command
from training.common.options import default_cache_dir
from training.data.reader import fingerprint, read_rows
from training.data.text_lines import read_lines
from training.text.conversation import Conversation, read_row
from training.text.encoding import check_tools, encode_prompt
from training.text.keys import is_absent

# The keys that are added to a row.
ANSWER, ENDED = "answer", "ended"

# What stands for stdin or stdout, where stdin is found, and how a file of lines is called.
DASH, STDIN, TEXT = "-", "/dev/stdin", ".txt"

# Options that may change before a run is continued: they say where and how fast, not what is answered. (The
# batch size changes sampled answers, as the seed does.)
FREE_OPTIONS = ("input", "output", "device", "batch_size")


@click.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--input",
    type=PathOrName(),
    required=True,
    help="Rows to answer: a file, a folder, a pattern, or a data set on the hub; - is JSON Lines from stdin.",
)
@click.option(
    "--output",
    required=True,
    type=UserPath(dir_okay=False, path_type=Path),
    help="JSON Lines file to write; - is stdout.",
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
    """Write --output. Whatever is wrong with the files raises UserError before the model is loaded."""
    source = STDIN if options.input == DASH else options.input
    to_stdout = str(options.output) == DASH
    record = record_of(options, {INPUT: fingerprint(source)}, FREE_OPTIONS)
    output = unfinished_file(record) if to_stdout else options.output
    with claim_output(output):
        prompts = read_prompts(source)
        keep_answers(output, record, [prompt_digest(prompt.conversation) for prompt in prompts])
        journal = Journal(output, record)
        if len(journal.answers) < len(prompts):
            answer_prompts(prompts, journal, options)
        if to_stdout:
            for row in rows_with_answers(prompts, journal):
                click.echo(json.dumps(row, ensure_ascii=False).encode())  # JSON is UTF-8 in any locale
        else:
            write_rows(output, rows_with_answers(prompts, journal))
        journal.path.unlink()
    say(speed_line(journal, options), on_stderr=True)


def unfinished_file(record: dict[str, Any]) -> Path:
    """Where the answers are until they go to stdout: a place that the same command finds again."""
    directory = default_cache_dir() / "batch"
    with refusals(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return directory / hashlib.blake2b(json.dumps(record).encode(), digest_size=16).hexdigest()


class PromptRow(NamedTuple):
    """A row of the input, its place in the file, and the conversation that the model is to continue."""

    place: str
    row: dict[str, Any]
    conversation: Conversation


def read_prompts(path: str) -> list[PromptRow]:
    """The rows of a file. Raises UserError with the place of a row that cannot be answered."""
    prompts = []
    for place, row in _rows(path):
        try:
            prompts.append(PromptRow(place, row, prompt_of(row)))
            check_takes_answer(row)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    if not prompts:
        raise UserError(f"{path}: no rows")
    return prompts


def _rows(path: str) -> Iterator[tuple[str, Any]]:
    if path.lower().endswith(TEXT):
        for number, line in read_lines(path):
            yield f"{path}:{number}", {"prompt": line}
    else:
        yield from read_rows(path)


def prompt_of(row: Any) -> Conversation:
    """The conversation of a row, without its last answer. Raises ValueError naming the field at fault."""
    return read_row(row).as_prompt()


def check_takes_answer(row: dict[str, Any]) -> None:
    """Raise ValueError for a row with a key that would be overwritten, or text that UTF-8 cannot write."""
    for key, name in ((ANSWER, ', such as "output"'), (ENDED, "")):
        if not is_absent(row.get(key)):
            raise ValueError(
                f'"{key}" is there already, and would be written over; give it another name{name}'
            )
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None


def answer_prompts(prompts: Sequence[PromptRow], journal: Journal, options: SimpleNamespace) -> None:
    """Answer what is not in `journal`, the longest prompts first, so that a lack of memory shows at once."""
    model, tokenizer = load_from_options(options)
    for prompt in prompts:
        try:
            check_tools(prompt.conversation, tokenizer)
        except ValueError as error:
            raise UserError(f"{prompt.place}: {error}") from None
    input_ids = [encode_prompt(prompt.conversation, tokenizer) for prompt in prompts]
    check_prompt_lengths([prompt.place for prompt in prompts], input_ids, context_length(model))
    rest = [row for row in range(len(prompts)) if row not in journal.answers]
    rest.sort(key=lambda row: len(input_ids[row]), reverse=True)
    answer = batch_answerer(model, tokenizer, input_ids, journal, options)

    def answer_with_digests(rows: list[int]) -> list[dict[str, Any]]:
        digests = [prompt_digest(prompts[row].conversation) for row in rows]
        return [entry | {PROMPT: digest} for entry, digest in zip(answer(rows), digests, strict=True)]

    work_through(rest, journal, len(prompts), options.batch_size, answer_with_digests)


def rows_with_answers(prompts: Sequence[PromptRow], journal: Journal) -> Iterator[dict[str, Any]]:
    """The rows of the output, in the order of the input."""
    for row, prompt in enumerate(prompts):
        entry = journal.answers[row]
        yield prompt.row | {ANSWER: entry["answer"], ENDED: entry["ended"]}


def speed_line(journal: Journal, options: SimpleNamespace) -> str:
    """One line about the answers and the speed, from the seconds that answering took in all runs together."""
    answers, seconds = journal.answers.values(), journal.seconds
    rows, tokens = len(answers), sum(answer["tokens"] for answer in answers)
    cut_off = sum(not answer["ended"] for answer in answers)
    return (
        f"{options.output}: {rows:,} rows, {tokens:,} tokens; {rows / seconds:,.1f} rows/s, "
        f"{tokens / seconds:,.0f} tokens/s; {cut_off:,} answers cut off at --max-new-tokens "
        f"{options.max_new_tokens}"
    )


if __name__ == "__main__":
    run_command(main)
