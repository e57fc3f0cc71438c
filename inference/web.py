"""Talk to a fine-tuned model in a web page.

python -m inference.web --model checkpoints/demo
"""

import contextlib
import html
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import click
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from inference.dialogue import Dialogue
from inference.generation import room_for_prompt, stream
from inference.kv_cache import KVCache
from inference.options import load_from_options, model_options, sampling_of, sampling_options
from training.common.errors import UserError, first_line, run_command
from training.text.conversation import from_row

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
except ModuleNotFoundError:  # `serve` says what to do
    gr = None

TITLE = "雅意 YaYi"
USER_NAME = "yayi"

# For each sampling option the label, the range and the step of its slider.
SLIDERS = {
    "max_new_tokens": ("最长回答 / Max tokens", 1, 4096, 1),
    "temperature": ("温度 / Temperature", 0, 2, 0.05),
    "top_p": ("Top-p", 0.01, 1, 0.01),
    "repetition_penalty": ("重复惩罚 / Repetition", 1, 2, 0.01),
}

# The text box while an answer comes, and afterwards.
BUSY = {"interactive": False, "submit_btn": False, "stop_btn": True}
READY = {"interactive": True, "submit_btn": True, "stop_btn": False}
FOCUS = "() => document.querySelector('#typed textarea').focus()"

# A browser that has to show every token has no time left for its buttons.
REFRESH_S = 0.1

# gradio's messages: {"role": "user" | "assistant", "content": [{"type": "text", "text": ...}]}.
Messages = list[dict[str, Any]]


@click.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--system",
    default="",
    show_default=False,
    help="Who the assistant is.  [default: what the model was trained with]",
)
@sampling_options
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 means all.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, help="Port to listen on.")
def main(**options: Any) -> None:
    """Serve a web page to talk to a fine-tuned model, until Ctrl-C.

    The page starts with --system and the sampling options given here. If the environment has a YAYI_PASSWORD,
    the page asks for it, and for the user name yayi.
    """
    serve(SimpleNamespace(**options))


def serve(options: SimpleNamespace) -> None:
    """Load the model and serve the page, until the process is told to end."""
    if gr is None:
        raise UserError("the web page needs gradio: pip install -r requirements-web.txt")
    # In the environment, because everyone on the machine can read a command line.
    password = os.environ.get("YAYI_PASSWORD")
    with listen(options.host, options.port) as listening:
        if not password and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
            print(
                f"warning: whoever can reach {options.host} can use this page; "
                "set YAYI_PASSWORD, and it asks for that password",
                file=sys.stderr,
            )
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            page(page_answerer(*load_from_options(options)), options),
            path="/",
            auth=(USER_NAME, password) if password else None,
            auth_message=f"用户名 / User name: {USER_NAME}",
            css=".message-content { white-space: pre-wrap }",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
        )
        # Browsers are still connected at the end: that is not waited for, and is no error.
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"http://{options.host}:{options.port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        # Python's own way out would abort if the model was still answering in its thread.
        os._exit(130)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. It is opened before the model is loaded, which may take minutes."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another") from None


def page_answerer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Iterator[Messages]]:
    """A function that yields a dialogue's messages with the answer, again and again as it grows."""
    kv_cache = KVCache()
    # An answer that was stopped may still be at its last token when gradio asks for the next.
    turn = threading.Lock()

    def answer(messages: Messages, dialogue: Dialogue, system: str, *sampling: float) -> Iterator[Messages]:
        """Yield the messages, with as much of the answer to the last as there is.

        dialogue: the one of this browser session, which is updated from `messages`. sampling: the values of
        SLIDERS. Closing the iterator stops the model.
        """
        yield messages
        if not ends_in_question(messages):
            return
        settings = dict(zip(SLIDERS, sampling, strict=True))
        try:
            human = follow(dialogue, messages, system)
            before = dialogue.left_out
            prompt = dialogue.prompt(human, tokenizer, room_for_prompt(model, settings["max_new_tokens"]))
            if (count := dialogue.left_out) > before:
                gr.Info(f"对话过长，略去最早 {count} 轮 / Too long: without the {count} oldest turn(s)")
            encoded = {"input_ids": prompt.input_ids, "kv_cache": kv_cache}
            with turn, stream(model, tokenizer, prompt.conversation, **encoded, **settings) as pieces:
                shown_at = 0.0
                for _ in pieces:
                    if time.monotonic() - shown_at > REFRESH_S:
                        shown_at = time.monotonic()
                        yield with_answer(messages, pieces.text)
                yield with_answer(messages, pieces.text)
            if not pieces.ended:
                gr.Info(f"回答过长，已截断 / Cut off at {pieces.tokens} tokens")
        except UserError as error:
            gr.Warning(html.escape(str(error)))
        except Exception as error:  # the page stays usable
            traceback.print_exc()
            gr.Warning(f"出错了 / Failed: {html.escape(first_line(error))}")

    return answer


