"""What an OpenAI-compatible server sends for a question: an answer, a refusal, or a failure.

200 {"choices": [{"message": {"content": "..."}, "finish_reason": "stop"}]}      an answer
200 {"error": {"code": 429, "message": "..."}}                                   as if that were the status
400 {"error": {"code": "content_filter", "message": "..."}}                      the question is refused
503 <html>...                                                                    a failure: to be tried again
"""

import json
from typing import Any, NamedTuple

# Statuses that may pass: a time-out, a conflict, too many requests; and all from 500.
PASSING_STATUSES = (408, 409, 425, 429)

# Statuses that say that the key, the model or the URL is wrong, whatever is asked.
STOPPING_STATUSES = (401, 404, 405)

# What the error of an account without money has in it, though its status is that of too many requests.
QUOTA = ("insufficient_quota", "your current quota", "insufficient balance", "欠费", "余额不足")

# What is said of a page that came instead of JSON, and what it means where a URL has led to it.
HTML = "HTML instead of JSON"
IS_NO_API = f"{HTML}; the URL of an OpenAI-compatible server mostly ends in /v1"

# Reasons for which an answer ends before the model has ended it.
CUT_OFF = ("length", "max_tokens")

# The most characters of a server's message that are shown.
MESSAGE_LENGTH = 200


class Completion(NamedTuple):
    """What a model said: its text, whether it ended by itself, and its calls of tools, as they were sent."""

    answer: str
    ended: bool
    tool_calls: list[Any]


class RefusedQuestion(Exception):
    """The server does not answer this question, and would not if it were asked again."""


class FailedRequest(Exception):
    """There was no answer, but there may be one when the question is asked again.

    wait_s: the seconds after which the server wants to be asked again. nobody_is_there: whether there was
    not even a connection.
    """

    def __init__(self, message: str, wait_s: float = 0, nobody_is_there: bool = False) -> None:
        super().__init__(message)
        self.wait_s, self.nobody_is_there = wait_s, nobody_is_there


class UnusableEndpoint(Exception):
    """The key, the model or the URL is wrong, or nobody is there: no question will be answered."""


def read_completion(body: str) -> Completion:
    """What a response with the status 200 says.

    Raises RefusedQuestion, FailedRequest or UnusableEndpoint for a body that is no answer.
    """
    try:
        completion = json.loads(body)
    except ValueError:
        message = _message_of(body)
        raise FailedRequest(IS_NO_API if message == HTML else message) from None
    if not isinstance(completion, dict):
        raise FailedRequest(f"neither an answer nor an error: {_in_unicode(body.strip())[:MESSAGE_LENGTH]}")
    if error := completion.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        raise failure_of(int(code) if str(code).isdecimal() else 400, body)
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        answer, refusal = _text_of(message.get("content")), message.get("refusal")
        tool_calls = [*(message.get("tool_calls") or ())]
        if not tool_calls and (older_form := message.get("function_call")):
            tool_calls = [{"type": "function", "function": older_form}]
    except (LookupError, TypeError, AttributeError):
        raise FailedRequest(
            f"neither an answer nor an error: {_in_unicode(body.strip())[:MESSAGE_LENGTH]}"
        ) from None
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise RefusedQuestion("content filter")
    if refusal and not answer:
        raise RefusedQuestion(_in_unicode(str(refusal))[:MESSAGE_LENGTH])
    return Completion(answer, reason not in CUT_OFF, tool_calls)


def failure_of(status: int, body: str, wait_s: float = 0) -> Exception:
    """What a response with an error's status means for the run.

    wait_s: the seconds after which the server wants to be asked again.
    """
    message = _message_of(body)
    has_no_money = status in (403, 429) and any(sign in body.lower() for sign in QUOTA)
    if status == 402 or has_no_money:
        return RefusedQuestion(f"{status}: {message}")
    if status in STOPPING_STATUSES:
        if message == HTML and status != 401:
            message = IS_NO_API
        key = "; the key is in OPENAI_API_KEY" if status == 401 else ""
        return UnusableEndpoint(f"{status}: {message}{key}")
    if status in PASSING_STATUSES or status >= 500:
        return FailedRequest(f"{status}: {message}", wait_s)
    return RefusedQuestion(f"{status}: {message}")


def _text_of(content: Any) -> str:
    """The text of a message: a string, a list of parts, or null."""
    if isinstance(content, list):
        content = "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError("content is neither text nor a list of parts")
    return _in_unicode(content or "")


def _in_unicode(text: str) -> str:
    """A text that can be written as UTF-8: half of an emoji, cut in two, becomes "?"."""
    return text.encode("utf-8", "replace").decode()


def _message_of(body: str) -> str:
    """What a body says of an error, on one line."""
    if body.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
        return HTML
    try:
        found = json.loads(body)
    except ValueError:
        found = body
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return " ".join(_in_unicode(text).split())[:MESSAGE_LENGTH] or "an empty response"
