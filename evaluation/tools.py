"""Questions for tools: whether a model calls the right ones as it should, and tells what they return.

python -m evaluation.tools --model checkpoints/demo \\
    --questions data/yayi_train_example_tools.json --output checkpoints/evaluation/demo-tools
python -m evaluation.tools --model checkpoints/demo --tools data/tools_example.py \\
    --questions data/evaluation/tools_example.jsonl --output checkpoints/evaluation/demo-tools-run

The model answers greedily, reads what its calls return, and goes on until it answers without a call. Calls
are run by the functions of --tools; without --tools, a call that is right returns what its row says. What is
counted, over the questions that it applies to:

    called when it should          there is a call, and the question takes one
    right tool                     the tools that are called are those that the question takes, and no others
    right arguments                so are the calls, in any order: equal JSON, numbers by their value
    no call when none should be    there is none, and the question takes none
    answer holds the result        the answer has in it what a right one has of the results
    all of it right                all of these that apply

The forms of questions are in `tool_questions.py`. A model that was taught no tools is asked without them.

--output is a directory: answers.jsonl has every question, result.json the figures.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from evaluation.endpoint import ask_endpoint, check_endpoint
from evaluation.output import check_no_model
from evaluation.tool_answers import ServedQuestion, model_answerer_with_tools, readable
from evaluation.tool_questions import ToolQuestion, read_tool_questions
from evaluation.tool_scores import judge_calls, tool_figures, tool_report
from inference.batch_answers import check_prompt_lengths
from inference.generation import context_length
from inference.options import load_from_options, load_tools_from_options, model_options
from inference.resumable import (
    Journal,
    claim_output,
    record_of,
    refusals,
    work_through,
    write_result,
    write_rows,
)
from inference.tool_process import ToolFile
from training.common.command_line import FiniteRange, PathOrName, UserPath
from training.common.console import say
from training.common.errors import run_command
from training.data.reader import fingerprint
from training.text.encoding import encode_prompt
from training.text.saved_template import knows_tools

# Options that may change before a run is continued.
FREE_OPTIONS = ("questions", "tools", "output", "device", "batch_size", "timeout")


@click.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--endpoint", help="URL of an OpenAI-compatible server that has --model, such as http://host:8000/v1."
)
@click.option(
    "--questions",
    type=PathOrName(),
    required=True,
    help="Rows with tools to train on, or questions: a file, a folder, a pattern, or a data set on the hub.",
)
@click.option(
    "--tools",
    type=UserPath(path_type=Path),
    help="Python file whose functions are run where the model calls them.",
)
@click.option(
    "--output", required=True, type=UserPath(file_okay=False, path_type=Path), help="Directory to write."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Questions at a time.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, help="Longest answer that is generated."
)
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    default=120.0,
    help="Longest wait of --endpoint for the first byte of an answer, between two, and between tries, in s.",
)
def main(**options: Any) -> None:
    """Let a model call tools, and count right calls. Ctrl-C stops it, and the same command continues."""
    measure_calls(SimpleNamespace(**options, seed=None))


def measure_calls(options: SimpleNamespace) -> None:
    """Write --output. Raises UserError for what is wrong with the questions before the model is loaded."""
    result_file = options.output / "result.json"
    if options.endpoint:
        check_endpoint(options.endpoint)
    check_no_model(options.output)
    tools = load_tools_from_options(options)
    with refusals(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    with claim_output(result_file):
        questions = read_tool_questions(options.questions, tools and tools.declarations)
        about = {"--questions": fingerprint(options.questions), "--tools": tools.digest if tools else ""}
        journal = Journal(result_file, record_of(options, about, FREE_OPTIONS))
        if len(journal.answers) < len(questions):
            answer_questions(questions, tools, journal, options)
        judged = [judge_calls(question, journal.answers[row]) for row, question in enumerate(questions)]
        write_rows(options.output / "answers.jsonl", judged)
        result = {"kind": "tools", "model": options.model, "questions": options.questions}
        result |= tool_figures(judged)
        write_result(result_file, result)
        journal.path.unlink()
    print(tool_report(result), end="")
    say(f"{options.output}: {len(questions):,} questions, {journal.seconds:,.0f} s", on_stderr=True)


def answer_questions(
    questions: Sequence[ToolQuestion],
    tools: ToolFile | None,
    journal: Journal,
    options: SimpleNamespace,
) -> None:
    """Answer what is not in `journal`, the longest first, so that a lack of memory shows at once."""
    rest = [row for row in range(len(questions)) if row not in journal.answers]
    if options.endpoint:
        # A server may sample as it was saved, with a repetition penalty; transformers' has it from this one.
        greedy = {"temperature": 0, "frequency_penalty": 0}
        ask_endpoint(
            options.endpoint,
            {"model": options.model, "max_tokens": options.max_new_tokens} | greedy,
            {row: ServedQuestion(questions[row], tools) for row in rest},
            journal,
            total=len(questions),
            at_a_time=options.batch_size,
            timeout_s=options.timeout,
        )
        return
    model, tokenizer = load_from_options(options, allow_untaught=True)
    if not knows_tools(tokenizer):
        say(f"{options.model}: was taught no tools, and is asked without their declarations", on_stderr=True)
    questions = readable(questions, tokenizer)
    prompts = [encode_prompt(question.conversation, tokenizer) for question in questions]
    check_prompt_lengths([question.place for question in questions], prompts, context_length(model))
    rest.sort(key=lambda row: len(prompts[row]), reverse=True)
    answer = model_answerer_with_tools(model, tokenizer, questions, tools, options.max_new_tokens)
    work_through(rest, journal, len(questions), options.batch_size, answer)


if __name__ == "__main__":
    run_command(main)
