"""The web page in a real browser."""

import json
import re
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from inference import web
from inference.dialogue import Dialogue
from inference.generation import load, reply
from inference.web_messages import Messages, ends_in_question, with_answer
from inference.web_page import Presets
from inference.web_page import page as web_page
from tests.conftest import LEARNT, write_rows
from tests.inference.test_web_page import options_of, said
from tests.launching import Running, free_port, kill
from training import trainer
from training.text.calls import call_text
from training.text.conversation import Conversation, Turn, from_row
from training.text.turns import ToolUse

REPORTER = from_row(LEARNT[3])
HEADLINE, SHORTER = REPORTER.turns

# The values of the sliders for a taught answer, and for one that does not end: tokens that were said become a
# hundred times likelier, and `<|End|>` is not among them.
BY_HEART = (512, 0, 1, 1)
ENDLESS = (4096, 0, 1, 0.01)

# Nothing in it is HTML, Markdown or a control token, though it all looks like it.
TYPED = "  <script>alert(1)</script><img src=x onerror=alert(1)> <|End|></s> &lt; **a**\n    $$b$$ `c`"

CHROMIUM = shutil.which("chromium")
PASSWORD = "开门 ✓"
SYSTEM = "只有进门的人才看得到。"


@contextmanager
def serving(*arguments: str, **variables: str) -> Iterator[tuple[Running, str]]:
    """The real command, once it serves, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "inference.web", "--port", str(port), *arguments]
    running = Running(*command, OMP_NUM_THREADS="1", **variables)
    try:
        url = f"http://127.0.0.1:{port}"
        assert running.wait_until(lambda: url in running.lines), running.output
        yield running, url
    finally:
        kill(running.family())


@pytest.fixture(scope="module")
def url(tuned: str) -> Iterator[str]:
    """The address of a page with a password, whose sliders stand at ENDLESS."""
    limit, temperature, _, penalty = map(str, ENDLESS)
    sampling = ["--max-new-tokens", limit, "--temperature", temperature, "--repetition-penalty", penalty]
    with serving("--model", tuned, "--system", SYSTEM, *sampling, YAYI_PASSWORD=PASSWORD) as (_, url):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium (Debian: apt-get install chromium)")
    # Tests may run as root, for whom there is no sandbox; and a browser shall do nothing of its own accord.
    switches = ["no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"]
    arguments = [f"--{switch}" for switch in switches]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        expect.set_options(timeout=60_000)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def log_in(page: Page, url: str, password: str = PASSWORD) -> None:
    page.goto(url)
    page.get_by_label("username").fill(web.USER_NAME)
    page.get_by_label("password").fill(password)
    page.get_by_role("button", name="Login").click()


def say(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def box(page: Page) -> Locator:
    return page.get_by_placeholder("Say something")


def take_a_breath(page: Page) -> None:
    """Wait as long as a person does between two clicks.

    The page sends nothing for a thumb while it is still at the one before, and gradio may lose what is sent
    in the moment in which it closes the stream of the events before.
    """
    page.wait_for_timeout(1_000)


def messages(page: Page) -> Locator:
    return page.get_by_test_id(re.compile("user|bot"))


def expect_texts(page: Page, *texts: str) -> None:
    expect(messages(page)).to_have_text(texts, use_inner_text=True)


def set_by_heart(page: Page, system: str = "") -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System", exact=True).fill(system)
    penalty = page.get_by_label("number input for Repetition penalty")
    penalty.fill("1")
    penalty.press("Tab")


def page_of(answer: Callable[..., Iterator[Messages]], root_path: str = "") -> FastAPI:
    """The page with a function in place of a model."""
    presets = Presets(["什么是洗钱？"], {"Lawyer": "You are a lawyer."})
    return web.web_app(web_page(answer, None, options_of("--model m"), presets), None, root_path)


@contextmanager
def serving_here(app: FastAPI, port: int) -> Iterator[str]:
    """An application in a thread of this process, and its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def proxy(address: str) -> FastAPI:
    """What nginx does with `location /yayi/ { proxy_pass ADDRESS/; }` and the headers that the page names."""
    app, client = FastAPI(), httpx.AsyncClient(base_url=address, timeout=None)

    @app.api_route("/yayi/{path:path}", methods=["GET", "POST"])
    async def forward(path: str, request: Request) -> Response:
        sent = client.build_request(
            request.method,
            f"/{path}",
            params=request.query_params,
            content=await request.body(),
            headers=request.headers.raw,
        )
        got = await client.send(sent, stream=True)
        return StreamingResponse(got.aiter_raw(), got.status_code, got.headers)

    return app


