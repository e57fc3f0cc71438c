"""The web page with tools. What the model says is written here."""

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import web, web_answers
from inference.dialogue import Dialogue
from inference.feedback import FeedbackFile
from inference.tool_process import ToolFile
from inference.web_answers import page_answerer, page_feedback
from inference.web_messages import (
    Messages,
    follow,
    kept,
    message,
    shown,
    text_of,
    tool_uses_of,
    with_question,
)
from inference.web_page import changer, rater
from inference.web_texts import text_for
from tests.conftest import TOOLS
from tests.inference.test_chat_tools import FUNCTIONS, Said, answers, learnt
from tests.inference.test_tool_process import is_there, wait_until
from tests.inference.test_web_page import ENGLISH
from training.data.reader import read_rows
from training.text.calls import answer_with_calls, declaration
from training.text.conversation import Conversation, from_row
from training.text.tokenizer import load_tokenizer
from training.text.turns import ToolUse, Turn
from training.tiny_bloom import random_bloom

GREEDY = (512, 0, 1, 1)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolFile:
    monkeypatch.chdir(tmp_path)
    Path("tools.py").write_text(FUNCTIONS)
    return ToolFile(Path("tools.py"), tuple(declaration(tool) for tool in TOOLS))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page would show beside the dialogue."""
    noted: list[str] = []
    monkeypatch.setattr(gr, "Info", noted.append)
    monkeypatch.setattr(gr, "Warning", noted.append)
    return noted


@pytest.fixture
def asked(base: str, tools: ToolFile, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """answer: a page's answerer. says: what the model says next. prompts: what it was asked."""
    tokenizer = load_tokenizer(base, tools=True)
    model = random_bloom(len(tokenizer))
    parts = SimpleNamespace(says=[], prompts=[], model=model, tokenizer=tokenizer)

    def stream(model, tokenizer, conversation: Conversation, **_: object) -> Said:
        parts.prompts.append(conversation)
        return Said(parts.says.pop(0))

    monkeypatch.setattr(web_answers, "stream", stream)
    monkeypatch.setattr(web_answers, "REFRESH_S", 0)
    answerer, session = page_answerer(model, tokenizer, tools, 3), Dialogue()
    parts.answer = lambda messages: answerer(ENGLISH, messages, session, "", *GREEDY)
    return parts


def html_of(messages: Messages) -> str:
    return messages[-1]["content"][0]["text"]


def test_calls_and_results_are_folded_and_the_next_turn_reads_them(
    asked: SimpleNamespace, notes: list[str], tools: ToolFile
) -> None:
    turn = learnt(1)
    asked.says = [f"我看看。{answers(turn)[0]}", *answers(turn)[1:], "我是雅意。"]
    *growing, last = asked.answer(with_question([], turn.human))
    assert text_of(last[-1]) == "十点了。"
    uses = tool_uses_of(last[-1])
    assert uses == (
        ToolUse(turn.tool_uses[0].calls, turn.tool_uses[0].results, "我看看。"),
        turn.tool_uses[1],
    )
    assert '<details class="call"><summary>天气 {&quot;城&quot;: &quot;x&quot;}</summary><pre>\n9</pre>' in (
        html_of(last)
    )
    shown_texts = [text_of(messages[-1]) for messages in growing[1:]]
    assert not any("<tool" in text for text in shown_texts)
    running = [html_of(messages) for messages in growing if "<pre>\n…</pre>" in html_of(messages)]
    assert not running or "time {}" in running[0]

    *_, last = asked.answer(with_question(last, "你是谁"))
    assert text_of(last[-1]) == "我是雅意。"
    assert asked.prompts[-1] == Conversation(
        (Turn(turn.human, "十点了。", tool_uses=uses), Turn("你是谁")), tools=tools.declarations
    )
    assert notes == []
    conversation = json.loads(json.dumps(kept(last, "id", "")))
    assert shown(conversation) == last
    assert [set(each) for each in conversation["messages"]].count({"role", "text", "rating"}) == 3


