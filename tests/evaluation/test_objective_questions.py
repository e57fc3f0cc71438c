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
    assert [order.options[min(order.all_right)] for order in orders] == ["乙"] * 3
    assert [order.lines[0] for order in orders] == ["A. 甲", "A. 乙", "A. 丙"]


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["(A)甲", "(B)乙", "(C)丙"], "answer": "B"},
        {"options": ["A. 甲", "B．乙", "C、丙"], "answer": "b"},
        {"options": ["甲", "乙", "丙"], "answer": "乙"},
        {"A": "甲", "B": "乙", "C": "丙", "answer": "B"},
        {"options": None, "A": "甲", "B": "乙", "C": "丙", "Answer": "B"},
        {"choices": ["甲", "乙", "丙"], "answer": "（B）"},
        {"options": {"A": "甲", "B": "乙", "C": "丙"}, "answer": "B."},
        {"choices": {"a": "甲", "b": "乙", "c": "丙"}, "answer": "Ｂ"},
        {"a": "甲", "b": "乙", "c": "丙", "d": "", "e": " ", "answer": "选项B"},
        {"Option A": "甲", "Option B": "乙", "Option C": "丙", "answer": "2"},
        {"option_a": "甲", "option_b": "乙", "option_c": "丙", "answer": 2},
        {"optionA": "甲", "optionB": "乙", "optionC": "丙", "answer": "B. 乙"},
        {"选项A": "甲", "选项B": "乙", "选项C": "丙", "answer": ["B"]},
    ],
)
def test_what_files_call_an_option(row: dict) -> None:
    question = question_of("here:1", {"question": "谁？"} | row)
    assert question == ObjectiveQuestion("here:1", "none", "谁？", ("甲", "乙", "丙"), right=1)


@pytest.mark.parametrize("answer", ["AC", "A、C", "A,C", "ＡＣ", "(A C)", ["A", "C"], ["甲", "丙"]])
def test_several_options_are_right_together(answer) -> None:
    question = question_of("here:1", CHOICE | {"answer": answer})
    assert question.right == (0, 2)
    assert as_conversation(question).turns[0].human.endswith("\n请选出所有正确的选项，先写它们的字母。")
    orders = [question.rotated(turn) for turn in range(question.rotations)]
    assert [order.right for order in orders] == [(0, 2), (1, 2), (0, 1)]
    assert all({order.options[at] for at in order.all_right} == {"甲", "丙"} for order in orders)


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        (["A", "B", "AB", "O"], "AB", 2),
        (["O", "A", "B", "AB"], "B. A", 1),
        (["12", "15", "2"], 2, 2),
        (["12", "15", "3"], "2", 1),
    ],
)
def test_the_text_of_an_option_is_no_letter_and_no_number(options: list, answer, right: int) -> None:
    assert question_of("here:1", CHOICE | {"options": options, "answer": answer}).right == right


@pytest.mark.parametrize(("answers", "rights"), [((1, 2, 3), [0, 1, 2]), ((0, 2, 1), [0, 2, 1])])
def test_the_numbers_of_a_file_begin_at_1_unless_one_is_0(
    tmp_path: Path, answers: tuple, rights: list, capsys
) -> None:
    path = write_rows(tmp_path / "q.jsonl", [CHOICE | {"answer": answer} for answer in answers])
    assert [question.right for question in read_objective_questions(path)] == rights
    assert f'{path}: numbers in "answer" (3): {min(answers)} is the first option' in capsys.readouterr().err


def test_a_table_with_an_empty_column(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,A,B,C,D,E,answer\n谁？,甲,乙,丙,丁,,D\n谁呢？,甲,乙,丙,丁,戊,ADE\n", "utf-8")
    found = read_objective_questions(str(path))
    assert [(question.options, question.right) for question in found] == [
        (("甲", "乙", "丙", "丁"), 3),
        (("甲", "乙", "丙", "丁", "戊"), (0, 3, 4)),
    ]


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "Ｂ.", "ABD", ["B"]])
@pytest.mark.parametrize("key", ["opts", "options", "选择"])
def test_options_under_an_unknown_name_make_no_short_answer_question(key: str, answer) -> None:
    row = {"question": "谁？", key: None if key == "options" else ["甲", "乙"], "answer": answer}
    with pytest.raises(ValueError, match=f'a letter, and there are no options.* take "{key}" out'):
        question_of("here:1", row)


def test_a_short_answer_of_one_letter_is_one_where_nothing_else_stands_there() -> None:
    row = {"id": 3, "question": "哪种血型？", "answer": "O", "explanation": ""}
    assert question_of("here:1", row).accepted == ("O",)
    assert question_of("here:1", {"question": "？", "answer": "DNA", "source": "x"}).accepted == ("DNA",)


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
        ({"answer": 4}, "4: neither one of A, B, C"),
        ({"answer": True}, "True: neither one of A, B, C"),
        ({"answer": "AA"}, "'AA': neither one of A, B, C"),
        ({"answer": "AD"}, "'AD': neither one of A, B, C"),
        ({"answer": "B. 丙"}, "'B. 丙': neither one of A, B, C"),
        ({"options": ["O", "A", "B"], "answer": "A"}, "write it as 'A. O' or 'B. A'"),
        ({"choices": ["甲", "乙"]}, 'options stand in "options", "choices"; leave one of them'),
        ({"options": {"A": "甲", "C": "丙"}}, 'there is an option "C", and "B" is missing or empty'),
        ({"options": None, "A": "甲", "B": "", "C": "丙"}, 'there is an option "C", and "B" is missing'),
        ({"options": None, "A": "甲", "a": "乙"}, '"a" stands there twice, in another spelling'),
        ({"options": None, "wahl": ["甲", "乙"], "answer": "甲"}, '"wahl" has the answer in it'),
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
    longest = sum(max(one.options, key=len) == one.options[min(one.all_right)] for one in choices)
    assert longest <= len(choices) / 3
    assert len({as_conversation(question) for question in found}) == len(found) >= 40
