import json
import zipfile
from pathlib import Path

import datasets
import pytest

from evaluation.objective_questions import (
    CMMLU_ARCHIVE,
    ObjectiveQuestion,
    as_conversation,
    question_of,
    read_objective_questions,
)
from tests.conftest import ROOT, write_rows
from training.common import hub
from training.common.errors import UserError

CHOICE = {
    "category": "历史",
    "passage": "",
    "question": "谁统一了六国？",
    "options": ["甲", "乙", "丙"],
    "answer": "B",
}


def test_a_choice_is_asked_with_its_letters() -> None:
    question = question_of("here:1", CHOICE | {"passage": "从前有一个人。"})
    assert as_conversation(question).turns[0].human == (
        "从前有一个人。\n\n谁统一了六国？\nA. 甲\nB. 乙\nC. 丙\n请选出正确的一项，先写它的字母。"
    )
    assert as_conversation(question).is_prompt
    assert as_conversation(question, "B. 乙").turns[0].yayi == "B. 乙"


def test_a_question_in_english_is_asked_in_english() -> None:
    question = question_of("here:1", {"question": "Is it?", "options": ["yes", "no"], "answer": "A"})
    assert (
        as_conversation(question)
        .turns[0]
        .human.endswith("Is it?\nA. yes\nB. no\nChoose the right one. Begin with its letter.")
    )
    assert question.category == "none"


def test_a_short_answer_question_has_accepted_answers() -> None:
    one = question_of("here:1", {"category": "数", "question": "几块骨头？", "answer": "206"})
    several = question_of(
        "here:1", {"category": "数", "question": "几块骨头？", "answer": ["206", "二百零六"]}
    )
    assert (one.accepted, several.accepted) == (("206",), ("206", "二百零六"))
    assert as_conversation(one).turns[0].human == "几块骨头？\n请直接写出答案。"
    assert one.rotations == 1
    assert one.rotated(0) == one


def test_each_option_stands_once_at_each_letter() -> None:
    question = question_of("here:1", CHOICE)
    orders = [question.rotated(turn) for turn in range(question.rotations)]
    assert [order.options for order in orders] == [("甲", "乙", "丙"), ("乙", "丙", "甲"), ("丙", "甲", "乙")]
    assert [order.options[order.right] for order in orders] == ["乙"] * 3
    assert [order.lines[0] for order in orders] == ["A. 甲", "A. 乙", "A. 丙"]


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["(A)甲", "(B)乙", "(C)丙"], "answer": "B"},
        {"options": ["A. 甲", "B．乙", "C、丙"], "answer": "b"},
        {"options": ["甲", "乙", "丙"], "answer": "乙"},
        {"A": "甲", "B": "乙", "C": "丙", "answer": "B"},
        {"options": None, "A": "甲", "B": "乙", "C": "丙", "Answer": "B"},
    ],
)
def test_what_files_call_an_option(row: dict) -> None:
    question = question_of("here:1", {"question": "谁？"} | row)
    assert question == ObjectiveQuestion("here:1", "none", "谁？", ("甲", "乙", "丙"), right=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, '"question" is missing, empty, or not text'),
        ({"category": 3}, '"category" is missing, empty, or not text'),
        ({"passage": ["a"]}, '"passage" is missing, empty, or not text'),
        ({"options": "甲乙"}, '"options" is not a list of 2 to 26'),
        ({"options": ["甲"]}, '"options" is not a list of 2 to 26'),
        ({"options": ["甲", "", "丙"]}, '"options" has one that is empty'),
        ({"options": ["甲", "甲", "丙"]}, '"options" has the same one twice'),
        ({"answer": "D"}, "'D': neither one of A, B, C nor one of the options"),
        ({"answer": 1}, "1: neither one of A, B, C"),
        ({"answer": None}, "None: neither one of A, B, C"),
        ({"options": None, "answer": []}, '"answer" is neither text nor a list of accepted texts'),
        ({"options": None, "answer": ["a", ""]}, '"answer" is neither text nor a list of accepted texts'),
        ({"question": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_row_at_fault_is_named_with_its_place(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(CHOICE) + "\n" + json.dumps(CHOICE | change) + "\n")
    with pytest.raises(UserError, match=r"questions\.jsonl:2: ") as error:
        read_objective_questions(str(path))
    assert message in str(error.value)


def test_a_file_without_questions_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no questions"):
        read_objective_questions(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        read_objective_questions(str(tmp_path / "nope.jsonl"))
    with pytest.raises(UserError, match=":1: a question is an object"):
        read_objective_questions(write_rows(tmp_path / "list.jsonl", [["a"]]))


@pytest.fixture
def on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.huggingface_hub, "repo_exists", lambda name, repo_type: repo_type == "dataset")


def test_a_set_of_subjects_is_read_from_the_split_with_answers(on_the_hub, monkeypatch) -> None:
    """The shape of ceval/ceval-exam, whose "test" came without answers for long."""
    splits = {"logic": ["test", "val", "dev"], "law": ["dev", "test"]}

    def load(name: str, subject: str, split: str) -> datasets.Dataset:
        assert (name, split) == ("ceval/ceval-exam", {"logic": "val", "law": "test"}[subject])
        row = {"id": 0, "question": f"{subject}?", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "D"}
        return datasets.Dataset.from_list([row | {"explanation": ""}])

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: list(splits))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, subject: splits[subject])
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_objective_questions("ceval/ceval-exam")
    assert [(one.place, one.category, one.right) for one in found] == [
        ("ceval/ceval-exam:logic:1", "logic", 3),
        ("ceval/ceval-exam:law:1", "law", 3),
    ]


