"""The options of every command that lets a model answer: which model, where it runs, and how it samples."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from inference.generation import load
from inference.tool_loop import MAX_CALLS
from inference.tool_process import ToolFile, load_tools
from training.common.command_line import FiniteRange, PathOrName, UserPath
from training.common.errors import UserError
from training.consts import MAX_NEW_TOKENS, REPETITION_PENALTY, TEMPERATURE, TOOL, TOP_P
from training.text.saved_template import knows_tools

MODEL_OPTIONS = (
    click.option(
        "--model",
        type=PathOrName(),
        required=True,
        help="Model that answers: a directory, or a name on the hub, or modelscope:NAME.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="Precision of the weights; auto is the one that was saved.",
    ),
    click.option("--load-in-8bit", is_flag=True, help="Quantize the weights of the layers to 8 bits."),
    click.option("--load-in-4bit", is_flag=True, help="Quantize the weights of the layers to 4 bits."),
    click.option(
        "--device",
        default="auto",
        help="Where the model runs: cpu, cuda:0, ...; auto takes one card where the model fits on it.",
    ),
)

SAMPLING_OPTIONS = (
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=MAX_NEW_TOKENS,
        help="Longest answer, in tokens.",
    ),
    click.option(
        "--temperature",
        type=FiniteRange(min=0),
        default=TEMPERATURE,
        help="0 always takes the likeliest token; higher values vary more.",
    ),
    click.option(
        "--top-p",
        type=FiniteRange(min=0, max=1, min_open=True),
        default=TOP_P,
        help="Sample among the likeliest tokens that together have this probability.",
    ),
    click.option(
        "--repetition-penalty",
        type=FiniteRange(min=0, min_open=True),
        default=REPETITION_PENALTY,
        help="Values above 1 make tokens that occur already less likely.",
    ),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Makes sampled answers repeatable."),
)


TOOL_OPTIONS = (
    click.option(
        "--tools",
        type=UserPath(path_type=Path),
        help="Python file whose functions the model may call; each call runs in a process of its own.",
    ),
    click.option(
        "--max-calls",
        type=click.IntRange(min=1),
        default=MAX_CALLS,
        help="With --tools: how many calls a question may have.",
    ),
)


def model_options(command: Callable) -> Callable:
    return _with(MODEL_OPTIONS, command)


def sampling_options(command: Callable) -> Callable:
    return _with(SAMPLING_OPTIONS, command)


def tool_options(command: Callable) -> Callable:
    return _with(TOOL_OPTIONS, command)


def _with(options: tuple[Callable, ...], command: Callable) -> Callable:
    for option in reversed(options):
        command = option(command)
    return command


# The options that say how an answer is sampled, by name.
SAMPLING = {
    option.name: option
    for option in reversed(sampling_options(click.Command("sampling")).params)
    if option.name and option.name != "seed"
}


def parse_sampling(name: str, text: str) -> Any:
    """The value of a sampling option from its text. Raises UserError for a wrong name or value."""
    if name not in SAMPLING:
        raise UserError(f"there is no setting {name}; there are {', '.join(SAMPLING)}")
    try:
        return SAMPLING[name].type.convert(text, None, None)
    except click.BadParameter as error:
        raise UserError(f"{name}: {error.message}") from None


def load_from_options(
    options: SimpleNamespace, *, allow_untaught: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """(model, tokenizer) of the model options; seeds the sampling if there is a seed.

    allow_untaught: whether a model without control tokens is accepted. Raises UserError as `load` does.
    """
    if options.load_in_8bit and options.load_in_4bit:
        raise UserError("--load-in-8bit and --load-in-4bit contradict each other; give one")
    if not sys.stderr.isatty():
        disable_progress_bar()
    bits = 8 if options.load_in_8bit else 4 if options.load_in_4bit else None
    model, tokenizer = load(
        options.model, dtype=options.dtype, device=options.device, bits=bits, allow_untaught=allow_untaught
    )
    if bits:
        taken = model.get_memory_footprint() / 1e6
        print(f"[layers in {bits} bits; the model takes {taken:,.1f} MB]", file=sys.stderr)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    return model, tokenizer


def load_tools_from_options(options: SimpleNamespace) -> ToolFile | None:
    """The tools of --tools, if it is given; says which functions are not offered.

    Raises UserError as `load_tools` does.
    """
    if options.tools is None:
        return None
    tools = load_tools(options.tools)
    for line in tools.left_out:
        print(f"[{line}]", file=sys.stderr)
    return tools


def check_knows_tools(options: SimpleNamespace, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise UserError where there are --tools for a model that was taught none."""
    if options.tools is not None and not knows_tools(tokenizer):
        raise UserError(
            f"--tools {options.tools}: {options.model} was taught no tools, its tokenizer has no {TOOL}; "
            "leave --tools out, or train a model on rows with tools"
        )


def sampling_of(options: SimpleNamespace) -> dict[str, Any]:
    """The sampling options, as `stream` and `generation_config` take them."""
    return {name: getattr(options, name) for name in SAMPLING}
