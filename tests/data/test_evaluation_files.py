from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_rows
from training.common.errors import UserError
from training.data.encoded import load_encoded
from training.data.evaluation_files import evaluation_names, leakage, leakage_lines
from training.data.examples import Examples


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["data/test.jsonl"], ["test"]),
        (["a/test.v1.jsonl.gz", "验证.jsonl"], ["test_v1", "验证"]),
        (["a/test.jsonl", "b/test.jsonl", "c/other.json"], ["a_test", "b_test", "c_other"]),
        (["faq.xlsx#one two", "faq.xlsx#three"], ["faq_one_two", "faq_three"]),
        (["org/name", "org/other#config"], ["name", "other_config"]),
        (["test.json", "test.jsonl"], ["test_1", "test_2"]),
        (["."], ["_"]),
        (["e/*.jsonl", "e/test-*.jsonl", "f/**/*.csv"], ["e", "test", "f"]),
        (["*.jsonl"], ["files"]),
        ([], []),
    ],
)
def test_a_loss_is_named_after_its_file(paths: list[str], names: list[str]) -> None:
    assert evaluation_names(paths) == dict(zip(names, paths, strict=True))


def test_a_file_is_evaluated_once() -> None:
    with pytest.raises(UserError, match=r"^--eval-data-path a\.jsonl: given twice$"):
        evaluation_names(["a.jsonl", "b.jsonl", "a.jsonl"])


@pytest.fixture
def load(tmp_path: Path, tokenizer) -> Callable[[str, list[tuple[str, str]]], Examples]:
    """A function that makes the examples of (question, answer) pairs; a blank separates turns."""

    def load(name: str, pairs: list[tuple[str, str]]) -> Examples:
        rows = [
            {
                "messages": [
                    {"role": role, "content": text}
                    for turn in zip(questions.split(), answers.split(), strict=True)
                    for role, text in zip(("user", "assistant"), turn, strict=True)
                ]
            }
            for questions, answers in pairs
        ]
        path = write_rows(tmp_path / name, rows)
        return Examples([load_encoded(path, tokenizer, 500, tmp_path / "cache")], range(len(rows)))

    return load


@pytest.mark.parametrize("seed", range(10))
def test_leakage_is_an_equal_whole_prompt(load, seed: int) -> None:
    random = np.random.default_rng(seed)

    def dialogues(count: int) -> list[tuple[str, str]]:
        turns = random.integers(1, 3, count)
        return [
            (" ".join(random.choice(list("ab"), each)), " ".join(random.choice(list("xyz"), each)))
            for each in turns
        ]

    def prompt(dialogue: tuple[str, str]) -> tuple[list[str], list[str]]:
        return dialogue[0].split(), dialogue[1].split()[:-1]

    trained, evaluated = dialogues(6), dialogues(12)
    training = load("train.jsonl", trained)
    used = Examples(training.files, [1, 2, 2, 5])  # the other rows are not trained on
    trained = [trained[number] for number in (1, 2, 2, 5)]
    found = leakage(load("test.jsonl", evaluated), used)
    prompts = [prompt(dialogue) for dialogue in trained]
    leaks = [number for number, dialogue in enumerate(evaluated) if prompt(dialogue) in prompts]
    assert found.rows.tolist() == leaks
    assert found.is_whole.tolist() == [evaluated[number] in trained for number in leaks]
    assert found.trained_on.tolist() == [
        trained.index(evaluated[number])
        if evaluated[number] in trained
        else prompts.index(prompt(evaluated[number]))
        for number in leaks
    ]


def test_leakage_is_one_line_with_places(load, tmp_path: Path) -> None:
    training = load("train.jsonl", [("a", "x"), ("b", "y"), ("c", "z")])
    names = {
        "some": load("some.jsonl", [("d", "x"), ("b", "x"), ("a", "x")]),
        "none": load("none.jsonl", [("d", "x")]),
    }
    some, train = tmp_path / "some.jsonl", tmp_path / "train.jsonl"
    assert leakage_lines(names, training) == [
        "WARNING: evaluation some: 3 rows, 2 of them with the whole prompt of a row that is trained on, 1 of "
        f"these with its answer, too ({some}:2 = {train}:2, {some}:3 = {train}:1)",
        "evaluation none: 1 rows, none of them with the whole prompt of a row that is trained on",
    ]