def status_of(request: urllib.request.Request | str) -> int:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_in_a_browser_turns_are_remembered_and_changed_without_another_server(page: Page, url: str) -> None:
    hosts = set()
    page.context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    log_in(page, url)
    set_by_heart(page, REPORTER.system)

    say(page, HEADLINE.human)
    expect_texts(page, HEADLINE.human, HEADLINE.yayi)
    expect(box(page)).to_be_focused()
    say(page, SHORTER.human)
    expect_texts(page, HEADLINE.human, HEADLINE.yayi, SHORTER.human, SHORTER.yayi)

    with page.expect_response(re.compile("queue/join")):
        page.get_by_role("button", name="Retry").click()
    expect(box(page)).to_be_focused()
    expect_texts(page, HEADLINE.human, HEADLINE.yayi, SHORTER.human, SHORTER.yayi)

    page.get_by_role("button", name="Undo").click()
    expect_texts(page, HEADLINE.human, HEADLINE.yayi)
    expect(box(page)).to_have_value(SHORTER.human)

    page.get_by_role("button", name="Edit").first.click()
    page.locator(".message textarea").fill("你是谁")
    page.get_by_label("System", exact=True).fill("")
    page.get_by_role("button", name="Submit").click()
    expect_texts(page, "你是谁", "我是雅意。")
    expect(box(page)).to_be_editable()  # the answer has ended, and is kept

    page.reload()
    expect_texts(page, "你是谁", "我是雅意。")
    assert hosts == {urlsplit(url).netloc}


@pytest.mark.slow
def test_in_a_browser_conversations_are_kept_over_a_refresh_and_a_restart(browser: Browser) -> None:
    """Each browser session has one Dialogue, for itself; each conversation is its own, in every tab."""
    seen = []

    def answer(messages: Messages, dialogue: Dialogue, *_: object) -> Iterator[Messages]:
        seen.append(dialogue)
        yield with_answer(messages, f"**{len(seen)}**") if ends_in_question(messages) else messages

    def ask(page: Page, text: str, *texts: str) -> None:
        say(page, text)
        expect_texts(page, *texts)
        expect(box(page)).to_be_focused()

    port, context = free_port(), browser.new_context(locale="en-US")
    one, other = context.new_page(), context.new_page()
    conversations = "#conversations label"
    with serving_here(page_of(answer), port) as url:
        one.goto(url)
        ask(one, "a", "a", "1")
        ask(one, "b", "a", "1", "b", "2")
        other.goto(url)
        ask(other, "c", "c", "3")
        one.get_by_role("button", name="New conversation").click()
        expect(messages(one)).to_have_count(0)
        one.get_by_text("什么是洗钱？").click()
        expect_texts(one, "什么是洗钱？", "4")
        expect(box(one)).to_be_focused()
        expect(one.locator(conversations)).to_have_text(["什么是洗钱？", "c", "a"])
        other.reload()
        expect_texts(other, "c", "3")
    assert seen[0] is seen[1]
    assert len({id(dialogue) for dialogue in seen}) == 3  # a new conversation has a new one too
    with serving_here(page_of(answer), port):
        one.reload()
        expect_texts(one, "什么是洗钱？", "4")
        one.locator(conversations).nth(2).click()
        expect_texts(one, "a", "1", "b", "2")
        one.once("dialog", lambda dialog: dialog.accept())
        one.get_by_role("button", name="Delete").click()
        expect(messages(one)).to_have_count(0)
        expect(one.locator(conversations)).to_have_text(["什么是洗钱？", "c"])
    context.close()


@pytest.mark.slow
def test_in_a_browser_nothing_that_is_done_quickly_is_lost(browser: Browser, tuned: str) -> None:
    """Each time the page is opened, asked at once, asked again at once, and a new conversation is begun."""
    by_heart = ["--temperature", "0", "--repetition-penalty", "1", "--system", REPORTER.system]
    with serving("--model", tuned, *by_heart) as (_, url):
        for _ in range(4):
            context = browser.new_context(locale="en-US")
            page = context.new_page()
            page.goto(url)
            for _ in range(2):
                say(page, HEADLINE.human)
                expect_texts(page, HEADLINE.human, HEADLINE.yayi)
                expect(box(page)).to_be_focused()
                say(page, SHORTER.human)
                expect_texts(page, HEADLINE.human, HEADLINE.yayi, SHORTER.human, SHORTER.yayi)
                page.get_by_role("button", name="New conversation").click()
                expect(messages(page)).to_have_count(0)
            context.close()


