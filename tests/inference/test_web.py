import json
import re
import runpy
import shutil
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from inference import generation, web
from inference import talk as terminal_talk
from inference.dialogue import Dialogue
from inference.generation import load
from inference.screen import Screen
from tests.conftest import LEARNT, ROOT
from tests.launching import Running, free_port, kill
from training.text.conversation import from_row

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


def said(*texts: str) -> web.Messages:
    roles = ["user", "assistant"] * len(texts)
    return [web.message(role, text) for role, text in zip(roles, texts, strict=False)]


def texts_of(messages: web.Messages) -> list[str]:
    return [web.text_of(message) for message in messages]


def options_of(arguments: str) -> SimpleNamespace:
    return SimpleNamespace(**web.main.make_context("web", arguments.split()).params)


def test_what_the_page_sends_becomes_a_dialogue_and_a_question() -> None:
    dialogue = Dialogue()
    human = web.follow(dialogue, said("标题？", "大桥通车", "再短一点。"), "你是一名记者。")
    assert (dialogue.system, dialogue.turns, human) == ("你是一名记者。", (HEADLINE,), "再短一点。")
    human = web.follow(dialogue, said("标题？"), "")
    assert (dialogue.system, dialogue.turns, human) == ("", (), "标题？")


def test_the_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "一\n"}, {"type": "text", "text": "二"}]
    assert web.text_of({"role": "user", "content": parts}) == "一\n二"


@settings(deadline=None)
@given(st.text())
def test_a_text_reaches_the_model_as_it_was_typed(text: str) -> None:
    assert web.text_of(web.message("user", text)) == text


@settings(deadline=None)
@given(st.text())
def test_no_text_is_html_on_the_page(text: str) -> None:
    (part,) = web.message("assistant", text)["content"]
    assert not re.search("[<>]|&(?!amp;|lt;|gt;)", part["text"])


def test_a_question_is_added_and_the_box_emptied() -> None:
    messages, box = web.add_question(said("标题？", "大桥通车"), " 再短一点。\n")
    assert texts_of(messages) == ["标题？", "大桥通车", " 再短一点。\n"]
    assert box.value == ""


def test_a_question_without_an_answer_gives_way_to_the_next_one() -> None:
    assert texts_of(web.add_question(said("一", "二", "三"), "四")[0]) == ["一", "二", "四"]
    assert texts_of(web.add_question(said("一", "二", "三"), " \n")[0]) == ["一", "二", "三"]


def test_a_question_can_be_asked_again_put_otherwise_and_taken_back() -> None:
    messages = said("一", "二", "三 <", "四")
    assert texts_of(web.ask_again(messages, SimpleNamespace(index=2))[0]) == ["一", "二", "三 <"]
    for typed, texts in {"叁 &lt;b>": ["一", "二", "叁 <b>"], " ": ["一", "二"]}.items():
        edit = SimpleNamespace(index=2, value=typed)
        assert texts_of(web.change_question(messages, edit)[0]) == texts
    kept, typed = web.take_back(messages, SimpleNamespace(index=2))
    assert (texts_of(kept), typed) == (["一", "二"], "三 <")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page would show beside the dialogue."""
    shown = []
    monkeypatch.setattr(gr, "Info", shown.append)
    monkeypatch.setattr(gr, "Warning", shown.append)
    return shown


@pytest.fixture
def answer(tuned: str, notes: list[str]) -> Callable[..., Iterator[web.Messages]]:
    """A function that answers a page's messages, in one browser session unless given another dialogue."""
    answerer, session = web.page_answerer(*load(tuned)), Dialogue()

    def answer(messages: web.Messages, *more, dialogue: Dialogue = session) -> Iterator[web.Messages]:
        return answerer(messages, dialogue, *more)

    return answer


