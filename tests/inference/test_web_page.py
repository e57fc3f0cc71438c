"""What the web page shows, keeps and passes on, without a browser."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import web
from inference.dialogue import Dialogue
from inference.feedback import FeedbackFile
from inference.generation import load
from inference.web_answers import NUMBERS, page_answerer, page_feedback
from inference.web_messages import (
    Messages,
    WasRead,
    follow,
    kept,
    message,
    rating_of,
    shown,
    text_of,
    thumbs,
    what_was_read,
    with_question,
)
from inference.web_page import (
    add_question,
    ask_again,
    ask_example,
    changer,
    end,
    list_titles,
    opener,
    rater,
    take_back,
)
from inference.web_texts import TEXTS, text_for, translations
from tests.conftest import LEARNT
from training.common.errors import UserError
from training.text.conversation import from_row

REPORTER = from_row(LEARNT[3])
HEADLINE, SHORTER = REPORTER.turns

ENGLISH = SimpleNamespace(headers={"accept-language": "en-US,en;q=0.9"})
CHINESE = SimpleNamespace(headers={"accept-language": "zh-CN,zh;q=0.9,en;q=0.8"})


def options_of(arguments: str) -> SimpleNamespace:
    return SimpleNamespace(**web.main.make_context("web", arguments.split()).params)


def said(*texts: str) -> Messages:
    roles = ["user", "assistant"] * len(texts)
    return [message(role, text) for role, text in zip(roles, texts, strict=False)]


def texts_of(messages: Messages | gr.Chatbot) -> list[str]:
    messages = messages.value if isinstance(messages, gr.Chatbot) else messages
    return [text_of(message) for message in messages]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page would show beside the dialogue."""
    shown = []
    monkeypatch.setattr(gr, "Info", shown.append)
    monkeypatch.setattr(gr, "Warning", shown.append)
    return shown


@settings(deadline=None)
@given(
    st.text(),
    st.sampled_from(["user", "assistant"]),
    st.sampled_from(["", "good", "bad"]),
    st.none() | st.builds(WasRead, st.integers(1, 99), st.text()),
)
def test_a_text_is_hidden_in_its_message_as_it_was_said(
    text: str, role: str, rating: str, read: WasRead | None
) -> None:
    put = message(role, text, rating, read)
    assert (text_of(put), rating_of(put), what_was_read(put)) == (text, rating, read)
    sent = gr.JSON().postprocess(kept([put], "id", ""))  # on its way to the browser
    assert sent
    assert shown(sent.model_dump()) == [put]


@settings(deadline=None)
@given(st.text())
def test_nothing_that_was_typed_is_html_on_the_page(text: str) -> None:
    (part,) = message("user", text)["content"]
    inner = part["text"].removeprefix('<div class="said"><pre>').removesuffix("</pre></div>")
    assert not re.search("[<>]|&(?!amp;|lt;|gt;)", inner)


def test_the_parts_of_a_message_that_was_edited_are_one_text() -> None:
    parts = [{"type": "text", "text": "一 <b>\n"}, {"type": "text", "text": "二"}]
    assert text_of({"role": "user", "content": parts}) == "一 <b>\n二"


def test_what_the_page_sends_becomes_a_dialogue_and_a_question() -> None:
    dialogue = Dialogue()
    human = follow(dialogue, said("标题？", "大桥通车", "再短一点。"), "你是一名记者。")
    assert (dialogue.system, dialogue.turns, human) == ("你是一名记者。", (HEADLINE,), "再短一点。")
    human = follow(dialogue, said("标题？"), "")
    assert (dialogue.system, dialogue.turns, human) == ("", (), "标题？")


def test_a_question_is_added_and_the_box_emptied_and_all_wait_for_the_answer() -> None:
    chatbot, identity, conversation, box, *others = add_question(
        said("标题？", "好"), "", "记者", " 再短一点。\n"
    )
    assert texts_of(chatbot) == ["标题？", "好", " 再短一点。\n"]
    assert conversation == kept(chatbot.value, identity, "记者")
    assert re.fullmatch("[0-9a-f]{16}", identity)
    assert (box.value, box.interactive) == ("", False)
    assert [other.interactive for other in others] == [False] * 3
    conversation, *controls = end(said("标题？", "好"), "abc", "记者")
    assert conversation == kept(said("标题？", "好"), "abc", "记者")
    assert [control.interactive for control in controls] == [True] * 4
    assert add_question(said("一"), "abc", "", "二")[1] == "abc"
    assert texts_of(ask_example([], "", "", SimpleNamespace(value={"text": "什么？"}))[0]) == ["什么？"]


