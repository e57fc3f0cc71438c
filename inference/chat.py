"""Talk to a fine-tuned model in the terminal.

python -m inference.chat --model checkpoints/demo
python -m inference.chat --model checkpoints/demo --prompt 你是谁
python -m inference.chat --model checkpoints/demo-tools --tools data/tools_example.py
"""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from inference.chat_tools import ChatTools
from inference.feedback import FeedbackFile
from inference.generation import context_length
from inference.options import (
    check_knows_tools,
    load_from_options,
    load_tools_from_options,
    model_options,
    sampling_of,
    sampling_options,
    tool_options,
)
from inference.screen import Screen
from inference.talk import ARGUMENTS, COMMANDS, HUMAN_LABEL, YAYI_LABEL, Talk
from inference.terminal import QUOTES, CommandCompleter, Inputs
from training.common.command_line import UserPath
from training.common.errors import UserError, run_command

# Words that people type to a program rather than to a model.
LEAVING = ("exit", "quit", "help")


@click.command(context_settings={"show_default": True})
@model_options
@click.option("--prompt", help="Answer this one prompt on stdout, and exit.")
@click.option(
    "--system",
    default="",
    show_default=False,
    help="Who the assistant is.  [default: what the model was trained with]",
)
@sampling_options
@click.option(
    "--feedback",
    type=UserPath(path_type=Path),
    help="File to which /good, /bad and /fix append rows to train on.",
)
@tool_options
@click.option("--yes", is_flag=True, help="With --tools: run calls without asking.")
@click.option("--verbose", is_flag=True, help="Say after each answer how many tokens a second it took.")
def main(**options: Any) -> None:
    """Talk to a fine-tuned model. Ctrl-C stops an answer or a tool, Ctrl-D leaves, /help shows more."""
    chat(SimpleNamespace(**options))


def chat(options: SimpleNamespace) -> None:
    """Answer the one prompt, or open the terminal chat."""
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("--prompt: empty; give it a text, or leave the option out to open the chat")
    for name in ("prompt", "system"):
        if not is_text(getattr(options, name) or ""):
            raise UserError(f"--{name}: not UTF-8; check the terminal's encoding")
    feedback = FeedbackFile(options.feedback, options.model) if options.feedback else None
    screen = Screen()
    inputs = Inputs(HUMAN_LABEL, CommandCompleter([*COMMANDS, "exit"], ARGUMENTS))
    if options.tools and not options.yes and not inputs.has_editor:
        raise UserError("--tools: there is no terminal on which to ask about a call; --yes runs all of them")
    tool_file = load_tools_from_options(options)
    model, tokenizer = load_from_options(options)
    check_knows_tools(options, tokenizer)
    tools = (
        ChatTools(tool_file, options.max_calls, screen, None if options.yes else inputs)
        if tool_file
        else None
    )
    talk = Talk(
        model,
        tokenizer,
        options.system,
        sampling_of(options),
        screen=screen,
        feedback=feedback,
        inputs=inputs,
        tools=tools,
        is_verbose=options.verbose,
    )
    if options.prompt is not None:
        talk.say(options.prompt)
        return
    if inputs.has_editor:
        dtype, context = str(model.dtype).removeprefix("torch."), context_length(model)
        weights = f"{model.num_parameters():,} weights in {dtype} on {model.device}"
        screen.note(f"{options.model}: {weights}, a context of {context:,} tokens")
        screen.note("Ctrl-C stops an answer, Ctrl-D leaves, /help shows more")
    for text in inputs:
        if not is_text(text):
            screen.note(f"not {sys.stdin.encoding.upper()}, not sent")
        elif text.strip():
            try:
                if not answer_or_obey(talk, text, is_typed=inputs.has_editor):
                    return
            except UserError as error:
                screen.note(str(error))
            except (KeyboardInterrupt, EOFError):  # while no answer was coming, or in place of a correction
                screen.note("stopped")
        if screen.is_unread:
            return
    screen.line("")


def is_text(entered: str) -> bool:
    """False for bytes in another encoding, which Python hands over as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in entered)


def answer_or_obey(talk: Talk, text: str, *, is_typed: bool) -> bool:
    """Answer a text, or do what it commands. Returns whether the chat goes on.

    is_typed: whether a person typed it at a terminal. There, what stands between quotes is sent as it is.
    """
    word = text.strip()
    if is_typed and word.lower() in LEAVING:
        raise UserError(f"not sent: /exit leaves, /help shows the commands, {QUOTES}{word}{QUOTES} sends it")
    if is_typed and len(word) > 2 * len(QUOTES) and word.startswith(QUOTES) and word.endswith(QUOTES):
        talk.say(word.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n"), YAYI_LABEL)
        return True
    command = re.match(r"/(\w*)(?:\s+(.*))?$", word, re.DOTALL)
    if not command:
        talk.say(text.replace("//", "/", 1) if text.startswith("//") else text, YAYI_LABEL)
        return True
    name, argument = command.groups(default="")
    if name == "exit":
        return False
    if name not in COMMANDS:
        raise UserError(f"there is no /{name}; /help shows what there is")
    COMMANDS[name](talk, argument.strip())
    return True


if __name__ == "__main__":
    run_command(main)
