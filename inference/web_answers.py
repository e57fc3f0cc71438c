"""What the model does for the web page: it answers, and what a person says of an answer is written down."""

import math
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

import click
import gradio as gr
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from inference.dialogue import Dialogue
from inference.feedback import FeedbackFile
from inference.generation import room_for_prompt, stream
from inference.kv_cache import KVCache
from inference.options import SAMPLING
from inference.tool_loop import GOES_ON, MAX_CALLS, TOO_LONG, ToolLoop, before_calls
from inference.tool_process import ToolFile
from inference.web_messages import (
    Messages,
    WasRead,
    ends_in_question,
    follow,
    text_of,
    tool_uses_of,
    what_was_read,
    with_answer,
)
from inference.web_texts import text_for
from training.common.errors import UserError, first_line
from training.text.calls import split_answer
from training.text.turns import Conversation, ToolUse, Turn

# What `stream` takes each sampling option as: a browser sends 2.0 as 2.
NUMBERS: dict[str, Callable[[float], float]] = {
    name: int if isinstance(option.type, click.IntRange) else float for name, option in SAMPLING.items()
}

# A browser that has to show every token has no time left for its buttons.
REFRESH_S = 0.1

# answer(request, messages, dialogue, system, *values of NUMBERS)
Answerer = Callable[..., Iterator[Messages]]
# heard(messages up to the answer, system text of the page, label, whether that is taken back)
Heard = Callable[[Messages, str, bool | None, bool], int]

# What the page says of each of a ToolLoop's problems.
PROBLEMS = {GOES_ON: "yayi_goes_on", TOO_LONG: "yayi_results_too_long"}


def page_answerer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tools: ToolFile | None = None,
    max_calls: int = MAX_CALLS,
) -> Answerer:
    """A function that yields a dialogue's messages with the answer, again and again as it grows.

    tools: those that the model may call; all their calls are run, at most `max_calls` for a question.
    """
    kv_cache = KVCache()
    # An answer that was stopped may still be at its last token when gradio asks for the next.
    turn = threading.Lock()

    def answer(
        request: gr.Request, messages: Messages, dialogue: Dialogue, system: str, *sampling: float | None
    ) -> Iterator[Messages]:
        """Yield the messages, with as much of the answer to the last as there is.

        dialogue: the one of this browser session, which is updated from `messages`. sampling: the values of
        NUMBERS. Closing the iterator stops the model, and a tool.
        """
        yield messages
        if not ends_in_question(messages):
            return
        language = language_of(request)
        try:
            settings = numbers(sampling, language)
            room = room_for_prompt(model, settings["max_new_tokens"])
            dialogue.tools = tools.declarations if tools else ()
            human = follow(dialogue, messages, system)

            def fits(asked: Conversation) -> bool:
                return dialogue.fits(human, tokenizer, room, asked.turns[-1].tool_uses)

            loop = ToolLoop(Conversation((Turn(human),)), tools, fits=fits, max_calls=max_calls)
            while loop.is_open:
                uses, before = loop.conversation.turns[-1].tool_uses, dialogue.left_out
                prompt = dialogue.prompt(human, tokenizer, room, tool_uses=uses)
                if (count := dialogue.left_out) > before:
                    gr.Info(text_for(language, "yayi_left_out", count=count))
                was_read = WasRead(len(prompt.conversation.turns), system)
                encoded = {"input_ids": prompt.input_ids, "kv_cache": kv_cache}
                with turn, stream(model, tokenizer, prompt.conversation, **encoded, **settings) as pieces:
                    for text in growing(before_calls(pieces) if tools else pieces):
                        yield with_answer(messages, text, was_read, uses)
                if not pieces.ended:
                    gr.Info(text_for(language, "yayi_cut_off", tokens=pieces.tokens))
                text, calls = split_answer(pieces.text)
                for _ in loop.take(pieces.text):
                    yield with_answer(messages, "", was_read, (*uses, ToolUse(calls, (), text)))
            last = loop.conversation.turns[-1]
            yield (
                with_answer(messages, last.yayi, was_read, last.tool_uses) if last.yayi.strip() else messages
            )
            if loop.problem:
                gr.Warning(text_for(language, PROBLEMS[loop.problem]))
            elif not last.yayi.strip():
                gr.Warning(text_for(language, "yayi_empty"))
        except UserError as error:
            gr.Warning(text_for(language, "yayi_failed", error=error))
        except Exception as error:  # the page stays usable
            traceback.print_exc()
            gr.Warning(text_for(language, "yayi_failed", error=first_line(error)))

    return answer


def growing(pieces: Iterable[str]) -> Iterator[str]:
    """The text so far, as often as a browser can show it, and at the end."""
    text, shown_at = "", 0.0
    for piece in pieces:
        text += piece
        if time.monotonic() - shown_at > REFRESH_S:
            shown_at = time.monotonic()
            yield text
    yield text


def page_feedback(file: FeedbackFile, tools: ToolFile | None = None) -> Heard:
    """A function that writes to `file` what a person says about an answer."""

    def heard(messages: Messages, system: str, label: bool | None, is_taken_back: bool) -> int:
        """Append the dialogue up to its last message, the answer, as far as the model had read it.

        system: the system text, where the answer does not say with which it was made. label: whether it is a
        good answer; None where the person has corrected it. is_taken_back: remove the row instead. Returns
        how many calls of tools no row can hold.
        """
        dialogue = Dialogue(tools=tools.declarations if tools else ())
        answer = messages[-1]
        read = what_was_read(answer) or WasRead(len(messages), system)
        human = follow(dialogue, messages[:-1], read.system)
        answered = Turn(human, text_of(answer), tool_uses=tool_uses_of(answer))
        turns = (*dialogue.turns, answered)[-read.turns :]
        conversation = Conversation(turns, read.system, dialogue.tools)
        if not is_taken_back:
            return file.add(conversation, label=label)
        file.take_back(conversation, label=label)
        return 0

    return heard


def numbers(sampling: tuple[float | None, ...], language: str) -> dict[str, float]:
    """The values of NUMBERS by name. Raises UserError, in the language, where a field was left empty."""
    return {name: slider_value(name, value, language) for name, value in zip(NUMBERS, sampling, strict=True)}


def slider_value(name: str, value: float | None, language: str) -> float:
    """The value of one of NUMBERS, as `stream` takes it. Raises UserError as `numbers` does."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(text_for(language, "yayi_no_number", name=text_for(language, f"yayi_{name}")))
    return NUMBERS[name](value)


def language_of(request: gr.Request) -> str:
    """The languages that the browser asks for, as `text_for` takes them."""
    return request.headers.get("accept-language", "")