def test_a_question_without_an_answer_gives_way_to_the_next_one() -> None:
    assert texts_of(with_question(said("一", "二", "三"), "四")) == ["一", "二", "四"]
    assert texts_of(with_question(said("一", "二", "三"), " \n")) == ["一", "二", "三"]


def test_a_question_can_be_asked_again_put_otherwise_and_taken_back(notes: list[str]) -> None:
    messages = said("一", "二", "三 <", "四")
    assert texts_of(ask_again(messages, "", "", SimpleNamespace(index=2))[0]) == ["一", "二", "三 <"]
    as_it_was = messages[2]["content"][0]["text"]
    for typed, texts in {"叁 &lt;b>": ["一", "二", "叁 &lt;b>"], " ": texts_of(messages)}.items():
        edit = SimpleNamespace(index=2, value=typed, previous_value=as_it_was)
        edited = [*messages[:2], {**messages[2], "content": [{"type": "text", "text": typed}]}, messages[3]]
        chatbot, _, conversation, *_ = changer(None)(ENGLISH, edited, "abc", "", edit)
        assert texts_of(chatbot) == [said["text"] for said in conversation["messages"]] == texts
    assert notes == [text_for("en", "yayi_blank")]
    chatbot, conversation, typed = take_back(messages, "abc", "", SimpleNamespace(index=2))
    assert (texts_of(chatbot), typed) == (["一", "二"], "三 <")
    assert conversation == kept(messages[:2], "abc", "")


def test_a_conversation_is_kept_and_shown_again_with_its_thumbs() -> None:
    messages = [
        *said("标题 <b>\n是什么？", "*大桥*"),
        message("user", "再"),
        message("assistant", "通", "bad"),
    ]
    conversation = json.loads(json.dumps(kept(messages, "id", "记者")))
    assert (conversation["id"], conversation["title"], conversation["system"]) == (
        "id",
        "标题 <b> 是什么？",
        "记者",
    )
    assert shown(conversation) == messages
    for said_before in conversation["messages"]:  # as an earlier version kept them
        del said_before["read"]
    assert shown(conversation) == messages
    chatbot, system, identity, listing, dialogue, box = opener("begins")(conversation)
    assert box.interactive
    assert (texts_of(chatbot), chatbot.feedback_value) == (texts_of(messages), [None, "Dislike"])
    assert (system, identity, listing.value, dialogue.turns) == ("记者", "id", "id", ())
    chatbot, system, identity, *_ = opener("begins")({"id": "", "system": None, "messages": []})
    assert (texts_of(chatbot), system, identity) == ([], "begins", "")


def test_what_the_browser_could_not_keep_is_noted(notes: list[str]) -> None:
    titles = {"titles": [["一", "a"], ["二", "b"]], "forgotten": 0, "kept": True}
    listing = list_titles(ENGLISH, titles, "b")
    assert (listing.choices, listing.value, notes) == ([("一", "a"), ("二", "b")], "b", [])
    assert list_titles(ENGLISH, titles, "gone").value is None
    alike = {**titles, "titles": [["一", "a"], ["一", "b"]]}
    assert [list_titles(ENGLISH, alike, each).value for each in "ab"] == ["a", "b"]
    list_titles(CHINESE, {**titles, "forgotten": 2, "kept": False}, "")
    assert notes == [text_for("zh", "yayi_forgotten", count=2), text_for("zh", "yayi_not_kept")]