@pytest.mark.slow
def test_a_browser_that_stores_nothing_shows_the_answer_and_says_so(page: Page) -> None:
    denied = "get() { throw new DOMException('denied', 'SecurityError'); }"
    for storage in ("localStorage", "sessionStorage"):
        page.add_init_script(f"Object.defineProperty(window, '{storage}', {{ {denied} }})")

    def answer(messages: Messages, *_: object) -> Iterator[Messages]:
        yield with_answer(messages, "1") if ends_in_question(messages) else messages

    with serving_here(page_of(answer), free_port()) as url:
        page.goto(url)
        say(page, "a")
        expect_texts(page, "a", "1")
        expect(page.get_by_text("The browser does not keep this conversation").first).to_be_visible()
        expect(box(page)).to_be_focused()


ANSWER = """\
<script>alert(1)</script> <img src="http://elsewhere.invalid/a" onerror="alert(2)">
![b](http://elsewhere.invalid/b) [c](javascript:alert(3)) [d](data:text/html,<script>alert(4)</script>)

| e | f |
|---|---|
| *g* | <iframe src="http://elsewhere.invalid/g"></iframe> |

```html
<style>@import "http://elsewhere.invalid/h";</style>
```
$\\href{javascript:alert(5)}{i} \\includegraphics{http://elsewhere.invalid/j}$ and $x^2$, and *2\\*3\\*4*
"""


# A call of a tool, which is folded on the page.
TYPED_TAG = "<img src=x onerror=alert(1)>"
USE = ToolUse((call_text("f", {"a": TYPED_TAG}),), (f"</pre>{TYPED_TAG}",))


