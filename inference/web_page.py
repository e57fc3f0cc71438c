"""The web page: what stands on it, and what happens when it is used.

The browser has the messages, and sends all of them with each question; the server keeps for each browser
session what the model reads of them, as a Dialogue. The conversations are kept in the browser alone, by
web_page.js: each is written when a question was asked, and when its answer has ended.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency

from inference.answer_html import KATEX_DELIMITERS
from inference.dialogue import Dialogue
from inference.options import sampling_of
from inference.web_answers import NUMBERS, Answerer, Heard, language_of
from inference.web_messages import (
    Messages,
    kept,
    message,
    rating_of,
    shown,
    text_of,
    thumbs,
    tool_uses_of,
    what_was_read,
    with_question,
)
from inference.web_texts import TITLE, text_for
from training.common.errors import UserError

SCRIPT = Path(__file__).with_suffix(".js")
STYLE = Path(__file__).with_suffix(".css")

# For each sampling option the range and the step of its slider.
SLIDERS = {
    "max_new_tokens": (1, 4096, 1),
    "temperature": (0, 2, 0.05),
    "top_p": (0.01, 1, 0.01),
    "repetition_penalty": (1, 2, 0.01),
}

# The text box while an answer comes, and afterwards.
BUSY = {"interactive": False, "submit_btn": False, "stop_btn": True}
READY = {"interactive": True, "submit_btn": True, "stop_btn": False}
FOCUS = "() => document.querySelector('#typed textarea').focus()"


class Presets(NamedTuple):
    """Example questions, and system texts by the name that the page shows."""

    questions: list[str]
    systems: dict[str, str]


def page(answer: Answerer, heard: Heard | None, options: SimpleNamespace, presets: Presets) -> gr.Blocks:
    """The web page. heard: what thumbs and corrections are told to, if they are asked for at all."""
    text = gr.I18n()
    start = sampling_of(options)
    with gr.Blocks(title=TITLE, fill_height=True, analytics_enabled=False) as blocks:
        with gr.Sidebar(open=False, width=280) as sidebar:
            new = gr.Button(text("yayi_new"), size="md", variant="primary", elem_id="new")
            listing = gr.Radio([], label=text("yayi_conversations"), elem_id="conversations")
            delete = gr.Button(text("yayi_delete"), size="sm", elem_id="delete")
        gr.HTML(f"<h1>{TITLE}</h1>", elem_id="title")
        chatbot = gr.Chatbot(
            show_label=False,
            scale=1,
            editable="all",
            buttons=["copy"],
            render_markdown=False,  # web_messages does
            allow_tags=False,
            latex_delimiters=KATEX_DELIMITERS,
            examples=[{"text": question} for question in presets.questions] or None,
            placeholder=text("yayi_hello"),
            elem_id="chat",
        )
        box = gr.Textbox(
            show_label=False,
            placeholder=text("yayi_say"),
            max_lines=10,
            elem_id="typed",
            interactive=False,  # until the page shows the conversation that it goes on with
        )
        with gr.Accordion(text("yayi_settings"), open=False, elem_id="settings"):
            if presets.systems:
                preset = gr.Dropdown([*presets.systems], value=None, label=text("yayi_preset"))
            system = gr.Textbox(
                options.system, label=text("yayi_system"), placeholder=text("yayi_system_empty"), lines=2
            )
            with gr.Row():
                sliders = [
                    gr.Slider(
                        min(low, start[name]),
                        max(high, start[name]),
                        start[name],
                        step=step,
                        label=text(f"yayi_{name}"),
                        min_width=300,
                    )
                    for name, (low, high, step) in ((name, SLIDERS[name]) for name in NUMBERS)
                ]
        dialogue = gr.State(Dialogue)  # called for each session
        # What passes between the server and web_page.js: a conversation, its identity, and the titles of all.
        conversation, titles = gr.JSON(visible=False), gr.JSON(visible=False)
        identity = gr.Textbox(visible=False)

        # Private, because gradio describes the others to everyone: the system text too, without a password.
        #
        # The server closes a page's stream of queued events as soon as none is left, and gradio loses one
        # that is sent in this moment. So only what generates, or speaks to the person by gr.Info and
        # gr.Warning, is queued; and the model is asked after the list is shown, and not beside it.
        speaking = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        at_once = {**speaking, "queue": False}
        one_by_one = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        controls = [box, listing, new, delete]

        def keep(event: Dependency) -> Dependency:
            """Once the event has set `conversation`, the browser keeps it, and the list shows it."""
            return event.success(
                list_titles,
                [conversation, identity],
                listing,
                js="(conversation, identity) => [yayi.keep(conversation), identity]",
                **speaking,
            )

        def open_when(event: Dependency) -> Dependency:
            """Once the event has set `conversation`, the page shows it."""
            outputs = [chatbot, system, identity, listing, dialogue, box]
            return event.then(opener(options.system), conversation, outputs, **at_once)

        now = [chatbot, identity, system]
        asking = [chatbot, identity, conversation, *controls]
        answers = []
        for question in (
            box.submit(add_question, [*now, box], asking, **at_once),
            chatbot.example_select(ask_example, now, asking, **at_once),
            chatbot.retry(ask_again, now, asking, **at_once),
            chatbot.edit(changer(heard), now, asking, **speaking),
        ):
            inputs = [chatbot, dialogue, system, *sliders]
            answering = keep(question).success(answer, inputs, chatbot, **one_by_one)
            ended = answering.then(end, now, [conversation, *controls], **at_once)
            keep(ended).then(None, js=FOCUS)
            answers.append(answering)
        box.stop(None, cancels=answers)
        keep(chatbot.undo(take_back, now, [chatbot, conversation, box], **at_once))
        if heard:
            keep(chatbot.like(rater(heard), now, [chatbot, conversation], **speaking))
        if presets.systems:
            preset.input(lambda name: presets.systems.get(name, ""), preset, system, **at_once)

        open_when(new.click(None, None, conversation, js="() => yayi.read('')")).then(None, js=FOCUS)
        open_when(listing.input(None, listing, conversation, js="(id) => yayi.read(id)"))
        forgotten = delete.click(None, identity, [conversation, titles], js="(id) => yayi.forget(id)")
        loaded = blocks.load(None, None, [conversation, titles], js="() => [yayi.last(), yayi.list()]")
        for event in (forgotten, loaded):
            listed = open_when(event).then(list_titles, [titles, identity], listing, **speaking)
            listed.then(None, js=FOCUS)
        loaded.then(lambda titles: gr.Sidebar(open=titles["wide"]), titles, sidebar, **at_once)
    return blocks


def asked(messages: Messages, identity: str, system: str, **box: Any) -> list[Any]:
    """The updates with which a question goes to the model. identity: empty in a new conversation."""
    identity, off = identity or secrets.token_hex(8), {"interactive": False}
    return [
        with_thumbs(messages),
        identity,
        kept(messages, identity, system),
        gr.Textbox(**box, **BUSY),
        gr.Radio(**off),
        gr.Button(**off),
        gr.Button(**off),
    ]


def end(messages: Messages, identity: str, system: str) -> list[Any]:
    """The updates once the answer has ended: the conversation as it is to be kept, and the controls."""
    on = {"interactive": True}
    return [
        kept(messages, identity, system),
        gr.Textbox(**READY),
        gr.Radio(**on),
        gr.Button(**on),
        gr.Button(**on),
    ]


def with_thumbs(messages: Messages) -> gr.Chatbot:
    return gr.Chatbot(messages, feedback_value=thumbs(messages))


def add_question(messages: Messages, identity: str, system: str, text: str) -> list[Any]:
    return asked(with_question(messages, text), identity, system, value="")


def ask_example(messages: Messages, identity: str, system: str, example: gr.SelectData) -> list[Any]:
    return asked(with_question(messages, example.value["text"]), identity, system)


def ask_again(messages: Messages, identity: str, system: str, retry: gr.RetryData) -> list[Any]:
    return asked(messages[: retry.index + 1], identity, system)


def take_back(messages: Messages, identity: str, system: str, undo: gr.UndoData) -> list[Any]:
    """The updates without the last turn, whose question is to be typed anew."""
    before = messages[: undo.index]
    return [with_thumbs(before), kept(before, identity, system), text_of(messages[undo.index])]


def changer(heard: Heard | None) -> Callable[..., list[Any]]:
    """What happens when a message was edited: a question is asked anew, an answer is corrected."""

    def change(
        request: gr.Request, messages: Messages, identity: str, system: str, edit: gr.EditData
    ) -> list[Any]:
        before, after, text = messages[: edit.index], messages[edit.index + 1 :], edit.value
        role = messages[edit.index]["role"]
        as_it_was = {"role": role, "content": [{"type": "text", "text": edit.previous_value}]}
        if not text.strip():
            gr.Warning(text_for(language_of(request), "yayi_blank"))
            return asked([*before, as_it_was, *after], identity, system)
        if role == "user":
            return asked(with_question(before, text), identity, system)
        if text == text_of(as_it_was):
            return asked([*before, as_it_was, *after], identity, system)
        read, uses = what_was_read(as_it_was), tool_uses_of(as_it_was)
        corrected = [*before, message("assistant", text, was_read=read, tool_uses=uses)]
        if heard:
            tell(heard, language_of(request), corrected, system, None)
        return asked([*corrected, *after], identity, system)

    return change


def rater(heard: Heard) -> Callable[..., list[Any]]:
    """What happens when a thumb was pressed. Pressed a second time, it and its row in the file are removed.

    While one is there, the other is refused: the two rows would contradict each other.
    """

    def rate(
        request: gr.Request, messages: Messages, identity: str, system: str, like: gr.LikeData
    ) -> list[Any]:
        answer, language = messages[like.index], language_of(request)
        rating, before = {True: "good", False: "bad"}.get(like.liked, ""), rating_of(answer)
        rated = message("assistant", text_of(answer), rating, what_was_read(answer), tool_uses_of(answer))
        answered, after = [*messages[: like.index], rated], messages[like.index + 1 :]
        if rating and before:
            gr.Warning(text_for(language, "yayi_rated"))
            is_done = False
        elif rating:
            is_done = tell(heard, language, answered, system, rating == "good")
        else:
            is_done = tell(heard, language, answered, system, before == "good", is_taken_back=True)
        messages = [*answered, *after] if is_done else messages
        return [with_thumbs(messages), kept(messages, identity, system)]

    return rate


def tell(
    heard: Heard,
    language: str,
    messages: Messages,
    system: str,
    label: bool | None,
    *,
    is_taken_back: bool = False,
) -> bool:
    """Have feedback written or taken back, and say on the page whether it was. Returns that."""
    try:
        left_out = heard(messages, system, label, is_taken_back)
    except UserError as error:
        gr.Warning(text_for(language, "yayi_not_written", error=error))
        return False
    gr.Info(text_for(language, "yayi_taken_back" if is_taken_back else "yayi_written"))
    if left_out:
        gr.Info(text_for(language, "yayi_calls_left_out", count=left_out))
    return True


def opener(start_system: str) -> Callable[[dict[str, Any]], list[Any]]:
    """What shows a conversation that the browser has kept; a new one begins with `start_system`."""

    def opened(conversation: dict[str, Any]) -> list[Any]:
        identity, system = conversation["id"], conversation["system"]
        return [
            with_thumbs(shown(conversation)),
            start_system if system is None else system,
            identity,
            gr.Radio(value=identity or None),
            Dialogue(),
            gr.Textbox(**READY),
        ]

    return opened


def list_titles(request: gr.Request, titles: dict[str, Any], identity: str) -> gr.Radio:
    """The list of the conversations, and a note where the browser could not keep them all."""
    if titles["forgotten"]:
        gr.Warning(text_for(language_of(request), "yayi_forgotten", count=titles["forgotten"]))
    if not titles["kept"]:
        gr.Warning(text_for(language_of(request), "yayi_not_kept"))
    choices = [(title, each) for title, each in titles["titles"]]
    return gr.Radio(choices, value=identity if identity in [each for _, each in choices] else None)
