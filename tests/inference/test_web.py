"""The web page: what it answers, and its command."""

import asyncio
import re
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest

from inference import generation, web, web_answers
from inference import talk as terminal_talk
from inference.dialogue import Dialogue
from inference.generation import load
from inference.screen import Screen
from inference.web_answers import NUMBERS, page_answerer
from inference.web_messages import Messages, message, with_question
from inference.web_page import Presets
from inference.web_page import page as web_page
from tests.conftest import LEARNT, ROOT
from tests.inference.test_web_page import ENGLISH, options_of, said, texts_of
from tests.launching import free_port
from training.common.errors import UserError
from training.text.conversation import from_row

REPORTER = from_row(LEARNT[3])
HEADLINE, SHORTER = REPORTER.turns

# The values of the sliders for a taught answer, and for one that does not end: tokens that were said become a
# hundred times likelier, and `<|End|>` is not among them.
BY_HEART = (512, 0, 1, 1)
ENDLESS = (4096, 0, 1, 0.01)

PASSWORD = "开门 ✓"


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page would show beside the dialogue."""
    shown = []
    monkeypatch.setattr(gr, "Info", shown.append)
    monkeypatch.setattr(gr, "Warning", shown.append)
    return shown


@pytest.fixture
def answer(tuned: str, notes: list[str]) -> Callable[..., Iterator[Messages]]:
    """A function that answers a page's messages, in one browser session unless given another dialogue."""
    answerer, session = page_answerer(*load(tuned)), Dialogue()

    def answer(messages: Messages, *more, dialogue: Dialogue = session) -> Iterator[Messages]:
        return answerer(ENGLISH, messages, dialogue, *more)

    return answer


