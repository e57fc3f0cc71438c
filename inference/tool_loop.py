"""A question that is answered with tools: an answer, its calls, their results, and so on to the last answer.

tools = load_tools("data/tools_example.py")
asked = Conversation((Turn("欧元的汇率是多少？"),), tools=tools.declarations)
answered = answer_with_tools(asked, lambda prompt: reply(model, tokenizer, prompt), tools)
answered.turns[-1]                                         Turn(human, yayi, tool_uses=(ToolUse(...), ...))
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from training.text.calls import Call, error_text, json_text, read_call, split_answer
from training.text.turns import Conversation, ToolUse

# What begins a call in an answer.
CALL = "<tool_call>"

# How many calls a question may have. The sample data has three.
MAX_CALLS = 8

# Seconds between two looks at whether a tool has ended.
LOOK_S = 0.1

REFUSED = "the user does not allow this call"
GOES_ON = "the model goes on calling tools, and these calls were not run"
TOO_LONG = "the results of the calls are longer than what the model can read"
TOO_MANY = "no more calls can be made for this question, and this one was not; answer it"


class RunningCall(Protocol):
    """A call of a tool, such as a `ToolProcess`."""

    def is_running(self, patience_s: float) -> bool: ...

    def stop(self) -> None: ...

    def result(self) -> str: ...


class Tools(Protocol):
    """What reads and runs calls: a `ToolFile`, or what has their results already."""

    def read(self, text: str) -> Call: ...

    def start(self, call: Call) -> AbstractContextManager[RunningCall]: ...


class ToolLoop:
    """A question that is being answered.

    conversation: what was said. While `is_open`, it is the prompt of the next answer, which goes to `take`;
    then its last turn is answered. problem: why the model gave no last answer, or "". What it said before its
    last calls is the answer then, and may be empty.
    """

    def __init__(
        self,
        prompt: Conversation,
        tools: Tools | None,
        *,
        allow: Callable[[Call], bool] = lambda call: True,
        fits: Callable[[Conversation], bool] = lambda prompt: True,
        max_calls: int = MAX_CALLS,
    ) -> None:
        """tools: None where there are none; what looks like a call is text then. allow: whether a call may be
        run. fits: whether the model can read a prompt; results that make it too long are replaced. max_calls:
        how many calls are read, those that cannot be run included.
        """
        self.conversation, self.is_open, self.problem = prompt, True, ""
        self._tools, self._allow, self._fits, self._calls_left = tools, allow, fits, max_calls
        self._is_told_to_answer = False
        self._stop = lambda: None

    def take(self, answer: str) -> Generator[None, None, None]:
        """Run the calls of an answer, or end with it where it has none.

        Iterating does that, and yields again and again while a tool runs; closing the iterator ends it.
        """
        text, calls = split_answer(answer) if self._tools else (answer, ())
        if not calls or self._is_told_to_answer:
            self.end(text)
            self.problem = GOES_ON if calls else ""
            return
        results = []
        for call in calls:
            results.append((yield from self._result(call)))
        self._add(ToolUse(calls, tuple(results), text))

    def end(self, text: str) -> None:
        """Let the question be answered by this text."""
        *earlier, turn = self.conversation.turns
        self.conversation = replace(self.conversation, turns=(*earlier, replace(turn, yayi=text)))
        self.is_open = False

    def stop(self) -> None:
        """End the tool that is running, if any. It may be called from another thread, or for a signal."""
        self._stop()

    def _result(self, text: str) -> Generator[None, None, str]:
        """What a call returns, or why it is not run."""
        if not self._calls_left:
            self._is_told_to_answer = True
            return error_text(TOO_MANY)
        self._calls_left -= 1
        assert self._tools
        try:
            call = self._tools.read(text)
        except ValueError as error:
            return error_text(str(error))
        if not self._allow(call):
            return error_text(REFUSED)
        with self._tools.start(call) as process:
            self._stop = process.stop
            while process.is_running(LOOK_S):
                yield
            self._stop = lambda: None
            return process.result()

    def _add(self, use: ToolUse) -> None:
        """Add calls with their results. Where the model cannot read them all, the longest are replaced."""
        *earlier, turn = self.conversation.turns

        def with_results(results: Sequence[str]) -> Conversation:
            uses = (*turn.tool_uses, replace(use, results=tuple(results)))
            return replace(self.conversation, turns=(*earlier, replace(turn, tool_uses=uses)))

        results = list(use.results)
        for longest in sorted(range(len(results)), key=lambda index: -len(results[index])):
            too_long = error_text(f"a result of {len(results[longest]):,} characters is too long")
            if len(too_long) >= len(results[longest]) or self._fits(with_results(results)):
                break
            results[longest] = too_long
        self.conversation = with_results(results)
        if not self._fits(self.conversation):
            self.end(use.text)
            self.problem = TOO_LONG


def answer_with_tools(
    prompt: Conversation,
    generate: Callable[[Conversation], str],
    tools: Tools,
    *,
    allow: Callable[[Call], bool] = lambda call: True,
    fits: Callable[[Conversation], bool] = lambda prompt: True,
    max_calls: int = MAX_CALLS,
) -> Conversation:
    """The conversation with the answer to its last turn, and the calls that were made for it.

    generate: gives the model's answer to a prompt. The other arguments are those of `ToolLoop`.
    """
    loop = ToolLoop(prompt, tools, allow=allow, fits=fits, max_calls=max_calls)
    while loop.is_open:
        for _ in loop.take(generate(loop.conversation)):
            pass
    return loop.conversation


def before_calls(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of an answer up to its first call. The others are taken, too, and not yielded."""
    held_back, is_call = "", False
    for piece in pieces:
        if is_call:
            continue
        text, found, _ = (held_back + piece).partition(CALL)
        is_call = bool(found)
        begun = 0 if found else next(n for n in range(len(CALL), -1, -1) if text.endswith(CALL[:n]))
        held_back = text[len(text) - begun :]
        if shown := text.removesuffix(held_back):
            yield shown
    if not is_call and held_back:
        yield held_back


def shown_call(text: str) -> str:
    """A call as a person reads it: exchange_rate {"currency": "欧元"}; what is no call as it is."""
    try:
        call = read_call(text)
    except ValueError:
        return text
    return f"{call.name} {json_text(call.arguments)}"
