"""Talk to a fine-tuned model in the terminal.

python -m inference.chat --model checkpoints/demo
python -m inference.chat --model checkpoints/demo --prompt 你是谁
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from inference.dialogue import Dialogue, load_dialogue
from inference.generation import Answer, context_length, room_for_prompt, stream
from inference.kv_cache import KVCache
from inference.options import load_from_options, model_options, sampling_of, sampling_options
from inference.terminal import on_ctrl_c, read_inputs
from training.common.errors import UserError, run_command
from training.text.conversation import Turn
from training.text.saved_template import default_system

HUMAN_LABEL = "Human: "
YAYI_LABEL = "YaYi: "

HELP = """\
/system [TEXT]  say who the assistant is, or show it
/undo           take the last turn back
/retry          have the last turn answered again
/reset          start a new dialogue
/save FILE      write the dialogue into a new file, as a row to train on
/load FILE      go on with the dialogue of a file
/stats          tokens, speed, memory
/exit           leave, as Ctrl-D does
Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer. A text that begins with // is sent with
one /."""


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
def main(**options: Any) -> None:
    """Talk to a fine-tuned model. Ctrl-C stops an answer, Ctrl-D leaves, /help shows more."""
    chat(SimpleNamespace(**options))


def chat(options: SimpleNamespace) -> None:
    """Answer the one prompt, or open the terminal chat."""
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("--prompt: empty; give it a text, or leave the option out to open the chat")
    for name in ("prompt", "system"):
        if not is_text(getattr(options, name) or ""):
            raise UserError(f"--{name}: not UTF-8; check the terminal's encoding")
    model, tokenizer = load_from_options(options)
    talk = Talk(model, tokenizer, options.system, sampling_of(options))
    if options.prompt is not None:
        talk.say(options.prompt)
        return
    if sys.stdin.isatty():
        note("Ctrl-C stops an answer, Ctrl-D leaves, /help shows more")
    for text in read_inputs(HUMAN_LABEL):
        if not is_text(text):
            note("not UTF-8, not sent")
        elif text.strip():
            try:
                if not answer_or_obey(talk, text):
                    return
            except UserError as error:
                note(str(error))
            except KeyboardInterrupt:  # while no answer was coming
                note("stopped")
    print()


def is_text(entered: str) -> bool:
    """False for bytes in another encoding, which Python hands over as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in entered)


def note(text: str) -> None:
    print(f"[{text}]", file=sys.stderr, flush=True)


def answer_or_obey(talk: "Talk", text: str) -> bool:
    """Answer a text, or do what it commands. Returns whether the chat goes on."""
    command = re.match(r"/(\w*)(?:\s+(.*))?$", text.strip(), re.DOTALL)
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


class Talk:
    """A model, the dialogue with it, and the KV cache of that dialogue."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        system: str,
        sampling: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.dialogue = Dialogue(system)
        self.kv_cache = KVCache()
        self.latest: Answer | None = None

    def say(self, human: str, label: str = "") -> None:
        """Print the answer as it comes, and add the turn, with a partial answer if Ctrl-C stopped it."""
        longest, left_out = self.sampling["max_new_tokens"], self.dialogue.left_out
        prompt = self.dialogue.prompt(human, self.tokenizer, room_for_prompt(self.model, longest))
        if self.dialogue.left_out > left_out:
            count, context = self.dialogue.left_out - left_out, context_length(self.model)
            note(f"the dialogue outgrew the context of {context:,} tokens: {count} oldest turn(s) left out")
        print(label, end="", flush=True)
        answer = stream(
            self.model,
            self.tokenizer,
            prompt.conversation,
            input_ids=prompt.input_ids,
            kv_cache=self.kv_cache,
            **self.sampling,
        )
        with on_ctrl_c(answer.stop), answer:
            for piece in answer:
                print(piece, end="", flush=True)
        print(flush=True)
        if answer.stopped and not answer.ended:
            note("stopped")
        elif not answer.ended:
            is_longest = answer.tokens >= longest
            context = f"the context of {context_length(self.model):,} tokens"
            note(f"cut off at {f'--max-new-tokens {longest}' if is_longest else context}")
        self.latest = answer
        if answer.text.strip():
            self.dialogue.add(Turn(human, answer.text))

    def system(self, text: str) -> None:
        if text:
            self.dialogue.system = text
        print(self.dialogue.system or default_system(self.tokenizer))

    def undo(self, _: str) -> None:
        note(f"taken back: {self._take_back().human}")

    def retry(self, _: str) -> None:
        before = self._take_back()
        count = len(self.dialogue.turns)
        try:
            self.say(before.human, YAYI_LABEL)
        finally:
            if len(self.dialogue.turns) == count:  # no other answer came
                self.dialogue.add(before)

    def _take_back(self) -> Turn:
        if not self.dialogue.turns:
            raise UserError("nothing was said yet")
        return self.dialogue.take_back()

    def reset(self, _: str) -> None:
        self.dialogue = Dialogue(self.dialogue.system)
        note("a new dialogue")

    def save(self, path: str) -> None:
        if not self.dialogue.turns:
            raise UserError("nothing was said yet")
        self.dialogue.save(path_of(path))
        note(f"saved {path}")

    def load(self, path: str) -> None:
        self.dialogue, waiting = load_dialogue(path_of(path))
        for turn in self.dialogue.turns:
            print(f"{HUMAN_LABEL}{turn.human}\n{YAYI_LABEL}{turn.yayi}")
        if waiting is not None:
            print(f"{HUMAN_LABEL}{waiting}")
            self.say(waiting, YAYI_LABEL)

    def stats(self, _: str) -> None:
        print(f"{len(self.dialogue.turns)} turn(s), {self.dialogue.left_out} left out")
        print(f"{len(self.kv_cache):,} of {context_length(self.model):,} tokens in memory")
        if self.latest and self.latest.tokens:
            latest = self.latest
            print(
                f"latest answer: {latest.tokens:,} tokens, the first after {latest.seconds_to_first:.2f} s, "
                f"{latest.tokens_per_second:.1f} tokens/s after that; {latest.recalled_tokens:,} of its "
                f"prompt's {latest.prompt_tokens:,} tokens were in memory"
            )
        print(f"the model takes {self.model.get_memory_footprint() / 1e6:,.1f} MB")


def path_of(path: str) -> Path:
    """The path that a command was given. Raises UserError where it was given none."""
    if not path:
        raise UserError("name a file")
    return Path(path)


COMMANDS: dict[str, Callable[[Talk, str], Any]] = {
    "help": lambda _, __: print(HELP),
    "system": Talk.system,
    "undo": Talk.undo,
    "retry": Talk.retry,
    "reset": Talk.reset,
    "save": Talk.save,
    "load": Talk.load,
    "stats": Talk.stats,
}


if __name__ == "__main__":
    run_command(main)
