"""A dialogue with a model in the terminal: saying something, and the commands."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prompt_toolkit.completion import Completer, PathCompleter, WordCompleter
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from inference.chat_tools import ChatTools, unless_empty
from inference.dialogue import Dialogue, Prompt, load_dialogue
from inference.feedback import FeedbackFile
from inference.generation import Answer, context_length, room_for_prompt, stream
from inference.kv_cache import KVCache
from inference.options import SAMPLING, parse_sampling
from inference.screen import Screen
from inference.terminal import Inputs, on_ctrl_c
from inference.tool_loop import CALL, ToolLoop, before_calls
from training.common.errors import UserError
from training.text.conversation import Conversation, Turn
from training.text.saved_template import default_system
from training.text.turns import ToolUse

HUMAN_LABEL = "Human: "
YAYI_LABEL = "YaYi: "
EMPTY_ANSWER = "the answer is empty"

HELP = """\
/system [TEXT]     say who the assistant is, or show it
/set [NAME VALUE]  change how it samples, as in /set temperature 0.7, or show that
/undo              take the last turn back
/retry             have the last turn answered again
/reset             start a new dialogue
/save FILE         write the dialogue into a new file, as a row to train on
/load FILE         go on with the dialogue of a file
/good              call the last answer a good one, in the file of --feedback
/bad               call it a bad one there
/fix [TEXT]        correct the last answer, and write that into the file of --feedback
/stats             tokens, speed, memory
/exit              leave, as Ctrl-D does
Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer or a tool, Tab completes a command.
A text between \"\"\" and \"\"\" may have many lines, and is sent as it is; one that begins with // is sent
with one /."""


class Talk:
    """A model, the dialogue with it, and the KV cache of that dialogue."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        system: str,
        sampling: dict[str, Any],
        *,
        screen: Screen,
        feedback: FeedbackFile | None = None,
        inputs: Inputs | None = None,
        tools: ChatTools | None = None,
        is_verbose: bool = False,
    ) -> None:
        """feedback: where ratings go. inputs: where a person edits a text. tools: those that the model may
        call. is_verbose: whether each answer is followed by its speed.
        """
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.screen, self.feedback, self.inputs, self.is_verbose = screen, feedback, inputs, is_verbose
        self.tools, self._declarations = tools, tools.file.declarations if tools else ()
        self.dialogue = Dialogue(system, tools=self._declarations)
        self.kv_cache = KVCache()
        self.latest: Answer | None = None
        self._rated: set[Conversation] = set()
        # What the model read for the last of these turns; /system may have changed the system text since.
        self._prompts: dict[tuple[Turn, ...], Conversation] = {}
        self._is_answer_empty = False

    def say(self, human: str, label: str = "", tool_uses: tuple[ToolUse, ...] = ()) -> None:
        """Print the answer as it comes, and add the turn, with a partial answer if Ctrl-C stopped it.

        tool_uses: calls that were made for it before, with their results.
        """
        prompt = self._prompt(human, tool_uses)
        loop = self._loop(prompt.conversation)
        self._answer(loop, prompt, label)
        while loop.is_open:
            prompt = self._prompt(human, loop.conversation.turns[-1].tool_uses)
            self._answer(loop, prompt, label)
        turn = loop.conversation.turns[-1]
        self._is_answer_empty = not (turn.yayi or "").strip()
        if self._is_answer_empty:
            self.screen.note(EMPTY_ANSWER)
        else:
            self.dialogue.add(turn)
            self._prompts[self.dialogue.turns] = prompt.conversation

    def _prompt(self, human: str, tool_uses: tuple[ToolUse, ...]) -> Prompt:
        """What the model reads next; says so where it no longer reads the oldest turns."""
        before = self.dialogue.left_out
        prompt = self.dialogue.prompt(human, self.tokenizer, self._room(), tool_uses=tool_uses)
        if self.dialogue.left_out > before:
            count, context = self.dialogue.left_out - before, context_length(self.model)
            self.screen.note(
                f"the dialogue outgrew the context of {context:,} tokens: {count} oldest turn(s) left out"
            )
        return prompt

    def _room(self) -> int:
        return room_for_prompt(self.model, self.sampling["max_new_tokens"])

    def _loop(self, prompt: Conversation) -> ToolLoop:
        if self.tools is None:
            return ToolLoop(prompt, None)

        def fits(conversation: Conversation) -> bool:
            turn = conversation.turns[-1]
            return self.dialogue.fits(turn.human, self.tokenizer, self._room(), turn.tool_uses)

        tools = self.tools
        return ToolLoop(prompt, tools.file, allow=tools.allow, fits=fits, max_calls=tools.max_calls)

    def _answer(self, loop: ToolLoop, prompt: Prompt, label: str) -> None:
        """Print an answer of the model as it comes, and run its calls. Ctrl-C stops the one or the other."""
        answer = stream(
            self.model,
            self.tokenizer,
            prompt.conversation,
            input_ids=prompt.input_ids,
            kv_cache=self.kv_cache,
            **self.sampling,
        )
        with on_ctrl_c(answer.stop), answer:
            pieces = unless_empty(before_calls(answer)) if self.tools else answer
            if pieces is not None:
                self.screen.answer(label, pieces)
        self.latest = answer
        is_stopped = answer.stopped and not answer.ended
        if is_stopped:
            self.screen.note("stopped")
        elif not answer.ended:
            longest = self.sampling["max_new_tokens"]
            is_longest = answer.tokens >= longest
            context = f"the context of {context_length(self.model):,} tokens"
            self.screen.note(f"cut off at {f'--max-new-tokens {longest}' if is_longest else context}")
        if self.is_verbose and answer.tokens:
            self.screen.note(speed(answer), "dim")
        if is_stopped and self.tools:
            loop.end(answer.text.partition(CALL)[0])
            return
        with on_ctrl_c(loop.stop):
            for _ in loop.take(answer.text):
                pass
        if self.tools and loop.is_open:
            self.tools.show_results(loop.conversation.turns[-1].tool_uses[-1])
        if loop.problem:
            self.screen.note(loop.problem)

    def system(self, text: str) -> None:
        if text:
            self.dialogue.system = text
        self.screen.line(self.dialogue.system or default_system(self.tokenizer))

    def set(self, text: str) -> None:
        name, _, value = text.replace("=", " ").partition(" ")
        if name:
            name = name.removeprefix("--").replace("-", "_")
            self.sampling[name] = parse_sampling(name, value.strip())
        self.screen.line("\n".join(f"{name} {value}" for name, value in self.sampling.items()))

    def undo(self, _: str) -> None:
        self.screen.note(f"taken back: {self._take_back().human}")

    def retry(self, _: str) -> None:
        before = self._take_back()
        count = len(self.dialogue.turns)
        try:
            self.say(before.human, YAYI_LABEL)
        finally:
            if len(self.dialogue.turns) == count:  # no other answer came
                self.dialogue.add(before)

    def _take_back(self) -> Turn:
        self._check_has_turns()
        self._is_answer_empty = False
        return self.dialogue.take_back()

    def _check_has_turns(self) -> None:
        if not self.dialogue.turns:
            raise UserError("nothing was said yet")

    def reset(self, _: str) -> None:
        self.dialogue, self._is_answer_empty = Dialogue(self.dialogue.system, tools=self._declarations), False
        self.screen.note("a new dialogue")

    def save(self, path: str) -> None:
        self._check_has_turns()
        left_out = self.dialogue.save(path_of(path))
        self.screen.note(f"saved {path}{without(left_out)}")

    def load(self, path: str) -> None:
        dialogue, waiting = load_dialogue(path_of(path))
        if dialogue.tools and not self._declarations:
            raise UserError(
                f"{path}: a dialogue with tools; start the chat with --tools FILE.py to go on with it"
            )
        if dialogue.tools and dialogue.tools != self._declarations:
            self.screen.note(
                "the dialogue had other tools; from here on, the model is offered those of --tools"
            )
        dialogue.tools = self._declarations
        self.dialogue = dialogue
        self._is_answer_empty = False
        self._prompts.clear()
        for turn in self.dialogue.turns:
            self._show(turn)
        if waiting is not None:
            self._show(waiting)
            self.say(waiting.human, YAYI_LABEL, waiting.tool_uses)

    def _show(self, turn: Turn) -> None:
        self.screen.labelled(HUMAN_LABEL, turn.human)
        for use in turn.tool_uses:
            if use.text:
                self.screen.labelled(YAYI_LABEL, use.text)
            if self.tools:
                self.tools.show(use)
        if turn.yayi is not None:
            self.screen.labelled(YAYI_LABEL, turn.yayi)

    def good(self, _: str) -> None:
        self._rate(self._what_was_read(), label=True)

    def bad(self, _: str) -> None:
        self._rate(self._what_was_read(), label=False)

    def fix(self, text: str) -> None:
        """Have the last answer corrected; the dialogue goes on with the corrected one."""
        read = self._what_was_read()
        last = read.turns[-1]
        if not text:
            if self.inputs is None or not self.inputs.has_editor:
                raise UserError("give the corrected answer: /fix TEXT")
            text = self.inputs.edit(YAYI_LABEL, last.yayi or "")
        if text == last.yayi:
            raise UserError("the answer is as it was; /good calls it a good one")
        fixed = replace(last, yayi=text)
        self._rate(replace(read, turns=(*read.turns[:-1], fixed)), label=None)
        self.dialogue.take_back()
        self.dialogue.add(fixed)
        self._prompts[self.dialogue.turns] = read

    def _what_was_read(self) -> Conversation:
        """What the model read for its last answer, and that answer."""
        if self.feedback is None:
            raise UserError("feedback goes into a file; start the chat with --feedback FILE")
        if self._is_answer_empty:
            raise UserError(EMPTY_ANSWER)
        self._check_has_turns()
        turns = self.dialogue.turns
        if turns in self._prompts:
            prompt = self._prompts[turns]
            return replace(prompt, turns=(*prompt.turns[:-1], turns[-1]))
        return Conversation(turns[self.dialogue.left_out :], self.dialogue.system, self.dialogue.tools)

    def _rate(self, conversation: Conversation, label: bool | None) -> None:
        assert self.feedback
        path = self.feedback.path
        if conversation in self._rated:
            raise UserError(f"that was said already; take its line out of {path} to say something else")
        left_out = self.feedback.add(conversation, label=label)
        self._rated.add(conversation)
        self.screen.note(f"written to {path}{without(left_out)}")

    def stats(self, _: str) -> None:
        lines = [
            f"{len(self.dialogue.turns)} turn(s), {self.dialogue.left_out} left out",
            f"{len(self.kv_cache):,} of {context_length(self.model):,} tokens in memory",
        ]
        if self.latest and self.latest.tokens:
            latest = self.latest
            lines.append(
                f"latest answer: {speed(latest)}; {latest.recalled_tokens:,} of its prompt's "
                f"{latest.prompt_tokens:,} tokens were in memory"
            )
        lines.append(f"the model takes {self.model.get_memory_footprint() / 1e6:,.1f} MB")
        self.screen.line("\n".join(lines))

    def help(self, _: str) -> None:
        self.screen.line(HELP)


def speed(answer: Answer) -> str:
    """How long an answer is, and how fast it came."""
    return (
        f"{answer.tokens:,} tokens, the first after {answer.seconds_to_first:.2f} s, "
        f"{answer.tokens_per_second:.1f} tokens/s after that"
    )


def without(left_out: int) -> str:
    """What is said where calls of a dialogue are not in its row."""
    return f", without {left_out} call(s) that no row can hold" if left_out else ""


def path_of(path: str) -> Path:
    """The path that a command was given. Raises UserError where it was given none."""
    if not path:
        raise UserError("name a file")
    return Path(path)


COMMANDS: dict[str, Callable[[Talk, str], Any]] = {
    "help": Talk.help,
    "system": Talk.system,
    "set": Talk.set,
    "undo": Talk.undo,
    "retry": Talk.retry,
    "reset": Talk.reset,
    "save": Talk.save,
    "load": Talk.load,
    "good": Talk.good,
    "bad": Talk.bad,
    "fix": Talk.fix,
    "stats": Talk.stats,
}

# What Tab offers behind a command.
ARGUMENTS: dict[str, Completer] = {
    "set": WordCompleter(list(SAMPLING)),
    "save": PathCompleter(expanduser=True),
    "load": PathCompleter(expanduser=True),
}
