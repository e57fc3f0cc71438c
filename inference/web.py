"""Talk to a fine-tuned model in a web page.

python -m inference.web --model checkpoints/demo
python -m inference.web --model checkpoints/demo --tools data/tools_example.py
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from inference.feedback import FeedbackFile
from inference.options import (
    check_knows_tools,
    load_from_options,
    load_tools_from_options,
    model_options,
    sampling_options,
    tool_options,
)
from training.common.command_line import UserPath
from training.common.errors import UserError, run_command

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI, Request, Response
except ModuleNotFoundError:  # `serve` says what to do
    gr = None
else:
    from inference.answer_html import highlight_css
    from inference.web_answers import page_answerer, page_feedback
    from inference.web_page import SCRIPT, STYLE, Presets, page
    from inference.web_texts import translations

USER_NAME = "yayi"

# How long the answer to a wrong password takes.
WRONG_PASSWORD_S = 2

# Whatever an answer may contain, a browser asks no other server for anything.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


@click.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--system",
    default="",
    show_default=False,
    help="Who the assistant is.  [default: what the model was trained with]",
)
@sampling_options
@tool_options
@click.option(
    "--presets",
    type=UserPath(path_type=Path),
    help='File with example questions and system texts: {"questions": ["..."], "systems": {"name": "..."}}.',
)
@click.option(
    "--feedback",
    type=UserPath(path_type=Path),
    help="File to which rated and corrected answers are appended, as rows to train on.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 means all.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, help="Port to listen on.")
@click.option(
    "--root-path",
    default="",
    show_default=False,
    help="Path under which a proxy serves the page, such as /yayi.  [default: none]",
)
def main(**options: Any) -> None:
    """Serve a web page to talk to a fine-tuned model, until Ctrl-C.

    The page starts with --system and the sampling options given here. If the environment has a YAYI_PASSWORD,
    the page asks for it, and for the user name yayi.

    With --tools, every call of a function of that file is run, and nothing else; whoever uses the page can
    have the model make such calls.
    """
    serve(SimpleNamespace(**options))


def serve(options: SimpleNamespace) -> None:
    """Load the model and serve the page, until the process is told to end."""
    if gr is None:
        raise UserError("the web page needs gradio: pip install -r requirements-web.txt")
    presets = read_presets(options.presets) if options.presets else Presets([], {})
    feedback = FeedbackFile(options.feedback, str(options.model)) if options.feedback else None
    root_path = checked_root_path(options.root_path)
    tools = load_tools_from_options(options)
    # In the environment, because everyone on the machine can read a command line.
    password = os.environ.get("YAYI_PASSWORD")
    with listen(options.host, options.port) as listening:
        if not password and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
            what = "this page and its tools" if tools else "this page"
            print(
                f"warning: whoever can reach {options.host} can use {what}; "
                "set YAYI_PASSWORD, and it asks for that password",
                file=sys.stderr,
            )
        model, tokenizer = load_from_options(options)
        check_knows_tools(options, tokenizer)
        heard = page_feedback(feedback, tools) if feedback else None
        answerer = page_answerer(model, tokenizer, tools, options.max_calls)
        blocks = page(answerer, heard, options, presets)
        app = web_app(blocks, password, root_path)
        # Browsers are still connected at the end: that is not waited for, and is no error.
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"http://{host}:{options.port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        # Python's own way out would abort if the model was still answering in its thread.
        os._exit(130)


def read_presets(path: Path) -> "Presets":
    """The example questions and system texts of --presets. Raises UserError that says what is wrong there."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"--presets {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--presets {path}: not JSON in UTF-8: {error}") from None
    expected = '{"questions": ["..."], "systems": {"name": "..."}}'
    if not isinstance(content, dict) or (unknown := content.keys() - {"questions", "systems"}):
        named = f": unknown {', '.join(sorted(unknown))}" if isinstance(content, dict) else ""
        raise UserError(f"--presets {path}{named}; it holds {expected}")
    questions, systems = content.get("questions", []), content.get("systems", {})
    texts = (
        [*questions, *systems.values()]
        if isinstance(questions, list) and isinstance(systems, dict)
        else [None]
    )
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"--presets {path}: it holds {expected}, and no text in it is empty")
    return Presets(questions, systems)


def checked_root_path(root_path: str) -> str:
    """--root-path without a last slash. Raises UserError where it is neither a path nor an URL."""
    if root_path and not root_path.startswith(("/", "http://", "https://")):
        raise UserError(f"--root-path {root_path}: begins with no slash; write /{root_path}")
    return root_path.rstrip("/")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. It is opened before the model is loaded, which may take minutes."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another") from None
    except UnicodeError:  # which Python raises for a part that is empty or longer than 63 characters
        raise UserError(f"--host {host}: not a host name; choose another") from None


def web_app(blocks: "gr.Blocks", password: str | None, root_path: str) -> "FastAPI":
    """The page as an ASGI application, which asks for the password if there is one."""
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def with_policy(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def may_enter(name: str, entered: str) -> bool:
        given = f"{name}\n{entered}".encode(), f"{USER_NAME}\n{password}".encode()
        if not (right := hmac.compare_digest(*given)):
            await asyncio.sleep(WRONG_PASSWORD_S)  # of whoever guesses, and of nobody else
        return right

    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=may_enter if password else None,
        auth_message=f"用户名 / User name: {USER_NAME}",
        root_path=root_path or None,
        i18n=gr.I18n(**translations()),
        css=f"{STYLE.read_text('utf-8')}\n{highlight_css()}",
        head=f"<script>{SCRIPT.read_text('utf-8')}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
    )


if __name__ == "__main__":
    run_command(main)
