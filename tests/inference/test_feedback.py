"""Feedback: what people say about answers comes back as rows that training reads."""

import json
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.feedback import FeedbackFile
from tests.conftest import LEARNT_WITH_TOOLS, TOOLS, write_rows
from training.common.errors import UserError
from training.data.audit import full_form, refusal, short_form
from training.data.encoded import load_encoded
from training.text.conversation import Conversation, Turn, from_row

SAID = Conversation((Turn("标题？", "大桥通车"), Turn("再短一点。", "通车\n了")), "你是一名记者。")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.jsonl"


def rows_of(path: Path) -> list[dict]:
    return list(map(json.loads, path.read_text("utf-8").splitlines()))


def test_a_row_is_the_dialogue_with_the_earlier_answers_unlearnt(path: Path) -> None:
    feedback = FeedbackFile(path, "checkpoints/demo")
    assert not path.exists()
    feedback.add(SAID, label=True)
    feedback.add(SAID)
    first, second = rows_of(path)
    assert first.pop("time").startswith("20")
    assert first == {
        "messages": [
            {"role": "system", "content": "你是一名记者。"},
            {"role": "user", "content": "标题？"},
            {"role": "assistant", "content": "大桥通车", "weight": 0},
            {"role": "user", "content": "再短一点。"},
            {"role": "assistant", "content": "通车\n了"},
        ],
        "label": True,
        "model": "checkpoints/demo",
        "source": "feedback",
    }
    assert "label" not in second


def test_the_calls_of_tools_before_the_answer_are_unlearnt_too(path: Path) -> None:
    said = from_row({"messages": LEARNT_WITH_TOOLS[0], "tools": TOOLS})
    FeedbackFile(path, "demo").add(said, label=True)
    learnt = [
        text
        for turn in from_row(rows_of(path)[0]).turns
        for text, is_context in turn.answers()
        if not is_context
    ]
    assert sum(len(turn.tool_uses) for turn in said.turns) > 0
    assert learnt == [said.turns[-1].yayi]


def test_what_is_taken_back_is_removed_once_and_nothing_else(path: Path) -> None:
    feedback, other = FeedbackFile(path, "demo"), Conversation((Turn("q", "a"),))
    for conversation, label in ((SAID, True), (SAID, True), (other, True), (SAID, False), (SAID, None)):
        feedback.add(conversation, label=label)
    other_writer = FeedbackFile(path, "another model")
    path.write_text(f"{path.read_text('utf-8')}\nno JSON", "utf-8")
    path.chmod(0o640)
    first, _, *rest = path.read_bytes().splitlines(keepends=True)
    feedback.take_back(SAID, label=True)
    assert path.read_bytes() == b"".join([first, *rest])
    other_writer.take_back(SAID, label=True)
    assert path.read_bytes() == b"".join([first, *rest])
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_is_taken_back_takes_no_row_of_another_writer_with_it(path: Path) -> None:
    """Whoever waits for the lock meanwhile has opened a file that no longer has its name afterwards."""
    names = [f"{number}" for number in range(16)]

    def write(name: str) -> None:
        FeedbackFile(path, name).add(SAID, label=True)
        FeedbackFile(path, name).add(SAID)
        FeedbackFile(path, name).take_back(SAID, label=True)

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(write, names))
    rows = rows_of(path)
    assert sorted(row["model"] for row in rows) == sorted(names)
    assert not any("label" in row for row in rows)


def test_training_leaves_out_what_was_called_bad_and_counts_it(path, tokenizer, tmp_path: Path) -> None:
    feedback = FeedbackFile(path, "demo")
    for label in (False, True, False, None):
        feedback.add(SAID, label=label)
    file = load_encoded(str(path), tokenizer, 64, tmp_path / "cache")
    assert len(file) == 2
    learnt = file[1]["labels"]
    assert tokenizer.decode(learnt[learnt != -100].tolist()) == ":\n通车\n了\n\n<|End|>"
    assert refusal([str(path)], [file.summary], "error") is None
    for form in (short_form, full_form):
        lines = form(str(path), file.summary)
        assert f"LEFT OUT, feedback that calls the answer a bad one: 2 rows ({path}:1, {path}:3)" in lines
        assert "bookkeeping, not learnt: model: 2, time: 2, source: 2, label: 1" in lines
        assert not any(line.startswith("not learnt:") for line in lines)
    assert f"{path}: 4 rows, 2 of them can be used" in full_form(str(path), file.summary)


def test_a_bad_answer_of_another_source_stays_an_error(path, tokenizer, tmp_path: Path) -> None:
    FeedbackFile(path, "demo").add(SAID, label=False)
    [row] = rows_of(path)
    write_rows(path, [row | {"source": "kto"}])
    error = refusal([str(path)], [load_encoded(str(path), tokenizer, 64, tmp_path).summary], "error")
    assert '"label" is false' in str(error)


def test_feedback_of_bad_answers_alone_leaves_nothing_to_train_on(path, tokenizer, tmp_path: Path) -> None:
    FeedbackFile(path, "demo").add(SAID, label=False)
    error = refusal([str(path)], [load_encoded(str(path), tokenizer, 64, tmp_path).summary], "error")
    assert str(error) == f"{path}: none of the rows can be used"


def test_several_writers_write_whole_lines(path: Path) -> None:
    """Each with an open file of its own, as processes have, and lines longer than a pipe's atomic writes."""

    def write(name: str) -> None:
        for number in range(20):
            FeedbackFile(path, name).add(Conversation((Turn("q", f"{number} " + name * 9_000),)))

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    answers = [row["messages"][-1]["content"] for row in rows_of(path)]
    assert sorted(answers) == sorted(f"{number} " + name * 9_000 for name in "abcd" for number in range(20))


def test_a_line_without_its_newline_is_not_joined(path: Path) -> None:
    path.write_text('{"instruction": "a", "output": "b"}')
    FeedbackFile(path, "demo").add(SAID)
    assert [len(row) for row in rows_of(path)] == [2, 4]


def test_a_full_disk_leaves_the_file_as_it_was(path: Path) -> None:
    feedback = FeedbackFile(path, "demo")
    feedback.add(SAID)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(UserError, match=r"feedback\.jsonl: File too large"):
            feedback.add(SAID)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


@pytest.mark.parametrize("answer", [None, " \n", "\ud83d"])
def test_what_training_could_not_read_is_not_written(path: Path, answer: str | None) -> None:
    with pytest.raises(UserError, match=r"empty|surrogate"):
        FeedbackFile(path, "demo").add(Conversation((Turn("q", answer),)))
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", None, "another kind of file"),
        ("rows.jsonl.gz", None, "another kind of file"),
        ("no/rows.jsonl", None, "No such file or directory"),
        (".", None, "not a file"),
        ("/dev/null", None, "not a file"),
        ("rows.json", '[\n {"instruction": "a", "output": "b"}\n]', "its last line is no JSON object"),
        ("rows.json", "\udcff{", "its last line is no JSON object"),
    ],
)
def test_a_file_that_cannot_take_rows_is_refused_at_the_start(tmp_path, name, content, message) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    before = os.listdir(tmp_path)
    with pytest.raises(UserError, match=f"--feedback .*{message}"):
        FeedbackFile(path, "demo")
    assert os.listdir(tmp_path) == before


def test_the_home_of_a_user_who_does_not_exist_takes_no_rows() -> None:
    with pytest.raises(UserError, match=r"--feedback ~no-such-user/said\.jsonl: No such file or directory"):
        FeedbackFile(Path("~no-such-user/said.jsonl"), "demo")
