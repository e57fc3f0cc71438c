"""Questions, and the answers to them of a model that is loaded here."""

import json
from pathlib import Path

import pytest

from evaluation import subjective
from evaluation.subjective_questions import read_answers, read_subjective_questions
from inference.generation import load, reply
from tests.conftest import ROOT, write_rows
from training.text.conversation import Conversation, Turn

QUESTIONS = [
    {"domain": "媒体领域", "question": "你是谁"},
    {"domain": "基础能力-主观题", "category": "翻译题", "question": "标题？\n再短一点。"},
    {"domain": "基础能力-主观题", "category": "编程题", "question": "笑一个"},
]
GREEDY = "--temperature 0 --repetition-penalty 1 --max-new-tokens 12 --batch-size 2"


@pytest.fixture
def questions(tmp_path: Path) -> str:
    return write_rows(tmp_path / "questions.jsonl", QUESTIONS)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_model_that_is_loaded_here(outcome, tuned: str, questions: str, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    files = f"--questions {questions} --output {output}"
    status, _, err = outcome(subjective.main, f"ask --model {tuned} --device cpu {files} {GREEDY}")
    assert status == 0
    model, tokenizer = load(tuned, device="cpu")
    sampling = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 12}
    expected = [
        reply(model, tokenizer, Conversation((Turn(row["question"]),)), **sampling) for row in QUESTIONS
    ]
    rows = rows_of(output)
    assert [row["answer"] for row in rows] == expected
    assert rows[0] == {"domain": "媒体领域", "category": "", "question": "你是谁"} | {
        "model": tuned,
        "answer": "我是雅意。",
        "ended": True,
    }
    cut_off = sum(not row["ended"] for row in rows)
    assert err.endswith(f"{output}: 3 answers, {cut_off} of them cut off\n")
    assert [item.answer for item in read_answers([str(output)])] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, ':2: "domain" is missing, empty, or not text'),
        ({"domain": "域"}, ':2: "question" is missing, empty, or not text'),
        ({"domain": "域", "question": "a", "category": 1}, ':2: "category" is missing, empty, or not text'),
        (QUESTIONS[0], ":2: the same question as {path}:1; take one of them out"),
        (["a"], ":2: a row is an object"),
    ],
)
def test_a_question_at_fault_is_named(outcome, tmp_path: Path, row, message: str) -> None:
    path = write_rows(tmp_path / "questions.jsonl", [QUESTIONS[0], row])
    status, _, err = outcome(
        subjective.main, f"ask --model ./nope --questions {path} --output {tmp_path / 'answers.jsonl'}"
    )
    assert (status, err) == (2, f"error: {path}{message.format(path=path)}\n")


def test_the_sample_questions_are_of_the_original_s_domains_and_categories() -> None:
    found = read_subjective_questions(str(ROOT / "data" / "evaluation" / "subjective_example.jsonl"))
    published = json.loads((ROOT / "data" / "evaluation" / "published_results.json").read_text("utf-8"))
    tables = {table["title"]: table["categories"] for table in published if table["kind"] == "subjective"}
    assert len(found) >= 30
    for title, categories in tables.items():
        of_domain = [question for question in found if question.domain == title]
        assert {question.category for question in of_domain} == set(categories or [""])
        assert len(of_domain) >= 4
    assert {question.domain for question in found} == set(tables)