def test_an_answer_grows_and_the_next_turn_reads_its_own_tokens_only(answer, notes, monkeypatch) -> None:
    answers = []
    stream = web.stream

    def recording(*args, **kwargs):
        answers.append(stream(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(web, "stream", recording)
    monkeypatch.setattr(web, "REFRESH_S", 0)
    *growing, first = answer(said(HEADLINE.human), REPORTER.system, *BY_HEART)
    assert texts_of(first) == [HEADLINE.human, HEADLINE.yayi]
    grown = ["".join(texts_of(messages)[1:]) for messages in growing]
    assert grown == sorted(grown, key=len)
    assert all(HEADLINE.yayi.startswith(text) for text in grown)
    assert len(set(grown)) > 2

    *_, second = answer([*first, web.message("user", SHORTER.human)], REPORTER.system, *BY_HEART)
    assert texts_of(second)[3:] == [SHORTER.yayi]
    assert answers[0].recalled_tokens == 0
    assert answers[1].recalled_tokens > answers[0].prompt_tokens
    assert notes == []


def test_where_nothing_was_asked_nothing_is_answered(answer) -> None:
    for messages in ([], said("标题？", "大桥通车")):
        assert list(answer(messages, "", *BY_HEART)) == [messages]


def test_an_answer_cut_off_by_the_limit_is_noted(answer, notes) -> None:
    *_, last = answer(said("你是谁"), "", 3, *BY_HEART[1:])
    assert "我是雅意。".startswith(texts_of(last)[1])
    assert notes == ["回答过长，已截断 / Cut off at 3 tokens"]


def test_turns_for_which_there_is_no_room_are_noted(answer, notes, monkeypatch, capsys) -> None:
    monkeypatch.setattr(web, "room_for_prompt", lambda model, longest: 60)
    long = said("新闻" * 100, "好", "你是谁")
    *_, last = answer(long, "", *BY_HEART)
    assert texts_of(last) == [*texts_of(long), "我是雅意。"]
    assert notes.pop() == "对话过长，略去最早 1 轮 / Too long: without the 1 oldest turn(s)"

    assert list(answer(long[:1], "", *BY_HEART)) == [long[:1]]
    assert re.fullmatch(r"too long: \d+ tokens, and there is room for 60; say it in parts", notes.pop())
    assert capsys.readouterr().err == ""


def test_turns_leave_a_long_dialogue_as_they_do_in_the_terminal(tuned, notes, monkeypatch) -> None:
    """The KV cache holds what did not leave, so that a turn computes little more than its own tokens."""
    model, tokenizer = load(tuned)
    monkeypatch.setattr(generation, "context_length", lambda model: 130)
    questions = ["你是谁", "标题？", "再短一点。"] * 8
    answers = []

    def recorded(module) -> None:
        def stream(*args, **how):
            answers.append(generation.stream(*args, **how))
            return answers[-1]

        monkeypatch.setattr(module, "stream", stream)

    recorded(terminal_talk)
    limit, temperature, top_p, penalty = 20, *BY_HEART[1:]
    sampling = dict(zip(web.SLIDERS, (limit, temperature, top_p, penalty), strict=True))
    talk, terminal = terminal_talk.Talk(model, tokenizer, "短", sampling, screen=Screen()), []
    for human in questions:
        talk.say(human)
        terminal.append((talk.dialogue.left_out, answers[-1].recalled_tokens, answers[-1].prompt_tokens))
    assert terminal[-1][0] > 10

    recorded(web)
    answerer, dialogue, messages, page = web.page_answerer(model, tokenizer), Dialogue(), [], []
    for human in questions:
        messages, _ = web.add_question(messages, human)
        *_, messages = answerer(messages, dialogue, "短", *sampling.values())
        page.append((dialogue.left_out, answers[-1].recalled_tokens, answers[-1].prompt_tokens))
    assert page == terminal
    assert len(notes) == len({left_out for left_out, *_ in page} - {0})


def test_a_failing_model_is_noted_and_answers_the_next_time(answer, notes, monkeypatch, capsys) -> None:
    question = said("你是谁")
    with monkeypatch.context() as broken:
        broken.setattr(web, "stream", lambda *args, **kwargs: 1 / 0)
        assert list(answer(question, "", *BY_HEART)) == [question]
    assert notes == ["出错了 / Failed: division by zero"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    *_, last = answer(question, "", *BY_HEART)
    assert texts_of(last) == ["你是谁", "我是雅意。"]


def test_there_is_one_answer_at_a_time_and_closing_it_lets_the_next_begin(answer) -> None:
    long = answer(said("你是谁"), "", *ENDLESS)
    while len(next(long)) == 1:
        continue
    others = []
    other = threading.Thread(target=lambda: others.extend(answer(said("你是谁"), "", *BY_HEART)))
    other.start()
    other.join(timeout=0.5)
    assert [len(messages) for messages in others] == [1]
    long.close()
    other.join(timeout=60)
    assert texts_of(others[-1]) == ["你是谁", "我是雅意。"]


def test_the_options_are_what_the_page_starts_with_even_beyond_the_sliders_range() -> None:
    options = options_of("--model m --system 甲 --temperature 3 --top-p 0.001 --max-new-tokens 9999")
    blocks = web.page(lambda *_: iter([]), options).blocks.values()
    assert [slider.value for slider in blocks if isinstance(slider, gr.Slider)] == [9999, 3, 0.001, 1.1]
    assert "甲" in [box.value for box in blocks if isinstance(box, gr.Textbox)]


def test_without_gradio_one_line_says_how_to_get_it(outcome, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    command = runpy.run_path(str(ROOT / "inference" / "web.py"))["main"]
    message = "error: the web page needs gradio: pip install -r requirements-web.txt\n"
    assert outcome(command, "--model m") == (2, "", message)


def test_a_port_that_is_taken_is_one_line_before_the_model_is_loaded(outcome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = outcome(web.main, f"--model no/where --port {port}")
    assert status == 2
    assert err.startswith(f"error: --host 127.0.0.1 --port {port}: Address already in use")
    assert err.count("\n") == 1


def test_a_host_that_does_not_exist_is_one_line(outcome) -> None:
    status, _, err = outcome(web.main, "--model no/where --host no.such.host.invalid")
    assert status == 2
    assert re.fullmatch(r"error: --host no\.such\.host\.invalid --port 7860: .+; choose another\n", err)


@pytest.mark.parametrize(
    ("host", "password", "warned"),
    [
        ("127.0.0.1", "", False),
        ("localhost", "", False),
        ("0.0.0.0", "", True),
        ("0.0.0.0", PASSWORD, False),
    ],
)
def test_a_page_that_others_can_reach_without_a_password_is_warned_of(
    outcome, tmp_path, monkeypatch, host: str, password: str, warned: bool
) -> None:
    monkeypatch.setenv("YAYI_PASSWORD", password)
    _, _, err = outcome(web.main, f"--model {tmp_path} --host {host} --port {free_port()}")
    assert err.startswith(f"warning: whoever can reach {host} can use this page; ") == warned


# In a real browser.


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
    return page.get_by_placeholder("说点什么 / Say something")


def messages(page: Page) -> Locator:
    return page.get_by_test_id(re.compile("user|bot"))


def set_by_heart(page: Page, system: str = "") -> None:
    page.get_by_role("button", name="Toggle Sidebar").click()
    page.get_by_label("系统设定 / System").fill(system)
    penalty = page.get_by_label("number input for 重复惩罚 / Repetition")
    penalty.fill("1")
    penalty.press("Tab")


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
    expect(messages(page)).to_have_text([HEADLINE.human, HEADLINE.yayi])
    expect(box(page)).to_be_focused()
    say(page, SHORTER.human)
    expect(messages(page)).to_have_text([HEADLINE.human, HEADLINE.yayi, SHORTER.human, SHORTER.yayi])

    with page.expect_response(re.compile("queue/join")):
        page.get_by_role("button", name="Retry").click()
    expect(box(page)).to_be_focused()
    expect(messages(page)).to_have_text([HEADLINE.human, HEADLINE.yayi, SHORTER.human, SHORTER.yayi])

    page.get_by_role("button", name="Undo").click()
    expect(messages(page)).to_have_text([HEADLINE.human, HEADLINE.yayi])
    expect(box(page)).to_have_value(SHORTER.human)

    page.get_by_role("button", name="Edit").click()
    page.locator(".message textarea").fill("你是谁")
    page.get_by_label("系统设定 / System").fill("")
    page.get_by_role("button", name="Submit").click()
    expect(messages(page)).to_have_text(["你是谁", "我是雅意。"])

    page.get_by_role("button", name="Clear").click()
    expect(messages(page)).to_have_count(0)
    assert hosts == {urlsplit(url).netloc}


@pytest.mark.slow
def test_in_a_browser_a_session_keeps_its_dialogue_and_has_it_alone(browser: Browser) -> None:
    seen = []

    def answer(messages: web.Messages, dialogue: Dialogue, *_) -> Iterator[web.Messages]:
        seen.append(dialogue)
        yield [*messages, web.message("assistant", f"{len(seen)}")]

    blocks = web.page(answer, options_of("--model m"))
    _, url, _ = blocks.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True)
    try:
        for answers in (["1", "2"], ["3"]):
            page = browser.new_page(locale="en-US")
            page.goto(url)
            for text in answers:
                say(page, "?")
                expect(messages(page).last).to_have_text(text)
                expect(box(page)).to_be_focused()
            page.close()
    finally:
        blocks.close()
    assert seen[0] is seen[1]
    assert seen[0] is not seen[2]


@pytest.mark.slow
def test_in_a_browser_what_was_typed_is_text_and_does_nothing(page: Page, url: str) -> None:
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    log_in(page, url)
    set_by_heart(page)
    say(page, TYPED)
    expect(messages(page)).to_have_count(2)
    assert messages(page).first.inner_text() == TYPED
    assert dialogs == []


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
    expect(messages(page)).to_have_text(["你是谁", "我是雅意。"])


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
