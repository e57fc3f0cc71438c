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

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from inference.generation import context_length, generation_config, spoken
from inference.options import load_chosen, model_options, sampling_of, sampling_options
from inference.resumable import Journal, held, record_of, say, work_through, write_rows
from training.common.errors import UserError, run_command
from training.consts import END
from training.data.reader import fingerprint, read_rows
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import encode_prompt

# What is added to a row.
ANSWER, ENDED = "answer", "ended"

# Options that may change before a run is continued: they say where and how fast, not what is answered. (Only
# sampled answers are others in another batch, as with another seed.)
FREE_OPTIONS = ("input", "output", "device", "batch_size")


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
        journal = Journal(
            options.output, record_of(options, {"--input": fingerprint(options.input)}, FREE_OPTIONS)
        )
        if len(journal.answers) < len(questions):
            answer_rest(questions, journal, options)
        write_rows(options.output, finished_rows(questions, journal))
        journal.path.unlink()
    say(summary(journal, options))


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
    conversation = from_row(row, prompts=True)
    *before, last = conversation.turns
    return Conversation((*before, Turn(last.human)), conversation.system)


def check_takes_answer(row: dict[str, Any]) -> None:
    """Raise ValueError for a row that would lose something, or cannot be written as it is."""
    for key in (ANSWER, ENDED):
        if key in row:
            raise ValueError(f'"{key}" is there already, and would be written over; give it another name')
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None


class Answered(NamedTuple):
    """An answer, whether it said `<|End|>`, and how many tokens it took."""

    answer: str
    ended: bool
    tokens: int


def answer_rest(questions: Sequence[Question], journal: Journal, options: SimpleNamespace) -> None:
    """Answer what is not in `journal`, the longest prompts first, so that want of memory shows at once."""
    model, tokenizer = load_chosen(options)
    prompts = [encode_prompt(question.conversation, tokenizer) for question in questions]
    check_room([question.place for question in questions], prompts, context_length(model))
    rest = [row for row in range(len(questions)) if row not in journal.answers]
    rest.sort(key=lambda row: len(prompts[row]), reverse=True)
    answer = answering(model, tokenizer, prompts, journal, options)
    work_through(rest, journal, len(questions), options.batch_size, answer)


def check_room(places: Sequence[str], prompts: Sequence[list[int]], context: int) -> None:
    """Raise UserError for the first prompt that leaves no room for an answer."""
    for place, prompt in zip(places, prompts, strict=True):
        if len(prompt) >= context:
            raise UserError(
                f"{place}: its {len(prompt):,} tokens leave no room for an answer in the model's "
                f"context of {context:,}; shorten the row, or take it out"
            )


def answering(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    journal: Journal,
    options: SimpleNamespace,
) -> Callable[[list[int]], list[dict[str, Any]]]:
    """A function from indices of prompts to their answers, for `work_through`."""
    config = generation_config(tokenizer, **sampling_of(options))

    def answer(rows: list[int]) -> list[dict[str, Any]]:
        # Anew for each batch, so that a run that is continued samples what an undisturbed one does.
        if options.seed is not None:
            torch.manual_seed(options.seed + len(journal.answers))
        answers = answer_batch(model, tokenizer, [prompts[row] for row in rows], config)
        return [{"row": row} | answer._asdict() for row, answer in zip(rows, answers, strict=True)]

    return answer


def answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
) -> list[Answered]:
    """The answers to prompts. At temperature 0 each is what it would be alone.

    input_ids        s 7 h 9 9 y     attention_mask  1 1 1 1 1 1     s, h, y = <|System|>, <|Human|>, <|YaYi|>
                     e e s 7 h y                     . . 1 1 1 1     e = <|End|>, the padding
    """
    input_ids = left_padded(prompts, config.pad_token_id)
    mask = left_padded([[1] * len(prompt) for prompt in prompts], 0)
    sequences = model.generate(
        input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
    )
    return [answered(ids, tokenizer) for ids in sequences[:, input_ids.shape[1] :].tolist()]


def left_padded(rows: Iterable[list[int]], padding: int) -> torch.Tensor:
    """(rows, tokens of the longest)."""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side="left")


def answered(new_ids: list[int], tokenizer: PreTrainedTokenizerFast) -> Answered:
    """new_ids: the answer's up to its `<|End|>`, and padding as far as the longest of the batch."""
    end_id = tokenizer.convert_tokens_to_ids(END)
    ended = end_id in new_ids
    tokens = new_ids.index(end_id) + 1 if ended else len(new_ids)
    return Answered("".join(spoken(tokenizer, new_ids)), ended, tokens)


def finished_rows(questions: Sequence[Question], journal: Journal) -> Iterator[dict[str, Any]]:
    """In the order of the input."""
    for row, question in enumerate(questions):
        given = journal.answers[row]
        yield question.row | {ANSWER: given["answer"], ENDED: given["ended"]}


def summary(journal: Journal, options: SimpleNamespace) -> str:
    """One line; the speed is that of answering, whichever runs did it."""
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