def test_cmmlu_is_read_from_its_archive(on_the_hub, monkeypatch, tmp_path: Path) -> None:
    """The shape of haonan-li/cmmlu: an index without a name, capital column names, one file for a subject."""
    with zipfile.ZipFile(tmp_path / CMMLU_ARCHIVE, "w") as archive:
        archive.writestr("dev/law.csv", ",Question,A,B,C,D,Answer\n0,不读,1,2,3,4,A\n")
        archive.writestr("test/law.csv", ',Question,A,B,C,D,Answer\n0,"甲，\n乙",None,NA,3,4,C\n')
        archive.writestr("test/art.csv", "\ufeff,Question,A,B,C,D,Answer\n0,丙,1,2,3,4,A\n1,丁,1,2,3,4,B\n")

    def download(name: str, file: str, repo_type: str) -> str:
        assert (name, repo_type) == ("haonan-li/cmmlu", "dataset")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = read_objective_questions("haonan-li/cmmlu")
    assert [(one.category, one.text, one.options, one.right) for one in found] == [
        ("art", "丙", ("1", "2", "3", "4"), 0),
        ("art", "丁", ("1", "2", "3", "4"), 1),
        ("law", "甲，\n乙", ("None", "NA", "3", "4"), 2),
    ]


def test_a_set_that_cannot_be_read_is_one_line(on_the_hub, monkeypatch) -> None:
    def refuse(name: str) -> list[str]:
        raise RuntimeError("Dataset scripts are no longer supported, but found set.py")

    monkeypatch.setattr(datasets, "get_dataset_config_names", refuse)
    with pytest.raises(UserError, match=r"org/set: .* cannot be read \(Dataset scripts are no longer"):
        read_objective_questions("org/set")


def test_the_sample_questions_are_of_the_original_s_categories() -> None:
    found = read_objective_questions(str(ROOT / "data" / "evaluation" / "objective_example.jsonl"))
    by_category = {}
    for question in found:
        by_category.setdefault(question.category, []).append(question)
    assert list(by_category) == ["知识题", "语句理解题", "文学题", "逻辑推理题", "上下文阅读"]
    assert all(len(several) >= 8 for several in by_category.values())
    choices = [question for question in found if question.options]
    rights = [question.right for question in choices]
    assert all(rights.count(letter) >= len(rights) // 5 for letter in range(4))
    longest = sum(max(one.options, key=len) == one.options[one.right] for one in choices)
    assert longest <= len(choices) / 3
    assert len({as_conversation(question) for question in found}) == len(found) >= 40