def page(answer: Callable[..., Iterator[Messages]], options: SimpleNamespace) -> "gr.Blocks":
    """The web page. The browser has the messages, and sends all of them with each question.

    The server keeps for each browser session what the model reads of them, as a Dialogue.
    """
    start = sampling_of(options)
    with gr.Blocks(title=TITLE, fill_height=True, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}")
        with gr.Sidebar(position="right", width=360, open=False):
            system = gr.Textbox(
                options.system,
                label="系统设定 / System",
                placeholder="留空即训练时的介绍 / Empty: the intro that training used",
                lines=4,
            )
            sliders = [
                gr.Slider(min(low, start[name]), max(high, start[name]), start[name], step=step, label=label)
                for name, (label, low, high, step) in SLIDERS.items()
            ]
        # Without a button to copy a message: it would copy what `message` makes of the text.
        chatbot = gr.Chatbot(
            show_label=False,
            scale=1,
            editable="user",
            buttons=[],
            render_markdown=False,
            latex_delimiters=[],
        )
        dialogue = gr.State(Dialogue)  # called for each session
        box = gr.Textbox(
            show_label=False,
            placeholder="说点什么 / Say something",
            max_lines=10,
            autofocus=True,
            elem_id="typed",
            **READY,
        )

        # Private, because gradio describes the others to everyone: the system text too, without a password.
        at_once = {"api_visibility": "private", "queue": False}
        one_by_one = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        answers = []
        for question in (
            box.submit(add_question, [chatbot, box], [chatbot, box], **at_once),
            chatbot.retry(ask_again, chatbot, [chatbot, box], **at_once),
            chatbot.edit(change_question, chatbot, [chatbot, box], **at_once),
        ):
            answering = question.success(answer, [chatbot, dialogue, system, *sliders], chatbot, **one_by_one)
            answering.then(lambda: gr.Textbox(**READY), None, box, **at_once).then(None, js=FOCUS)
            answers.append(answering)
        box.stop(None, cancels=answers)
        chatbot.undo(take_back, chatbot, [chatbot, box], **at_once)
        chatbot.clear(None, cancels=answers).then(lambda: [], None, chatbot, **at_once)
    return blocks


def add_question(messages: Messages, text: str) -> tuple[Messages, "gr.Textbox"]:
    """Add a question, in place of one without an answer; without a text, that one is asked again."""
    if text.strip():
        messages = [*(messages[:-1] if ends_in_question(messages) else messages), message("user", text)]
    return messages, gr.Textbox("", **BUSY)


def ask_again(messages: Messages, retry: "gr.RetryData") -> tuple[Messages, "gr.Textbox"]:
    return messages[: retry.index + 1], gr.Textbox(**BUSY)


def change_question(messages: Messages, edit: "gr.EditData") -> tuple[Messages, "gr.Textbox"]:
    return add_question(messages[: edit.index], html.unescape(edit.value))


def take_back(messages: Messages, undo: "gr.UndoData") -> tuple[Messages, str]:
    """The messages without the last turn, and the question of that turn, to be typed anew."""
    return messages[: undo.index], text_of(messages[undo.index])


def ends_in_question(messages: Messages) -> bool:
    """Whether the last message is the human's, and waits for an answer."""
    return bool(messages) and messages[-1]["role"] == "user"


def with_answer(messages: Messages, text: str) -> Messages:
    """The messages and an answer to the last of them; white space alone is no answer."""
    return [*messages, message("assistant", text)] if text.strip() else messages


def message(role: str, text: str) -> dict[str, Any]:
    """A message that shows `text` as it is, though gradio renders HTML; `text_of` is the inverse."""
    return {"role": role, "content": [{"type": "text", "text": html.escape(text, quote=False)}]}


def text_of(message: dict[str, Any]) -> str:
    return html.unescape("".join(part["text"] for part in message["content"]))


def follow(dialogue: Dialogue, messages: Messages, system: str) -> str:
    """Update `dialogue` to the messages before the last, which is a question. Returns the question's text."""
    texts = [{"role": message["role"], "content": text_of(message)} for message in messages]
    *turns, last = from_row({"system": system, "messages": texts}).turns
    dialogue.system = system
    dialogue.go_on_from(tuple(turns))
    return last.human


if __name__ == "__main__":
    run_command(main)
