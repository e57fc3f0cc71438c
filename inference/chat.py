"""Talk to a fine-tuned model in the terminal.

python -m inference.chat --model checkpoints/demo
python -m inference.chat --model checkpoints/demo --prompt 你是谁
"""

import sys
from types import SimpleNamespace
from typing import Any

import click
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from inference.generation import load, stream
from training.consts import MAX_NEW_TOKENS, REPETITION_PENALTY, TEMPERATURE, TOP_P
from training.conversation import Conversation, Turn
from training.errors import UserError, run_command

HUMAN_LABEL = "Human: "
YAYI_LABEL = "YaYi: "


@click.command(context_settings={"show_default": True})
@click.option("--model", required=True, help="Model to talk to: a directory, or a name on the hub.")
@click.option("--prompt", help="Answer this one prompt on stdout, and exit.")
@click.option("--system", default="", help="Who the assistant is.  [default: the intro that training used]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=MAX_NEW_TOKENS, help="Longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=TEMPERATURE, help="0 is greedy; higher is bolder."
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=TOP_P,
    help="Sample among the likeliest tokens that have this probability together.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=REPETITION_PENALTY,
    help="Above 1, tokens that were used already become less likely.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Of the weights; auto is what was saved.",
)
@click.option("--device", default="auto", help="cpu, cuda:0, ...; auto lets accelerate decide.")
@click.option("--seed", type=click.IntRange(min=0), help="Makes sampled answers repeatable.")
def main(**options: Any) -> None:
    """Talk to a fine-tuned model. Ctrl-C stops an answer, Ctrl-D leaves."""
    chat(SimpleNamespace(**options))


def chat(options: SimpleNamespace) -> None:
    """Answer the one prompt, or open the terminal chat."""
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("--prompt: empty; give it a text, or leave the option out to open the chat")
    for name in ("prompt", "system"):
        if not is_text(getattr(options, name) or ""):
            raise UserError(f"--{name}: not UTF-8; check the terminal's encoding")
    model, tokenizer = load(options.model, dtype=options.dtype, device=options.device)
    if options.seed is not None:
        set_seed(options.seed)
    sampling = {
        name: getattr(options, name)
        for name in ("max_new_tokens", "temperature", "top_p", "repetition_penalty")
    }
    if options.prompt is None:
        converse(model, tokenizer, options.system, sampling)
    else:
        answer(model, tokenizer, Conversation((Turn(options.prompt),), options.system), sampling)


def converse(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, system: str, sampling: dict[str, Any]
) -> None:
    """Read what the human says and answer it, until the input ends."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives `input` line editing that knows how wide Chinese is)

        print("Ctrl-C stops an answer, Ctrl-D leaves.", file=sys.stderr)
    turns: tuple[Turn, ...] = ()
    while True:
        try:
            human = input(HUMAN_LABEL)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if not is_text(human):
            print("[not UTF-8, not sent]", file=sys.stderr)
            continue
        if not human.strip():
            continue
        print(YAYI_LABEL, end="", flush=True)
        said = answer(model, tokenizer, Conversation((*turns, Turn(human)), system), sampling)
        if said.strip():
            turns = (*turns, Turn(human, said))


def is_text(typed: str) -> bool:
    """False for bytes in another encoding, which Python hands over as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in typed)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    sampling: dict[str, Any],
) -> str:
    """Print the answer as it comes, and return it; as far as it came, if Ctrl-C stopped it."""
    with stream(model, tokenizer, conversation, **sampling) as pieces:
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)
            if not pieces.ended:
                note = f"[cut off at --max-new-tokens {sampling['max_new_tokens']}]"
                print(note, file=sys.stderr)
        except KeyboardInterrupt:
            print("\n[stopped]", file=sys.stderr)
    return pieces.text


if __name__ == "__main__":
    run_command(main)