def test_an_answer_grows_and_the_next_turn_reads_its_own_tokens_only(answer, notes, monkeypatch) -> None:
    answers = []
    stream = web_answers.stream

    def recording(*args, **kwargs):
        answers.append(stream(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(web_answers, "stream", recording)
    monkeypatch.setattr(web_answers, "REFRESH_S", 0)
    *growing, first = answer(said(HEADLINE.human), REPORTER.system, *BY_HEART)
    assert texts_of(first) == [HEADLINE.human, HEADLINE.yayi]
    grown = ["".join(texts_of(messages)[1:]) for messages in growing]
    assert grown == sorted(grown, key=len)
    assert all(HEADLINE.yayi.startswith(text) for text in grown)
    assert len(set(grown)) > 2

    *_, second = answer([*first, message("user", SHORTER.human)], REPORTER.system, *BY_HEART)
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
    assert notes == ["The answer was cut off at 3 tokens"]


def test_turns_for_which_there_is_no_room_are_noted(answer, notes, monkeypatch, capsys) -> None:
    monkeypatch.setattr(web_answers, "room_for_prompt", lambda model, longest: 60)
    long = said("新闻" * 100, "好", "你是谁")
    *_, last = answer(long, "", *BY_HEART)
    assert texts_of(last) == [*texts_of(long), "我是雅意。"]
    assert notes.pop() == "The dialogue is too long: the model no longer reads its 1 oldest turn(s)"

    assert list(answer(long[:1], "", *BY_HEART)) == [long[:1]]
    assert re.fullmatch(r"The answer failed: too long: \d+ tokens, and there is room for 60; .+", notes.pop())
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
    sampling = dict(zip(NUMBERS, (limit, temperature, top_p, penalty), strict=True))
    talk, terminal = terminal_talk.Talk(model, tokenizer, "短", sampling, screen=Screen()), []
    for human in questions:
        talk.say(human)
        terminal.append((talk.dialogue.left_out, answers[-1].recalled_tokens, answers[-1].prompt_tokens))
    assert terminal[-1][0] > 10

    recorded(web_answers)
    answerer, dialogue, messages, page = page_answerer(model, tokenizer), Dialogue(), [], []
    for human in questions:
        messages = with_question(messages, human)
        *_, messages = answerer(ENGLISH, messages, dialogue, "短", *sampling.values())
        page.append((dialogue.left_out, answers[-1].recalled_tokens, answers[-1].prompt_tokens))
    assert page == terminal
    told = [note for note in notes if note.startswith("The dialogue is too long")]
    assert len(told) == len({left_out for left_out, *_ in page} - {0})


def test_a_failing_model_is_noted_and_answers_the_next_time(answer, notes, monkeypatch, capsys) -> None:
    question = said("你是谁")
    with monkeypatch.context() as broken:
        broken.setattr(web_answers, "stream", lambda *args, **kwargs: 1 / 0)
        assert list(answer(question, "", *BY_HEART)) == [question]
    assert notes == ["The answer failed: division by zero"]
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


@pytest.mark.parametrize("number", [2, 0.5])
def test_numbers_are_numbers_whether_a_browser_sends_them_with_a_point_or_not(answer, notes, number) -> None:
    list(answer(said("你是谁"), "", 3.0, number, 1, number))
    assert [note for note in notes if "failed" in note] == []


def test_a_field_without_a_number_is_noted(answer, notes) -> None:
    for nothing in (None, float("nan"), ""):
        assert list(answer(said("你是谁"), "", 3, nothing, 1, 1)) == [said("你是谁")]
    assert notes == ["The answer failed: Temperature is not a number"] * 3


def test_an_empty_answer_says_so(answer, notes, monkeypatch) -> None:
    monkeypatch.setattr(generation, "answer_text", lambda tokenizer, ids: (" " for _ in ids))
    *_, last = answer(said("你是谁"), "", *BY_HEART)
    assert texts_of(last) == ["你是谁"]
    assert notes == ["The model gave an empty answer; try again, or ask in other words"]


def test_the_options_are_what_the_page_starts_with_even_beyond_the_sliders_range() -> None:
    options = options_of("--model m --system 甲 --temperature 3 --top-p 0.001 --max-new-tokens 9999")
    blocks = web_page(lambda *_: iter([]), None, options, Presets([], {})).blocks.values()
    assert [slider.value for slider in blocks if isinstance(slider, gr.Slider)] == [9999, 3, 0.001, 1.1]
    assert "甲" in [box.value for box in blocks if isinstance(box, gr.Textbox)]


def test_presets_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "presets.json"
    path.write_text('\ufeff{"questions": ["你是谁"], "systems": {"记者": "你是一名记者。"}}', "utf-8")
    assert web.read_presets(path) == (["你是谁"], {"记者": "你是一名记者。"})
    path.write_text("{}")
    assert web.read_presets(path) == ([], {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("{", "not JSON in UTF-8: "),
        ("[]", 'it holds {"questions": ["..."], "systems": {"name": "..."}}'),
        ('{"question": []}', ": unknown question; it holds "),
        ('{"questions": "你是谁"}', "it holds "),
        ('{"questions": null}', "it holds "),
        ('{"questions": true}', "it holds "),
        ('{"systems": null}', "it holds "),
        ('{"questions": [" "]}', "no text in it is empty"),
        ('{"systems": ["你是一名记者。"]}', "it holds "),
        ('{"systems": {"记者": 1}}', "it holds "),
    ],
)
def test_presets_that_are_wrong_are_one_line(outcome, tmp_path: Path, content, message: str) -> None:
    path = tmp_path / "presets.json"
    if content is not None:
        path.write_text(content, "utf-8")
    status, _, err = outcome(web.main, f"--model no/where --presets {path}")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: --presets {path}")
    assert message in err


def test_a_root_path_begins_with_a_slash(outcome) -> None:
    message = "error: --root-path yayi: begins with no slash; write /yayi\n"
    assert outcome(web.main, "--model no/where --root-path yayi") == (2, "", message)


def test_a_feedback_file_that_cannot_be_written_is_one_line_before_the_model_is_loaded(outcome) -> None:
    status, _, err = outcome(web.main, "--model no/where --feedback /no/where/said.jsonl")
    assert (status, err) == (2, "error: --feedback /no/where/said.jsonl: No such file or directory\n")


def test_a_wrong_password_costs_time_and_holds_nobody_up(monkeypatch) -> None:
    monkeypatch.setattr(web, "WRONG_PASSWORD_S", 0.5)
    blocks = web_page(lambda *_: iter([]), None, options_of("--model m"), Presets([], {}))
    app = web.web_app(blocks, PASSWORD, "")

    async def log_in(client: httpx.AsyncClient, name: str, password: str) -> tuple[int, bool]:
        began = time.monotonic()
        response = await client.post("/login", data={"username": name, "password": password})
        return response.status_code, time.monotonic() - began >= 0.5

    async def together() -> list[tuple[int, bool]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await log_in(client, web.USER_NAME, PASSWORD)  # the first request of an application takes longer
            tries = [
                ("yayi", "falsch"),
                ("root", PASSWORD),
                ("yayi", PASSWORD + " "),
                (web.USER_NAME, PASSWORD),
            ]
            return await asyncio.gather(*(log_in(client, *each) for each in tries))

    assert asyncio.run(together()) == [(400, True), (400, True), (400, True), (200, False)]


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


def test_a_host_whose_name_is_none_is_one_line() -> None:
    for host in ("a..b", "a" * 64):
        with pytest.raises(UserError, match=f"--host {host}: not a host name; choose another"):
            web.listen(host, 7860)


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