@pytest.mark.slow
def test_in_a_browser_an_answer_does_nothing_and_is_copied_as_it_was_said(browser: Browser) -> None:
    def answer(messages: Messages, *_: object) -> Iterator[Messages]:
        yield with_answer(messages, ANSWER[:150], tool_uses=(replace(USE, results=()),))
        yield with_answer(messages, ANSWER, tool_uses=(USE,))

    context = browser.new_context(
        locale="zh-CN",
        viewport={"width": 400, "height": 800},
        permissions=["clipboard-read", "clipboard-write"],
    )
    page, dialogs, asked = context.new_page(), [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    context.on("request", lambda request: asked.append(request.url))
    port = free_port()
    served = serving_here(page_of(answer, "/yayi"), port)
    with served as address, serving_here(proxy(address), free_port()) as url:
        page.goto(f"{url}/yayi/")
        page.get_by_placeholder("说点什么").fill(TYPED)
        page.keyboard.press("Enter")
        said = page.get_by_test_id("bot").locator(".said")
        expect(said.locator(".code")).to_contain_text("@import")
        expect(said.locator(".katex")).to_have_count(2)
        expect(page.get_by_placeholder("说点什么")).to_be_editable()
        assert page.get_by_test_id("user").inner_text() == TYPED
        shown = said.inner_text()
        for text in (
            "<script>alert(1)</script>",
            "![b](http",
            "[c](javascript:alert(3))",
            "<iframe",
            "<style>",
        ):
            assert text in shown
        for tag in ("script", "img", "iframe", "style", "a[href^=javascript]", "a[href^=data]", "[onerror]"):
            assert said.locator(tag).count() == 0
        assert said.locator("a").count() == 0
        call, result = said.locator(".call summary"), said.locator(".call pre")
        assert call.inner_text() == f'f {{"a": "{TYPED_TAG}"}}'
        expect(result).to_be_hidden()
        call.click()
        expect(result).to_be_visible()
        assert result.inner_text() == f"</pre>{TYPED_TAG}"
        assert page.evaluate("document.documentElement.scrollWidth") == 400  # nothing is wider than the page

        def copied_by(button: Locator) -> str:
            button.click()
            expect(button).to_have_class(re.compile("copied"))
            return page.evaluate("navigator.clipboard.readText()")

        buttons = page.locator(".message-buttons")
        assert copied_by(buttons.first.locator("button").first) == TYPED
        assert copied_by(buttons.last.locator("button").first) == ANSWER
        assert (
            copied_by(said.locator(".copy-code")) == '<style>@import "http://elsewhere.invalid/h";</style>\n'
        )
        policy = httpx.get(f"{url}/yayi/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ")
    assert dialogs == []
    assert [each for each in asked if not each.startswith(f"{url}/yayi/")] == []
    context.close()


@pytest.mark.slow
def test_in_a_browser_an_answer_streams_and_stops_where_it_is_told_to(page: Page, url: str) -> None:
    log_in(page, url)
    say(page, "你是谁")
    seen = []
    while len(seen) < 4:
        text = messages(page).nth(1).inner_text()
        if text not in seen:
            seen.append(text)
    page.get_by_test_id("stop-button").click()
    expect(box(page)).to_be_focused()
    kept = messages(page).nth(1).inner_text()
    assert all(kept.startswith(text) for text in seen)

    # The model is free for the next answer.
    set_by_heart(page)
    page.get_by_role("button", name="Retry").click()
    expect_texts(page, "你是谁", "我是雅意。")


@pytest.mark.slow
def test_in_a_browser_and_without_one_the_password_is_needed(page: Page, url: str) -> None:
    log_in(page, url, "falsch")
    expect(page.get_by_text("Incorrect Credentials")).to_be_visible()
    expect(box(page)).to_have_count(0)
    log_in(page, url)
    expect(box(page)).to_be_visible()
    assert SYSTEM in page.content()

    with urllib.request.urlopen(url, timeout=30) as response:
        assert SYSTEM not in response.read().decode()
    assert status_of(f"{url}/config") == 401
    question = {"data": [said("你是谁"), "", *BY_HEART], "fn_index": 1, "session_hash": "other"}
    headers = {"Content-Type": "application/json"}
    for path in ("queue/join", "run/predict"):
        address = f"{url}/gradio_api/{path}"
        assert status_of(urllib.request.Request(address, json.dumps(question).encode(), headers)) == 401


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_ends_quietly_even_in_the_midst_of_an_answer(
    page: Page, tuned: str, told: int
) -> None:
    sampling = ["--temperature", "0", "--repetition-penalty", "0.01"]
    with serving("--model", tuned, *sampling) as (running, url):
        page.goto(url)
        say(page, "你是谁")
        expect(messages(page)).to_have_count(2)
        running.process.send_signal(told)
        assert running.finish(60) == 130
    assert running.lines[-1] == url
    assert "Traceback" not in running.output


@pytest.mark.slow
def test_in_a_browser_a_thumb_and_a_correction_are_written_and_the_correction_is_learnt(
    page: Page, tuned: str, base: str, tmp_path: Path
) -> None:
    said = tmp_path / "said.jsonl"
    by_heart = ["--temperature", "0", "--repetition-penalty", "1"]
    with serving("--model", tuned, *by_heart, "--feedback", str(said)) as (running, url):
        page.goto(url)
        say(page, "你是谁")
        expect_texts(page, "你是谁", "我是雅意。")
        # The answer was made without the system text that is in the box afterwards.
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System", exact=True).fill(SYSTEM)
        page.get_by_role("button", name="Like", exact=True).click()
        expect(page.get_by_role("button", name="Liked")).to_be_visible()
        assert running.wait_until(lambda: said.read_text("utf-8").count("\n") == 1)
        take_a_breath(page)
        page.get_by_role("button", name="Liked").click()
        assert running.wait_until(lambda: said.read_text("utf-8") == "")
        take_a_breath(page)
        page.get_by_role("button", name="Dislike").click()
        expect(page.get_by_role("button", name="Disliked")).to_be_visible()
        assert running.wait_until(lambda: said.read_text("utf-8").count("\n") == 1)
        take_a_breath(page)
        page.get_by_role("button", name="Edit").last.click()
        typed = page.locator(".message textarea")
        expect(typed).to_have_value("我是雅意。")
        typed.fill("我是**一座桥**。")
        page.get_by_role("button", name="Submit").click()
        expect_texts(page, "你是谁", "我是一座桥。")
        assert running.wait_until(lambda: said.read_text("utf-8").count("\n") == 2)
    rated, corrected = map(json.loads, said.read_text("utf-8").splitlines())
    assert (rated["label"], "label" in corrected) == (False, False)
    assert [row["messages"][0]["role"] for row in (rated, corrected)] == ["user", "user"]

    rows = write_rows(tmp_path / "rows.jsonl", LEARNT[1:])
    options = (
        f"--data-path {rows} --data-path {said} --input-model {base} --local-output-dir {tmp_path} "
        f"--run-name run --cache-dir {tmp_path / 'cache'} --test-size 0 --max-steps 120 --lr 5e-3 "
        "--lr-scheduler linear --warmup-steps 5 --per-device-train-batch-size 4 "
        "--no-gradient-checkpointing --no-bf16 --logging-steps 40"
    )
    trainer.main.main(options.split(), standalone_mode=False)
    question = Conversation((Turn("你是谁"),))
    assert reply(*load(str(tmp_path / "run")), question, temperature=0) == "我是**一座桥**。"
