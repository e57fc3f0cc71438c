import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation import objective
from evaluation.objective_questions import ObjectiveQuestion, as_conversation, read_objective_questions
from evaluation.objective_scores import (
    GENERATED,
    GUESSED,
    LETTER,
    OPTION,
    PER_TOKEN,
    WAYS,
    judge,
    objective_figures,
    objective_report,
    way_figures,
)
from tests.conftest import ROOT, write_rows
from training import trainer

SAMPLE = ROOT / "data" / "evaluation" / "objective_example.jsonl"


def choice(number: int, right: str = "A") -> dict:
    options = [f"第{number + turn * 7 % 11}个{'山水花鸟'[turn]}" for turn in range(4)]
    return {
        "category": f"类{number % 2}",
        "question": f"第{number}题选哪个？",
        "options": options,
        "answer": right,
    }


@pytest.fixture
def run(outcome, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    def run(model: str, questions: str, more: str = "", output: str = "out") -> tuple[int, str, str]:
        arguments = (
            f"--model {model} --device cpu --questions {questions} --output {tmp_path / output} {more}"
        )
        return outcome(objective.main, arguments)

    return run


def result_in(directory: Path) -> dict:
    return json.loads((directory / "result.json").read_text("utf-8"))


def answers_in(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "answers.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_random_model_is_at_chance_by_every_way(run, base: str, tmp_path: Path, caplog) -> None:
    letters = random.Random(1)
    questions = write_rows(tmp_path / "q.jsonl", [choice(n, letters.choice("ABCD")) for n in range(150)])
    status, out, _ = run(base, questions, "--max-new-tokens 4 --batch-size 50")
    assert status == 0
    assert "they are added, with embedding rows that were never trained" in caplog.text
    result = result_in(tmp_path / "out")
    assert (result["asked"], result["chance"]) == (150, 0.25)
    for way in (GUESSED, LETTER, OPTION, PER_TOKEN):
        low, high = result["ways"][way]["overall"]["interval"]
        assert low < 0.25 < high, way
    # A random model has no preference among the texts, so the letter decides its choice.
    assert max(result["ways"][LETTER]["letters"].values()) > 0.9
    assert result["ways"][LETTER]["same_option_in_all"] < 0.1
    assert result["unread"] > 0.5
    assert out.count("\n| 类0 |") == 1
    assert "a guess is right in 25.0%" in out


@pytest.mark.slow
def test_a_model_that_was_taught_the_questions_by_heart_has_them_all_right(
    run, base: str, tmp_path: Path
) -> None:
    """The training rows are the questions as they are asked, with answers "B. text", or short ones."""
    questions = read_objective_questions(str(SAMPLE))[:40]
    rows = []
    for question in questions:
        answer = question.lines[min(question.all_right)] if question.options else question.accepted[0]
        rows.append({"instruction": as_conversation(question).turns[0].human, "output": answer})
    options = (
        f"--data-path {write_rows(tmp_path / 'rows.jsonl', rows)} --input-model {base} "
        f"--local-output-dir {tmp_path} --run-name learnt --cache-dir {tmp_path / 'cache'} --test-size 0 "
        "--max-steps 350 --lr 5e-3 --lr-scheduler linear --warmup-steps 10 --per-device-train-batch-size 8 "
        "--no-gradient-checkpointing --no-bf16 --logging-steps 100"
    )
    trainer.main.main(options.split(), standalone_mode=False)
    first = SAMPLE.read_text("utf-8").splitlines(keepends=True)[:40]
    (tmp_path / "questions.jsonl").write_text("".join(first), "utf-8")
    assert run(str(tmp_path / "learnt"), str(tmp_path / "questions.jsonl"))[0] == 0
    result = result_in(tmp_path / "out")
    assert result["asked"] == 40
    for way in WAYS:
        assert result["ways"][way]["overall"]["accuracy"] == 1.0, way
    assert result["ways"][GENERATED]["overall"]["asked"] == 40


def test_every_single_answer_is_kept(run, tuned: str, tmp_path: Path) -> None:
    rows = [choice(1, "C"), {"category": "短", "question": "你是谁", "answer": "雅意"}]
    questions = write_rows(tmp_path / "q.jsonl", rows)
    assert run(tuned, questions, "--max-new-tokens 8")[0] == 0
    rows = answers_in(tmp_path / "out")
    assert [(row["place"], row["rotation"]) for row in rows] == [
        *((f"{questions}:1", turn) for turn in range(4)),
        (f"{questions}:2", 0),
    ]
    for row in rows[:4]:
        assert row["options"]["ABCD".index(row["right"])] == choice(1)["options"][2]
        for way in (LETTER, OPTION, PER_TOKEN):
            values = row["log_likelihoods"][way]
            assert max(values) < 0
            assert row["chosen"][way] == "ABCD"[values.index(max(values))]
            assert row["is_right"][way] == (row["chosen"][way] == row["right"])
        assert row["log_likelihoods"][OPTION] < row["log_likelihoods"][PER_TOKEN]
    assert "log_likelihoods" not in rows[4]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"answers.jsonl", "result.json"}


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_same_command_goes_on_where_it_was_stopped(
    run, tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [choice(number) for number in range(5)])
    more = "--max-new-tokens 4 --batch-size 4"
    assert run(tuned, questions, more, "whole")[0] == 0

    answer_batch, batches = objective.answer_batch, []

    def stopped(model, tokenizer, prompts, config):
        if len(batches) == after:
            raise KeyboardInterrupt
        batches.append(len(prompts))
        return answer_batch(model, tokenizer, prompts, config)

    with monkeypatch.context() as patch:
        patch.setattr(objective, "answer_batch", stopped)
        status, _, err = run(tuned, questions, more, "parts")
    assert status == 130
    assert f"stopped with {4 * after} rows answered" in err
    status, _, err = run(tuned, questions, more.replace("8", "9"), "parts")
    assert status == 0
    for name in ("answers.jsonl", "result.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    status, _, err = run(tuned, questions, more, "parts")
    assert status == 2
    assert "result.json: is there already; move it, or give another --output" in err


def test_a_run_that_an_earlier_version_began_knows_its_questions() -> None:
    """The hash is the one that was computed when the class had another name."""
    questions = [
        ObjectiveQuestion("a.jsonl:1", "none", "选哪个？", ("山", "水"), 1),
        ObjectiveQuestion("a.jsonl:2", "none", "几个？", accepted=("206",)),
    ]
    assert objective.digest(questions) == "9251243b4827dceefcb05fdad48c8627"


def test_a_run_with_other_questions_is_not_continued(run, tuned: str, tmp_path: Path, monkeypatch) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [choice(number) for number in range(3)])
    answer_batch = objective.answer_batch
    calls = []

    def once(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return answer_batch(*arguments)

    monkeypatch.setattr(objective, "answer_batch", once)
    assert run(tuned, questions, "--max-new-tokens 4")[0] == 130
    there = (tmp_path / "out" / "result.json.partial").read_bytes()
    for change in ("--max-new-tokens 5", "--max-new-tokens 4 --dtype float32"):
        status, _, err = run(tuned, questions, change)
        assert status == 2
        assert "result.json.partial: begun with" in err
    write_rows(Path(questions), [choice(number, "B") for number in range(3)])
    status, _, err = run(tuned, questions, "--max-new-tokens 4")
    assert status == 2
    assert "begun with --questions" in err
    assert (tmp_path / "out" / "result.json.partial").read_bytes() == there


def test_a_broken_model_is_not_one_that_says_a(run, tuned: str, tmp_path: Path, monkeypatch) -> None:
    broken = lambda model, prompts, answers: [[float("nan")] * len(several) for several in answers]  # noqa: E731
    monkeypatch.setattr(objective, "log_likelihoods", broken)
    questions = write_rows(tmp_path / "q.jsonl", [choice(1)])
    status, _, err = run(tuned, questions, "--max-new-tokens 2")
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {tuned}: a likelihood is NaN or infinite")


def test_a_question_that_is_too_long_is_named(run, tuned: str, tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [choice(1), choice(2) | {"passage": "长" * 9000}])
    status, _, err = run(tuned, questions)
    assert status == 2
    assert f"error: {questions}:2: its " in err
    assert "leave no room for an answer" in err


# The figures of a few answers, computed by hand.

TWO = ObjectiveQuestion("q:1", "甲", "一？", ("x", "y"), right=0)
THREE = ObjectiveQuestion("q:2", "乙", "二？", ("u", "v", "w"), right=2)
SHORT = ObjectiveQuestion("q:3", "乙", "三？", accepted=("7",))


def said(answer: str, letter: list[float], option: list[float]) -> dict:
    return {
        "answer": answer,
        "ended": answer != "",
        LETTER: letter,
        OPTION: option,
        "tokens_of_option": [5, 2, 4][: len(option)],
    }


JUDGED = [
    judge(TWO, 0, said("A", [-1, -2], [-9, -3])),
    judge(TWO, 1, said("A", [-1, -2], [-3, -9])),
    judge(THREE, 0, said("w", [-1, -2, -3], [-8, -4, -6])),
    judge(THREE, 1, said("?", [-1, -2, -3], [-4, -6, -8])),
    judge(THREE, 2, said("A", [-1, -2, -3], [-6, -8, -4])),
    judge(SHORT, 0, {"answer": "是 7。", "ended": True}),
]


def test_answers_are_judged_in_the_order_that_they_were_asked_in() -> None:
    assert [row["is_right"][GENERATED] for row in JUDGED] == [True, False, True, False, True, True]
    assert [row["chosen"][GENERATED] for row in JUDGED] == ["A", "A", "C", None, "A", "是 7。"]
    # Per token: -9/5 and -3/2; then -8/5, -4/2 and -6/4.
    assert [JUDGED[row]["chosen"][PER_TOKEN] for row in (0, 2)] == ["B", "C"]
    assert [JUDGED[row]["chosen"][OPTION] for row in (0, 2)] == ["B", "B"]


def test_figures_are_those_of_the_own_order_and_rotations_show_the_letter() -> None:
    figures = way_figures(GENERATED, JUDGED)
    assert (figures["overall"]["right"], figures["overall"]["asked"]) == (3, 3)
    assert figures["categories"]["乙"]["asked"] == 2
    assert [(one["right"], one["asked"]) for one in figures["rotations"]] == [(2, 2), (0, 2), (1, 1)]
    assert figures["letters"] == {"A": 3 / 4, "B": 0, "C": 1 / 4}
    # "一？" got x and then y; "二？" got w, nothing, w.
    assert figures["same_option_in_all"] == 0
    by_letter = way_figures(LETTER, JUDGED)
    assert by_letter["letters"] == {"A": 1, "B": 0, "C": 0}
    # The whole option: y both times, then v in each of the three orders.
    assert way_figures(OPTION, JUDGED)["same_option_in_all"] == 1
    whole = objective_figures(JUDGED)
    assert whole["asked"] == 3
    assert whole["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert whole["unread"] == pytest.approx(1 / 6)
    assert whole["cut_off"] == 0
    assert list(whole["ways"]) == list(WAYS)


def test_several_right_options_are_scored_as_a_set() -> None:
    several = ObjectiveQuestion("q:4", "丙", "四？", ("x", "y", "z", "w"), right=(0, 2))
    said_of = {"AC": True, "A": False, "A、B和C": False, "答案是C、A": True}
    rows = [judge(several, 0, {"answer": answer, "ended": True}) for answer in said_of]
    assert [row["is_right"][GENERATED] for row in rows] == list(said_of.values())
    assert [row["chosen"][GENERATED] for row in rows] == ["AC", "A", "ABC", "AC"]
    assert rows[0]["right"] == "AC"
    assert rows[0]["chosen"].keys() == {GENERATED, GUESSED}
    # In another order, "z" and "x" stand at A and C again.
    turned = judge(several, 2, {"answer": "AC", "ended": True})
    assert (turned["right"], turned["is_right"][GENERATED]) == ("AC", True)
    whole = objective_figures([*JUDGED, rows[0], turned])
    assert whole["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 15) / 3)
    assert whole["ways"][LETTER]["overall"]["asked"] == 2
    assert whole["ways"][GENERATED]["overall"]["asked"] == 4
    # A, A, C and A of JUDGED, and AC twice.
    assert whole["ways"][GENERATED]["letters"] == {"A": 5 / 8, "B": 0, "C": 3 / 8, "D": 0}
    assert whole["ways"][GENERATED]["same_option_in_all"] == pytest.approx(1 / 3)
    assert whole["ways"][LETTER]["same_option_in_all"] == 0
    assert "C is chosen" in objective_report({"model": "m", "questions": "q"} | whole)
    one = judge(
        ObjectiveQuestion("q:5", "丁", "？", ("x", "y"), right=0), 0, said("A、B", [-1, -2], [-9, -3])
    )
    assert one["chosen"][GENERATED] is None


def test_several_right_options_are_asked_without_likelihoods(run, tuned: str, tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [choice(1), choice(2, "ABD")])
    assert run(tuned, questions, "--max-new-tokens 4")[0] == 0
    rows = answers_in(tmp_path / "out")
    assert ["log_likelihoods" in row for row in rows] == [True] * 4 + [False] * 4
    assert result_in(tmp_path / "out")["ways"][LETTER]["overall"]["asked"] == 1


def test_short_answers_alone_have_no_likelihood(run, tuned: str, tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [{"category": "短", "question": "你是谁", "answer": "雅意"}])
    status, out, _ = run(tuned, questions, "--max-new-tokens 8")
    assert status == 0
    assert list(result_in(tmp_path / "out")["ways"]) == [GENERATED, GUESSED]
    assert "Multiple choice" not in out
