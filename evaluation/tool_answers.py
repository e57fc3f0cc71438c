"""Answers to questions for tools: the model calls, reads what that returns, and goes on to its answer.

A call is run by the file of --tools. Without such a file, a call that is right returns what its row says, and
any other an error.

The entry of an answer in the journal is {"row", "calls", "results", "answer", "ended"}: the JSON text of each
call, in their order, and what each returned.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evaluation.completions import Completion
from evaluation.tool_questions import ToolQuestion
from evaluation.tool_scores import is_same_call
from inference.batch_answers import answer_batch
from inference.generation import context_length, generation_config
from inference.tool_loop import GOES_ON, LOOK_S, MAX_CALLS, TOO_LONG, ToolLoop
from inference.tool_process import ToolFile
from training.text.calls import Call, answer_with_calls, call_text, read_call, split_answer
from training.text.conversation import Conversation
from training.text.encoding import encode_prompt
from training.text.saved_template import knows_tools
from training.text.written import chat_messages, tool_objects


class RecordedTools:
    """The calls of a question that are right, with the results that its row has; others have none."""

    def __init__(self, question: ToolQuestion) -> None:
        self._left = [
            (read_call(call), result)
            for use in question.uses
            for call, result in zip(use.calls, use.results, strict=False)  # the last calls may have none
        ]
        self._given: list[tuple[Call, str]] = []

    def read(self, text: str) -> Call:
        """The call in what a model says. Raises ValueError where it is none that has a result."""
        call = read_call(text)
        if not any(is_same_call(call, other) for other, _ in (*self._left, *self._given)):
            raise ValueError("this call has no result")
        return call

    @contextlib.contextmanager
    def start(self, call: Call) -> Iterator["RecordedResult"]:
        """The result of a call. A call that is made twice has the first result first, if there are two."""
        at = next((at for at, (other, _) in enumerate(self._left) if is_same_call(call, other)), None)
        if at is not None:
            self._given.insert(0, self._left.pop(at))
        yield RecordedResult(next(result for other, result in self._given if is_same_call(call, other)))


class RecordedResult:
    """A call that has ended."""

    def __init__(self, text: str) -> None:
        self._text = text

    def is_running(self, patience_s: float) -> bool:
        return False

    def stop(self) -> None:
        pass

    def result(self) -> str:
        return self._text


class AskedQuestion:
    """A question on its way: what the model has said for it, and what its calls returned.

    entry: that of the journal, without its row, once the question is answered.
    """

    def __init__(
        self,
        question: ToolQuestion,
        tools: ToolFile | None,
        fits: Callable[[Conversation], bool] = lambda prompt: True,
    ) -> None:
        """tools: the file of --tools, if there is one. fits: whether the model can read a prompt."""
        self.text = question.text
        self.entry: dict[str, Any] | None = None
        self._last_call = len(question.expected) if question.ends_with_calls and not tools else None
        self._loop = ToolLoop(
            question.conversation,
            tools or RecordedTools(question),
            fits=fits,
            max_calls=MAX_CALLS + len(question.expected),
        )

    @property
    def prompt(self) -> Conversation:
        """What the model is to answer next."""
        return self._loop.conversation

    def hear(self, answer: str, ended: bool) -> Iterator[None]:
        """Run the calls of an answer, as `ToolLoop.take` does, unless it was cut off."""
        if not ended:
            self.end(*split_answer(answer), ended=False)
            return
        yield from self._loop.take(answer)
        if not self._loop.is_open:
            not_run = split_answer(answer)[1] if self._loop.problem == GOES_ON else ()
            self.end(self.prompt.turns[-1].yayi or "", not_run, self._loop.problem != TOO_LONG)
        elif self._last_call and len(self._calls()) >= self._last_call:
            self.end("")

    def end(self, answer: str, more_calls: Sequence[str] = (), ended: bool = True) -> None:
        """Let this be the answer. more_calls: calls in it, which are not run."""
        results = [result for use in self.prompt.turns[-1].tool_uses for result in use.results]
        calls = [*self._calls(), *more_calls]
        self.entry = {"calls": calls, "results": results, "answer": answer, "ended": ended}

    def _calls(self) -> list[str]:
        return [call for use in self.prompt.turns[-1].tool_uses for call in use.calls]


class ServedQuestion(AskedQuestion):
    """A question for a server, which says by `tool_calls` what the model calls."""

    def request(self) -> dict[str, Any]:
        """What the next request has beside the model and how to sample."""
        messages = [
            {name: value for name, value in message.items() if name != "weight"}  # whether it is learnt
            for message in chat_messages(self.prompt)
        ]
        tools = tool_objects(self.prompt)
        return {"messages": messages} | ({"tools": tools} if tools else {})

    async def take(self, completion: Completion) -> dict[str, Any] | None:
        """The entry, or None where there is another request to send.

        A call whose arguments are no JSON cannot be sent back, and ends the question.
        """
        calls = [served_call(call) for call in completion.tool_calls]
        for _ in self.hear(answer_with_calls(completion.answer.strip(), calls), completion.ended):
            await asyncio.sleep(LOOK_S)
        if self.entry is None:
            try:
                self.request()
            except ValueError:
                self.end("")
        return self.entry


def served_call(call: Any) -> str:
    """The JSON text of a call that a server sends; one that is no call stays one that is none."""
    try:
        function = call["function"]
        return call_text(function["name"], json.loads(function["arguments"] or "{}"))
    except (LookupError, TypeError, ValueError, RecursionError):
        return json.dumps(call).replace("</", "<\\/")


def model_answerer_with_tools(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[ToolQuestion],
    tools: ToolFile | None,
    max_new_tokens: int,
) -> Callable[[list[int]], list[dict[str, Any]]]:
    """A function from the indices of questions to the entries of their greedy answers, for `work_through`.

    questions: as of `readable`. tools: the file of --tools, if there is one.
    """
    context = context_length(model)
    config = generation_config(
        tokenizer, max_new_tokens=max_new_tokens, temperature=0, repetition_penalty=1.0
    )

    def fits(prompt: Conversation) -> bool:
        return len(encode_prompt(prompt, tokenizer)) < context

    def answer(rows: list[int]) -> list[dict[str, Any]]:
        asked = {row: AskedQuestion(questions[row], tools, fits) for row in rows}
        while waiting := [one for one in asked.values() if one.entry is None]:
            prompts = [encode_prompt(one.prompt, tokenizer) for one in waiting]
            for one, given in zip(waiting, answer_batch(model, tokenizer, prompts, config), strict=True):
                if knows_tools(tokenizer):
                    for _ in one.hear(given.answer, given.ended):
                        pass  # it waits for a tool
                else:
                    one.end(*split_answer(given.answer), given.ended)
        return [{"row": row} | (one.entry or {}) for row, one in asked.items()]

    return answer


def readable(questions: Sequence[ToolQuestion], tokenizer: PreTrainedTokenizerFast) -> list[ToolQuestion]:
    """The questions as the model of this tokenizer can read them: without tools where it was taught none."""
    if knows_tools(tokenizer):
        return list(questions)
    return [one._replace(conversation=_without_tools(one.conversation)) for one in questions]


def _without_tools(conversation: Conversation) -> Conversation:
    turns = tuple(replace(turn, tool_uses=()) for turn in conversation.turns)
    return replace(conversation, turns=turns, tools=())