def test_thumbs_and_corrections_are_rows_to_train_on(tmp_path: Path, notes: list[str]) -> None:
    """Each with the system text that its answer was made with, whatever is in the box since."""
    path = tmp_path / "said.jsonl"
    heard = page_feedback(FeedbackFile(path, "demo"))
    messages = said("标题？", "大桥通车", "再短一点。", "通车")
    messages[1] = message("assistant", "大桥通车", "", WasRead(1, "记者"))
    messages[3] = message("assistant", "通车", "", WasRead(2, ""))
    written, taken_back = text_for("en", "yayi_written"), text_for("en", "yayi_taken_back")
    for liked, labels in ((True, [True]), ("", []), (False, [False])):
        like = SimpleNamespace(index=1, liked=liked)
        chatbot, conversation = rater(heard)(ENGLISH, messages, "id", "律师", like)
        messages = chatbot.value
        assert conversation == kept(messages, "id", "律师")
        assert texts_of(chatbot) == ["标题？", "大桥通车", "再短一点。", "通车"]
        assert chatbot.feedback_value == [{True: "Like", False: "Dislike"}.get(liked), None]
        assert [json.loads(line)["label"] for line in path.read_text("utf-8").splitlines()] == labels
        assert notes.pop() == (written if labels else taken_back)
    as_it_was = messages[3]["content"][0]["text"]
    for typed, texts in {"*通*": ["*通*"], " ": ["通车"], "通车": ["通车"]}.items():
        edit = SimpleNamespace(index=3, value=typed, previous_value=as_it_was)
        chatbot, *_ = changer(heard)(ENGLISH, messages, "id", "律师", edit)
        assert texts_of(chatbot) == [*texts_of(messages[:3]), *texts]
        assert what_was_read(chatbot.value[3]) == WasRead(2, "")
    assert notes == [written, text_for("en", "yayi_blank")]
    rated, corrected = map(json.loads, path.read_text("utf-8").splitlines())
    assert (rated["label"], "label" in corrected) == (False, False)
    assert rated["messages"] == [
        {"role": "system", "content": "记者"},
        {"role": "user", "content": "标题？"},
        {"role": "assistant", "content": "大桥通车"},
    ]
    assert corrected["messages"] == [
        {"role": "user", "content": "标题？"},
        {"role": "assistant", "content": "大桥通车", "weight": 0},
        {"role": "user", "content": "再短一点。"},
        {"role": "assistant", "content": "*通*"},
    ]


def test_a_rated_answer_is_not_rated_otherwise(notes: list[str]) -> None:
    told = []
    rate = rater(lambda *what: told.append(what))
    messages = [message("user", "一"), message("assistant", "二", "good")]
    chatbot, conversation = rate(ENGLISH, messages, "id", "", SimpleNamespace(index=1, liked=False))
    assert (told, notes) == ([], [text_for("en", "yayi_rated")])
    assert (chatbot.feedback_value, conversation) == (["Like"], kept(messages, "id", ""))


def full(*_: object) -> None:
    raise UserError("said.jsonl: <full>")


def test_a_thumb_whose_row_was_not_written_or_removed_stays_as_it_was(notes: list[str]) -> None:
    rated = [message("user", "一"), message("assistant", "二", "bad")]
    for messages, liked, thumb in ((said("一", "二"), True, None), (rated, "", "Dislike")):
        chatbot, _ = rater(full)(ENGLISH, messages, "id", "", SimpleNamespace(index=1, liked=liked))
        assert chatbot.feedback_value == [thumb]
    assert notes == ["The feedback was not written: said.jsonl: &lt;full&gt;"] * 2


def test_feedback_that_cannot_be_written_is_noted_and_the_correction_stays(notes: list[str]) -> None:
    messages = said("一", "二")
    edit = SimpleNamespace(index=1, value="三", previous_value=messages[1]["content"][0]["text"])
    assert texts_of(changer(full)(CHINESE, messages, "", "", edit)[0]) == ["一", "三"]
    assert notes == ["反馈没有写入：said.jsonl: &lt;full&gt;"]


def test_feedback_has_the_turns_and_the_system_text_that_the_model_read(
    tuned: str, tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.web_answers.room_for_prompt", lambda model, longest: 60)
    answer, by_heart = page_answerer(*load(tuned)), dict.fromkeys(NUMBERS, 1) | {"max_new_tokens": 20}
    asked = said("新闻" * 100, "好", "你是谁")
    *_, answered = answer(ENGLISH, asked, Dialogue(), " 记者", *by_heart.values())
    path = tmp_path / "said.jsonl"
    monkeypatch.undo()
    page_feedback(FeedbackFile(path, "demo"))(answered, "律师", None, False)
    texts = [each["content"] for each in json.loads(path.read_text("utf-8"))["messages"]]
    assert texts == [" 记者", "你是谁", text_of(answered[-1])]


def test_every_text_is_there_in_both_languages() -> None:
    for key, (english, chinese) in TEXTS.items():
        assert re.findall(r"\{\w+\}", english) == re.findall(r"\{\w+\}", chinese)
        assert re.search("[一-鿿]", chinese) or english == chinese
        assert translations()["en"][key] == english
        assert translations()["zh-CN"][key] == chinese
    assert text_for("zh-CN,zh;q=0.9", "yayi_cut_off", tokens=3) == "回答过长，在 3 个 token 处截断"
    assert text_for("de,zh;q=0.5", "yayi_failed", error="<b>") == "The answer failed: &lt;b&gt;"
    assert text_for("", "yayi_settings") == "Settings"
    assert thumbs(said("一", "二", "三")) == [None]
