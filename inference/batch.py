"""Answer a whole file of rows, and go on where a run that was interrupted stopped.

python -m inference.batch --model checkpoints/demo --input questions.jsonl --output answers.jsonl
python -m inference.batch --model checkpoints/demo --input - --output - < questions.jsonl > answers.jsonl

A row is one that training reads, or {"prompt": "...", "system": "..."}, or a line of a .txt file. If its last
turn has an answer, the model does not see that answer, and gives its own. The output has a line for each row,
in the order of the input: the row as it was, and added to it

    "answer"   what the model said
    "ended"    whether it said <|End|>; if not, --max-new-tokens cut it off
    "calls"    with --tools: the calls that it made, [{"name", "arguments", "result"}, ...]; what is no call
               is {"text", "result"}

A row whose own "answer" is not empty is an error; "output" is a name under which a reference answer may stay.

With --tools FILE.py, every call of a function of that file is run, and nothing else. A row is offered the
tools of the file, unless it declares its own.

Until all rows are answered, the answers are in OUTPUT.partial, or in ~/.cache/yayi where --output is -.
Whatever ended a run, the same command continues it; rows of the input may have been edited since. Where
--output is -, a run with an edited input starts anew.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click

from inference.batch_answers import batch_answerer, check_prompt_lengths
from inference.batch_tools import tool_answerer
from inference.edited_input import INPUT, PROMPT, keep_answers, prompt_digest
from inference.generation import context_length
from inference.options import (
    check_knows_tools,
    load_from_options,
    load_tools_from_options,
    model_options,
    sampling_options,
    tool_options,
)
from inference.resumable import Journal, claim_output, record_of, refusals, work_through, write_rows
from inference.tool_process import ToolFile
from training.common.command_line import PathOrName, UserPath
from training.common.console import say
from training.common.errors import UserError, run_command
from training.common.options import default_cache_dir
from training.data.reader import fingerprint, read_rows
from training.data.text_lines import read_lines
from training.text.conversation import Conversation, read_row
from training.text.encoding import check_tools, encode_prompt
from training.text.keys import is_absent

# The keys that are added to a row, the last with --tools alone.
ANSWER, ENDED, CALLS = "answer", "ended", "calls"

# What stands for stdin or stdout, where stdin is found, and how a file of lines is called.
DASH, STDIN, TEXT = "-", "/dev/stdin", ".txt"

# Options that may change before a run is continued: they say where and how fast, not what is answered. (The
# batch size changes sampled answers, as the seed does.)
FREE_OPTIONS = ("input", "output", "device", "batch_size")

# Those that matter with --tools alone; what is in that file does, not where it is.
TOOL_OPTIONS = ("tools", "max_calls")


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
@tool_options
def main(**options: Any) -> None:
    """Answer every row of --input. Ctrl-C stops it, and the same command continues."""
    answer_file(SimpleNamespace(**options))


def answer_file(options: SimpleNamespace) -> None:
    """Write --output. Whatever is wrong with the files raises UserError before the model is loaded."""
    source = STDIN if options.input == DASH else options.input
    to_stdout = str(options.output) == DASH
    tools = load_tools_from_options(options)
    about = {INPUT: fingerprint(source)}
    if tools:
        about |= {"--tools": tools.digest, "--max-calls": str(options.max_calls)}
    record = record_of(options, about, (*FREE_OPTIONS, *TOOL_OPTIONS))
    output = unfinished_file(record) if to_stdout else options.output
    with claim_output(output):
        prompts = read_prompts(source, tools)
        keep_answers(output, record, [prompt_digest(prompt.conversation) for prompt in prompts])
        journal = Journal(output, record)
        if len(journal.answers) < len(prompts):
            answer_prompts(prompts, journal, tools, options)
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


def read_prompts(path: str, tools: ToolFile | None = None) -> list[PromptRow]:
    """The rows of a file. Raises UserError with the place of a row that cannot be answered.

    tools: those that a row is offered which declares none.
    """
    prompts = []
    for place, row in _rows(path):
        try:
            conversation = prompt_of(row)
            if tools and not conversation.tools:
                conversation = replace(conversation, tools=tools.declarations)
            prompts.append(PromptRow(place, row, conversation))
            check_takes_answer(row, *((CALLS,) if tools else ()))
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


def check_takes_answer(row: dict[str, Any], *more_keys: str) -> None:
    """Raise ValueError for a row with a key that would be overwritten, or text that UTF-8 cannot write."""
    for key, name in ((ANSWER, ', such as "output"'), (ENDED, ""), *((key, "") for key in more_keys)):
        if not is_absent(row.get(key)):
            raise ValueError(
                f'"{key}" is there already, and would be written over; give it another name{name}'
            )
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None


def answer_prompts(
    prompts: Sequence[PromptRow], journal: Journal, tools: ToolFile | None, options: SimpleNamespace
) -> None:
    """Answer what is not in `journal`, the longest prompts first, so that a lack of memory shows at once."""
    model, tokenizer = load_from_options(options)
    check_knows_tools(options, tokenizer)
    for prompt in prompts:
        try:
            check_tools(prompt.conversation, tokenizer)
        except ValueError as error:
            raise UserError(f"{prompt.place}: {error}") from None
    input_ids = [encode_prompt(prompt.conversation, tokenizer) for prompt in prompts]
    check_prompt_lengths([prompt.place for prompt in prompts], input_ids, context_length(model))
    rest = [row for row in range(len(prompts)) if row not in journal.answers]
    rest.sort(key=lambda row: len(input_ids[row]), reverse=True)
    if tools:
        conversations = [prompt.conversation for prompt in prompts]
        answer = tool_answerer(model, tokenizer, conversations, tools, journal, options)
    else:
        answer = batch_answerer(model, tokenizer, input_ids, journal, options)

    def answer_with_digests(rows: list[int]) -> list[dict[str, Any]]:
        digests = [prompt_digest(prompts[row].conversation) for row in rows]
        return [entry | {PROMPT: digest} for entry, digest in zip(answer(rows), digests, strict=True)]

    work_through(rest, journal, len(prompts), options.batch_size, answer_with_digests)


def rows_with_answers(prompts: Sequence[PromptRow], journal: Journal) -> Iterator[dict[str, Any]]:
    """The rows of the output, in the order of the input."""
    for row, prompt in enumerate(prompts):
        entry = journal.answers[row]
        yield prompt.row | {key: entry[key] for key in (ANSWER, ENDED, CALLS) if key in entry}


def speed_line(journal: Journal, options: SimpleNamespace) -> str:
    """One line about the answers and the speed, from the seconds that answering took in all runs together."""
    answers, seconds = journal.answers.values(), journal.seconds
    rows, tokens = len(answers), sum(answer["tokens"] for answer in answers)
    problems = Counter(answer["problem"] for answer in answers if answer.get("problem"))
    cut_off = sum(not answer["ended"] for answer in answers) - problems.total()
    return (
        f"{options.output}: {rows:,} rows, {tokens:,} tokens; {rows / seconds:,.1f} rows/s, "
        f"{tokens / seconds:,.0f} tokens/s; {cut_off:,} answers cut off at --max-new-tokens "
        f"{options.max_new_tokens}" + "".join(f"; {count:,}: {why}" for why, count in problems.items())
    )


if __name__ == "__main__":
    run_command(main)