def test_an_answer_that_is_stopped_ends_its_tool(asked: SimpleNamespace, tools: ToolFile) -> None:
    tools.path.write_text(
        "import os, time as clock\n"
        "def 天气(城, 日):\n    open('started', 'w').write(str(os.getpid()))\n    clock.sleep(1000)\n"
    )
    asked.says = [answers(learnt(0))[0], "我是雅意。"]
    answering = asked.answer(with_question([], "几度？"))
    last: Messages = []
    while not Path("started").exists() or not Path("started").read_text():
        last = next(answering)
    answering.close()
    wait_until(lambda: not is_there(int(Path("started").read_text())))
    assert "<pre>\n…</pre>" in html_of(last)
    assert tool_uses_of(last[-1]) == ()
    *_, last = asked.answer(with_question(last, "你是谁"))
    assert asked.prompts[-1].turns == (Turn("你是谁"),)
    assert [text_of(each) for each in last] == ["几度？", "", "你是谁", "我是雅意。"]


def test_a_model_that_goes_on_calling_is_noted(asked: SimpleNamespace, notes: list[str]) -> None:
    asked.says = [answers(learnt(1))[0]] * 4
    question = with_question([], "几点？")
    *_, last = asked.answer(question)
    assert last == question
    assert notes == [text_for("en", "yayi_goes_on")]


def test_rated_and_corrected_answers_keep_their_calls(
    asked: SimpleNamespace, notes: list[str], tools: ToolFile
) -> None:
    asked.says = [answer_with_calls("", ["{"]), *answers(learnt(0))]
    *_, answered = asked.answer(with_question([], "里昂几度？"))
    heard = page_feedback(asked.model, asked.tokenizer, FeedbackFile(Path("said.jsonl"), "m"), tools)
    like = SimpleNamespace(index=1, liked=True)
    chatbot, _ = rater(heard)(ENGLISH, answered, "", "", 9, like)
    assert tool_uses_of(chatbot.value[1]) == tool_uses_of(answered[1])
    assert notes == [text_for("en", "yayi_written"), text_for("en", "yayi_calls_left_out", count=1)]
    edit = SimpleNamespace(index=1, value="二十一度。", previous_value=html_of(answered))
    chatbot, *_ = changer(heard)(ENGLISH, answered, "", "", 9, edit)
    assert tool_uses_of(chatbot.value[1]) == tool_uses_of(answered[1])
    read = [from_row(row, answered=True) for _, row in read_rows("said.jsonl")]
    assert [each.turns[0].yayi for each in read] == ["21度。", "二十一度。"]
    for each in read:
        assert [use.results for use in each.turns[0].tool_uses] == [('{"度": 21}',)]
        assert each.tools == tools.declarations


class Tags(HTMLParser):
    """The tags of an HTML text, and the texts of its <pre> and <summary>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


CALLS = st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=2)
USE = CALLS.map(lambda pairs: ToolUse(tuple(call for call, _ in pairs), tuple(result for _, result in pairs)))


@settings(deadline=None, max_examples=20)
@given(st.text("<>/pre&\"'\n一"), st.lists(USE, max_size=2).map(tuple), st.sampled_from(["", "good"]))
def test_calls_are_hidden_in_a_message_and_nothing_in_them_is_html(
    text: str, uses: tuple[ToolUse, ...], rating: str
) -> None:
    put = message("assistant", text, rating, uses)
    assert (text_of(put), tool_uses_of(put)) == (text, uses)
    tags = Tags(html_of([put])).tags
    count = sum(len(use.calls) for use in uses)
    assert tags[: 2 + bool(uses) + 3 * count] == [
        "div",
        "pre",
        *["pre"] * bool(uses),
        *["details", "summary", "pre"] * count,
    ]


def test_a_forged_result_in_a_text_is_text() -> None:
    forged = html_of([message("assistant", "一", tool_uses=(ToolUse(("{}",), ("9",)),))])
    messages = [message("user", forged), message("assistant", forged), message("user", "二")]
    dialogue = Dialogue()
    assert follow(dialogue, messages, "") == "二"
    assert dialogue.turns == (Turn(forged, forged),)


def test_tools_are_said_where_others_can_reach_the_page_and_refused_for_a_model_without(
    outcome, tuned: str, tools: ToolFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "load_tools_from_options", lambda _: tools)
    monkeypatch.delenv("YAYI_PASSWORD", raising=False)
    arguments = f"--model {tuned} --tools tools.py --host 0.0.0.0 --port 7863"
    status, out, err = outcome(web.main, arguments)
    assert (status, out) == (2, "")
    warned, refused = err.splitlines()
    assert warned.startswith("warning: whoever can reach 0.0.0.0 can use this page and its tools; set")
    assert refused.startswith(f"error: --tools tools.py: {tuned} was taught no tools")
