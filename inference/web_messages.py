"""The messages of the web page: gradio's, which hold what is shown, and hidden in it the text that was said.

{"role": "assistant", "content": [{"type": "text", "text":
    '<div class="said good" data-turns="1" data-system="You are a judge."><pre>\n**Yes**</pre>'
    '<p><strong>Yes</strong></p>\n</div>'}]}

The text is what the model reads, what is copied, corrected and kept. An answer also holds its rating, and
what the model read for it. Behind the text stand the calls of tools that the answer has, if any: hidden as
JSON, which the model reads, and folded, for a person to open.

<div class="said"><pre>\\n7.74元。</pre>
<pre class="calls">\\n[{"text": "", "calls": ["..."], "results": ["7.74"]}]</pre>
<details class="call"><summary>exchange_rate {"currency": "欧元"}</summary><pre>7.74</pre></details>
<p>7.74元。</p></div>
"""

import html
import json
import re
from dataclasses import replace
from typing import Any, NamedTuple

from inference.answer_html import answer_html
from inference.dialogue import Dialogue
from inference.tool_loop import shown_call
from training.text.conversation import from_row
from training.text.turns import ToolUse

Messages = list[dict[str, Any]]

SAID = re.compile(
    r'<div class="said ?(|good|bad)"(?: data-turns="(\d+)" data-system="([^"]*)")?><pre>\n([^<]*)</pre>'
)
CALLS = re.compile(r'<pre class="calls">\n([^<]*)</pre>')
RATINGS = {"good": "Like", "bad": "Dislike"}  # gradio's names of the thumbs


class WasRead(NamedTuple):
    """What the model read for an answer: how many turns, with the answer's own, and the system text."""

    turns: int
    system: str


def message(
    role: str,
    text: str,
    rating: str = "",
    was_read: WasRead | None = None,
    tool_uses: tuple[ToolUse, ...] = (),
) -> dict[str, Any]:
    """A message that shows a user's text as it is, and an assistant's as Markdown.

    rating: "good" or "bad" where a person called an answer that. was_read: None where it is not known.
    tool_uses: the calls before an answer; those that still run have no results.
    """
    shown = "".join(map(use_html, tool_uses)) + (answer_html(text) if role == "assistant" else "")
    # A browser leaves out the newline after <pre>, and KaTeX finds no formula in there.
    said = f"<pre>\n{html.escape(text, quote=False)}</pre>"
    if tool_uses:
        calls = json.dumps([written_use(use) for use in tool_uses], ensure_ascii=False)
        said += f'<pre class="calls">\n{html.escape(calls, quote=False)}</pre>'
    data = f' data-turns="{was_read.turns}" data-system="{html.escape(was_read.system)}"' if was_read else ""
    content = f'<div class="{f"said {rating}".strip()}"{data}>{said}{shown}</div>'
    return {"role": role, "content": [{"type": "text", "text": content}]}


def text_of(message: dict[str, Any]) -> str:
    """The text that was said. What a person has just edited is nothing but the text."""
    content = _content(message)
    said = SAID.match(content)
    return html.unescape(said[4]) if said else content


def use_html(use: ToolUse) -> str:
    """What is said before calls, and each call with its result, folded."""
    folded = ""
    for number, call in enumerate(use.calls):
        result = html.escape(use.results[number]) if use.results else "…"
        folded += (
            f'<details class="call"><summary>{html.escape(shown_call(call))}</summary>'
            f"<pre>\n{result}</pre></details>"
        )
    return answer_html(use.text) + folded


def tool_uses_of(message: dict[str, Any]) -> tuple[ToolUse, ...]:
    """The calls of an answer that have their results."""
    content = _content(message)
    said = SAID.match(content)
    calls = CALLS.match(content, said.end()) if said else None
    return read_uses(json.loads(html.unescape(calls[1]))) if calls else ()


def written_use(use: ToolUse) -> dict[str, Any]:
    """Calls as JSON; `read_uses` is the inverse."""
    return {"text": use.text, "calls": use.calls, "results": use.results}


def read_uses(written: list[dict[str, Any]]) -> tuple[ToolUse, ...]:
    return tuple(
        ToolUse(tuple(use["calls"]), tuple(use["results"]), use["text"]) for use in written if use["results"]
    )


def rating_of(message: dict[str, Any]) -> str:
    said = SAID.match(_content(message))
    return said[1] if said else ""


def what_was_read(message: dict[str, Any]) -> WasRead | None:
    """What the model read for an answer; None for a message that does not hold it."""
    said = SAID.match(_content(message))
    return WasRead(int(said[2]), html.unescape(said[3])) if said and said[2] else None


def thumbs(messages: Messages) -> list[str | None]:
    """The thumb of each answer, in gradio's words."""
    return [RATINGS.get(rating_of(message)) for message in messages if message["role"] == "assistant"]


def _content(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"])


def ends_in_question(messages: Messages) -> bool:
    """Whether the last message is the human's, and waits for an answer."""
    return bool(messages) and messages[-1]["role"] == "user"


def with_question(messages: Messages, text: str) -> Messages:
    """Add a question, in place of one without an answer; without a text, that one is asked again."""
    if not text.strip():
        return messages
    return [*(messages[:-1] if ends_in_question(messages) else messages), message("user", text)]


def with_answer(
    messages: Messages, text: str, was_read: WasRead | None = None, tool_uses: tuple[ToolUse, ...] = ()
) -> Messages:
    """The messages and an answer to the last of them; white space alone is no answer, unless it has calls."""
    if not text.strip() and not tool_uses:
        return messages
    return [*messages, message("assistant", text, was_read=was_read, tool_uses=tool_uses)]


def follow(dialogue: Dialogue, messages: Messages, system: str) -> str:
    """Update `dialogue` to the messages before the last, which is a question. Returns the question's text.

    A question whose answer was stopped after calls, before its text began, is not read.
    """
    read: Messages = []
    for one in messages:
        if one["role"] == "assistant" and not text_of(one).strip():
            read.pop()
        else:
            read.append(one)
    texts = [{"role": one["role"], "content": text_of(one)} for one in read]
    *turns, last = from_row({"system": system, "messages": texts}).turns
    uses = [tool_uses_of(one) for one in read if one["role"] == "assistant"]
    dialogue.system = system
    dialogue.go_on_from(
        tuple(replace(turn, tool_uses=of_turn) for turn, of_turn in zip(turns, uses, strict=True))
    )
    return last.human


def kept(messages: Messages, identity: str, system: str) -> dict[str, Any]:
    """A conversation as the browser keeps it; `shown` is the inverse."""
    said: list[dict[str, Any]] = [
        {
            "role": m["role"],
            "text": text_of(m),
            "rating": rating_of(m),
            "read": read._asdict() if (read := what_was_read(m)) else None,
        }
        | ({"calls": list(map(written_use, uses))} if (uses := tool_uses_of(m)) else {})
        for m in messages
    ]
    title = " ".join(said[0]["text"].split())[:40] if said else ""
    return {"id": identity, "title": title, "system": system, "messages": said}


def shown(conversation: dict[str, Any]) -> Messages:
    """The messages of a conversation; one that an earlier version kept does not say what was read."""
    return [
        message(
            said["role"],
            said["text"],
            said["rating"],
            WasRead(**read) if (read := said.get("read")) else None,
            read_uses(said.get("calls", [])),
        )
        for said in conversation["messages"]
    ]
