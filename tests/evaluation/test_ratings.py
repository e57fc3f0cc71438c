"""Sheets for three raters, filled in by a script: what comes back is what was put in."""

import csv
import io
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation import ranking, subjective
from evaluation.ratings import COLUMNS, SCORE, Item, read_sheets, write_sheets
from tests.conftest import write_rows

MODELS = ("checkpoints/a", "org/b", "c")
QUESTIONS = [("金融领域", "", f"什么是{word}？") for word in ("洗钱", "利率", "汇率", "风险")]
for category in ("翻译题", "编程题"):
    QUESTIONS += [("基础能力-主观题", category, f"{category}：{number}\n请答。") for number in (1, 2)]


def answer(model: str, question: str) -> str:
    return f"{MODELS.index(model)}号说：“{question}”，\n=1+1，逗号、分号；都有, 是吧"


def given(model: str, question: tuple[str, str, str], rater: int) -> int:
    """A score for each model, question and rater."""
    level = {"checkpoints/a": 4, "org/b": 2, "c": 2}[model]
    return max(1, min(5, level + (len(question[2]) + rater) % 3 - 1))


@pytest.fixture
def sheets(outcome, tmp_path: Path) -> Path:
    """The directory of the sheets, not yet filled in."""
    files = []
    for model in MODELS:
        rows = [
            {"domain": domain, "category": category, "question": text, "model": model}
            | {"answer": answer(model, text)}
            for domain, category, text in QUESTIONS
        ]
        files.append(write_rows(tmp_path / f"{MODELS.index(model)}.jsonl", rows))
    several = " ".join(f"--answers {path}" for path in files)
    status, _, err = outcome(subjective.main, f"sheets {several} --raters 3 --output {tmp_path / 'sheets'}")
    assert (status, err.count("\n")) == (0, 2)
    return tmp_path / "sheets"


def read(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


def write(path: Path, lines: list[list[str]], encoding: str = "utf-8-sig", delimiter: str = ",") -> None:
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)


def fill(sheets: Path) -> None:
    key = json.loads((sheets / "key.json").read_text("utf-8"))["items"]
    for rater in (1, 2, 3):
        header, *rows = read(sheets / f"rater-{rater}.csv")
        for row in rows:
            item = key[row[header.index("编号")]]
            question = item["domain"], item["category"], item["question"]
            row[header.index(SCORE)] = str(given(item["model"], question, rater))
        write(sheets / f"rater-{rater}.csv", [header, *rows])


def test_sheets_are_blind_and_shuffled(sheets: Path) -> None:
    tables = [read(sheets / f"rater-{rater}.csv") for rater in (1, 2, 3)]
    for rater, (header, *rows) in enumerate(tables, start=1):
        assert (sheets / f"rater-{rater}.csv").read_bytes().startswith(b"\xef\xbb\xbf")
        assert tuple(header) == COLUMNS
        assert len(rows) == len(MODELS) * len(QUESTIONS)
        assert {row[0] for row in rows} == {str(rater)}
        assert {row[-1] for row in rows} == {""}
        assert not any(model in cell for row in rows for cell in row for model in ("checkpoints/a", "org/b"))
        # The answers to one question stand together.
        assert len(list(itertools.groupby(rows, key=lambda row: row[4]))) == len(QUESTIONS)
    orders = {tuple(row[1] for row in rows) for _, *rows in tables}
    assert len(orders) == 3
    assert all(sorted(order) == sorted(next(iter(orders))) for order in orders)
    # Neither the number nor the place of an answer tells its model.
    key = json.loads((sheets / "key.json").read_text("utf-8"))["items"]
    by_number = [key[number]["model"] for number in sorted(key)]
    assert len(set(by_number[:8])) > 1
    assert {key[row[1]]["model"] for _, *rows in tables for row in rows[::3]} == set(MODELS)


CHANGED_BY_SPREADSHEETS = {
    "=1+1": "2",
    "=cmd|'x'!A1": "#NAME?",
    "-3": "-3",
    "1/2": "1月2日",
    "3-4": "4-Mar",
    "true": "TRUE",
    "False": "FALSE",
    "0012": "12",
    "12345678901234567890": "1.23457E+19",
    "1e5": "1.00E+05",
    "2024-01-02": "2024/1/2",
    "2024年1月2日": "2024/1/2",
    "8:05 pm": "20:05",
    "Mar 5": "5-Mar",
    "50%": "0.5",
    "1,000": "1000",
    "$3.50": "3.5",
}


@pytest.mark.parametrize("text", CHANGED_BY_SPREADSHEETS)
def test_a_text_that_a_spreadsheet_would_change_has_an_apostrophe_and_its_changed_form_counts(
    tmp_path: Path, capsys, text: str
) -> None:
    items = [Item("域", "", f"{text}？", "m", text), Item("域", "", f"{text}？", "n", "一个回答")]
    write_sheets(items, 1, 0, tmp_path)
    _, *rows = read(tmp_path / "rater-1.csv")
    key = json.loads((tmp_path / "key.json").read_text("utf-8"))["items"]
    assert {row[5] for row in rows} == {f"'{text}", "一个回答"}
    for row in rows:
        row[-1] = "4" if key[row[1]]["model"] == "m" else "2"
    write(tmp_path / "rater-1.csv", [list(COLUMNS), *rows])
    expected = read_sheets(tmp_path)
    assert sorted(zip([item.model for item in expected.items], *expected.scores, strict=True)) == [
        ("m", 4),
        ("n", 2),
    ]
    assert capsys.readouterr().err == ""
    for row in rows:
        row[5] = row[5].replace(f"'{text}", CHANGED_BY_SPREADSHEETS[text])
    write(tmp_path / "rater-1.csv", [list(COLUMNS), *rows])
    assert read_sheets(tmp_path) == expected


@pytest.mark.parametrize(
    "text", ["一个回答", "2 apples", "I may", "March", "真的吗", "3个苹果", "x=1", "truth"]
)
def test_any_other_text_stays_as_it_is(tmp_path: Path, text: str) -> None:
    write_sheets([Item("域", "", "问？", "m", text)], 1, 0, tmp_path)
    assert read(tmp_path / "rater-1.csv")[1][5] == text


def test_characters_that_gbk_lacks_are_lost_and_counted(tmp_path: Path, capsys) -> None:
    answers = ["😀 好𠮷", "Grüße, ß", "只有汉字"]
    write_sheets([Item("域", "", f"{n}？", "m", text) for n, text in enumerate(answers)], 1, 0, tmp_path)
    header, *rows = read(tmp_path / "rater-1.csv")
    for row in rows:
        row[-1] = "3"
    text = "".join(",".join(f'"{cell}"' for cell in row) + "\r\n" for row in [header, *rows])
    (tmp_path / "rater-1.csv").write_bytes(text.encode("gbk", errors="replace"))
    assert read_sheets(tmp_path).scores == [[3, 3, 3]]
    line = "rater-1.csv: the texts of 2 items were changed; their numbers count\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize(
    "cell", ["4", "4.0", "4.", "４", "4分", "４ 分", "较好", "4较好", "4 较好", "4（较好）", " 4 "]
)
def test_how_raters_write_a_score(tmp_path: Path, cell: str) -> None:
    write_sheets([Item("域", "", "问？", "m", "答")], 1, 0, tmp_path)
    header, row = read(tmp_path / "rater-1.csv")
    write(tmp_path / "rater-1.csv", [header, ["１.0", "1.0", *row[2:6], cell]])
    assert read_sheets(tmp_path).scores == [[4]]


def means_by_hand() -> dict[str, dict[str, float]]:
    """The mean score by domain and model: raters' mean for a question, questions' for a category, theirs."""
    means: dict[str, dict[str, float]] = {}
    for domain in dict.fromkeys(question[0] for question in QUESTIONS):
        means[domain] = {}
        for model in MODELS:
            by_category: dict[str, list[float]] = {}
            for question in QUESTIONS:
                if question[0] == domain:
                    scores = [given(model, question, rater) for rater in (1, 2, 3)]
                    by_category.setdefault(question[1], []).append(sum(scores) / 3)
            means[domain][model] = float(np.mean([np.mean(scores) for scores in by_category.values()]))
    return means


def test_known_scores_come_back_as_means_and_ranks(sheets: Path, outcome) -> None:
    fill(sheets)
    status, out, _ = outcome(subjective.main, f"score --sheets {sheets}")
    assert status == 0
    result = json.loads((sheets / "result.json").read_text("utf-8"))
    by_hand = means_by_hand()
    assert result["raters"] == 3
    assert [table["title"] for table in result["tables"]] == list(by_hand)
    for table in result["tables"]:
        expected = by_hand[table["title"]]
        rows = {row["model"]: row for row in table["rows"]}
        assert {model: row["mean"] for model, row in rows.items()} == pytest.approx(expected)
        assert [rows[model]["rank"] for model in MODELS] == [1, 2, 2]
        # The two that got the same scores cannot be told apart; the first can.
        assert [rows[model]["ranks"] for model in MODELS] == [[1, 1], [2, 3], [2, 3]]
        low, high = rows["org/b"]["interval"]
        assert low <= rows["org/b"]["mean"] <= high
        assert f"| org/b | 2 (2–3) | {expected['org/b']:.2f} [" in out
    assert result["tables"][1]["categories"] == ["翻译题", "编程题"]
    assert result["tables"][0]["questions"] == 4


def ordinal_alpha(ratings: np.ndarray) -> float:
    """Alpha by its definition: 1 - observed/expected disagreement, over all pairs of values.

    ratings: (raters, items). Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.
    """
    values = np.arange(1, 6)
    counts = np.array([(ratings == value).sum() for value in values])

    def distance(one: int, other: int) -> float:
        low, high = sorted((one, other))
        between = counts[low - 1 : high].sum() - (counts[low - 1] + counts[high - 1]) / 2
        return float(between) ** 2

    raters, items = ratings.shape
    observed = sum(
        distance(ratings[i, item], ratings[j, item])
        for item in range(items) for i in range(raters) for j in range(raters) if i != j
    ) / (raters - 1)  # fmt: skip
    flat = ratings.ravel()
    expected = sum(distance(one, other) for one in flat for other in flat) / (len(flat) - 1)
    return 1 - observed / expected


def test_alpha_is_that_of_the_definition(sheets: Path, outcome) -> None:
    fill(sheets)
    outcome(subjective.main, f"score --sheets {sheets}")
    result = json.loads((sheets / "result.json").read_text("utf-8"))
    ratings = np.array([[given(m, q, rater) for q in QUESTIONS for m in MODELS] for rater in (1, 2, 3)])
    assert result["alpha"] == pytest.approx(ordinal_alpha(ratings))
    finance = np.array([[given(m, q, rater) for q in QUESTIONS[:4] for m in MODELS] for rater in (1, 2, 3)])
    assert result["tables"][0]["alpha"] == pytest.approx(ordinal_alpha(finance))
    noise = np.random.default_rng(0).integers(1, 6, (3, 400))
    assert ranking.agreement(noise) == pytest.approx(0, abs=0.1)
    assert ranking.agreement(np.tile(noise[:1], (3, 1))) == 1
    assert ranking.agreement(noise[:1]) is None
    assert ranking.agreement(np.full((3, 4), 5)) is None


def test_ranks_that_the_data_do_not_separate_are_marked() -> None:
    random_ = np.random.default_rng(2)
    question = random_.normal(3, 1, 60)  # hard questions are hard for all: only differences count
    values = {
        "first": (question + 0.5 + random_.normal(0, 0.1, 60)).tolist(),
        "second": question.tolist(),
        "third": (question - 0.01 + random_.normal(0, 0.3, 60)).tolist(),
        "last": (question - 0.5).tolist(),
    }
    ranks = {model: row["ranks"] for model, row in ranking.rank_models(values, [1] * 60).items()}
    assert ranks == {"first": [1, 1], "second": [2, 3], "third": [2, 3], "last": [4, 4]}


Spoil = Callable[[list[list[str]]], list[list[str]]]


def change(row: int, column: int, text: str) -> Spoil:
    def spoil(lines: list[list[str]]) -> list[list[str]]:
        lines[row][column] = text
        return lines

    return spoil


def answers_upside_down(lines: list[list[str]]) -> list[list[str]]:
    header, *rows = lines
    return [header, *([*row[:5], other[5], row[6]] for row, other in zip(rows, rows[::-1], strict=True))]


def questions_upside_down(lines: list[list[str]]) -> list[list[str]]:
    header, *rows = lines
    return [header, *([*row[:4], other[4], *row[5:]] for row, other in zip(rows, rows[::-1], strict=True))]


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no score": (change(3, 6, " "), r":G4: no score for item \d\d; a whole number from 1 to 5"),
    "too high": (change(3, 6, "6"), r":G4: '6' for item \d\d; a whole number from 1 to 5"),
    "too low": (change(24, 6, "0"), r":G25: '0' for item \d\d; a whole number"),
    "half": (change(1, 6, "3.5"), r":G2: '3\.5' for item \d\d; a whole number"),
    "a word": (change(1, 6, "很好"), r":G2: '很好' for item \d\d; a whole number"),
    "not a number": (change(1, 6, "nan"), r":G2: 'nan' for item \d\d; a whole number"),
    "doubled": (lambda lines: [*lines, lines[5]], r":B26: item \d\d is in row 6 already; each is rated once"),
    "missing row": (lambda lines: [*lines[:5], *lines[6:]], r": no row for item \d\d$"),
    "unknown item": (change(2, 1, "99"), r":B3: no item '99' was given out"),
    "no number": (change(2, 1, ""), r":B3: no item '' was given out"),
    "another rater's": (change(2, 0, "2"), r":A3: from the sheet of rater 2, not of 1"),
    "a word and another number": (change(1, 6, "4较差"), r":G2: '4较差' for item \d\d; a whole number"),
    "a column less": (lambda lines: [line[:6] for line in lines], r": no column 评分（1非常差 .*; save it"),
    "two columns less": (lambda lines: [line[2:] for line in lines], r": no column 评分员, 编号; save it"),
    "questions sorted apart": (questions_upside_down, r":E\d+: not the text of item \d\d: rows were"),
    "texts sorted apart": (answers_upside_down, r":F2: not the text of item \d\d: rows were mixed up"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_sheet_is_refused_with_its_cell(sheets: Path, outcome, how: str) -> None:
    spoil, message = SPOILT[how]
    fill(sheets)
    path = sheets / "rater-1.csv"
    write(path, spoil(read(path)))
    status, _, err = outcome(subjective.main, f"score --sheets {sheets}")
    assert status == 2
    assert re.search(f"^error: {re.escape(str(path))}{message}", err, re.M), err
    assert re.search(r"things? to mend; nothing was counted$", err)
    assert not (sheets / "result.json").exists()


def test_all_that_is_wrong_is_listed_at_once(sheets: Path, outcome) -> None:
    fill(sheets)
    (sheets / "rater-2.csv").unlink()
    (sheets / "rater-4.csv").write_bytes((sheets / "rater-3.csv").read_bytes())
    (sheets / "rater-3.csv").write_bytes(b"\x00\x01\xff not a table")
    write(sheets / "rater-1.csv", change(4, 6, "9")(change(2, 6, "")(read(sheets / "rater-1.csv"))))
    _, _, err = outcome(subjective.main, f"score --sheets {sheets}")
    assert err.count("error: ") == 6
    assert "rater-1.csv:G3: no score" in err
    assert "rater-1.csv:G5: '9'" in err
    assert "rater-2.csv: No such file" in err
    assert "rater-3.csv: no table with the columns" in err
    assert "rater-4.csv: there are 3 raters; take it away" in err
    assert "5 things to mend" in err


def test_sheets_that_are_not_filled_in_have_their_first_cells_listed(sheets: Path, outcome) -> None:
    status, _, err = outcome(subjective.main, f"score --sheets {sheets}")
    assert status == 2
    assert err.count("no score for item") == 20
    assert err.splitlines()[-2:] == [
        "error: ... and 52 more",
        f"error: {sheets}: 72 things to mend; nothing was counted",
    ]


@pytest.mark.parametrize(
    ("encoding", "delimiter"),
    [("utf-8", ","), ("utf-8-sig", ";"), ("utf-16", "\t"), ("gb18030", ","), ("gb18030", ";")],
)
def test_what_spreadsheets_make_of_a_sheet_is_read(sheets: Path, encoding: str, delimiter: str) -> None:
    fill(sheets)
    expected = read_sheets(sheets)
    path = sheets / "rater-2.csv"
    header, *rows = read(path)
    random.Random(0).shuffle(rows)
    for row in rows:
        row[1] = row[1].lstrip("0")
        row[6] += ".0"
        row[5] = row[5].replace("\n", "\r\n")
    write(path, [[*header, "备注"], *([*row, "好"] for row in rows), ["", " "], []], encoding, delimiter)
    assert read_sheets(sheets) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; --sheets names what"),
        ("{}", "not what `sheets` wrote"),
    ],
)
def test_without_its_key_nothing_is_read(sheets: Path, outcome, content: str | None, message: str) -> None:
    (sheets / "key.json").unlink()
    if content is not None:
        (sheets / "key.json").write_text(content)
    status, _, err = outcome(subjective.main, f"score --sheets {sheets}")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_sheets_are_not_written_over(sheets: Path, outcome, tmp_path: Path) -> None:
    before = (sheets / "rater-1.csv").read_bytes()
    status, _, err = outcome(subjective.main, f"sheets --answers {tmp_path / '0.jsonl'} --output {sheets}")
    assert status == 2
    assert "holds something already" in err
    assert (sheets / "rater-1.csv").read_bytes() == before


def test_models_that_answered_other_questions_cannot_be_compared(outcome, tmp_path: Path) -> None:
    asked = (("a", 1), ("a", 2), ("b", 1))
    rows = [{"domain": "域", "question": f"{n}？", "model": model, "answer": ""} for model, n in asked]
    path = write_rows(tmp_path / "answers.jsonl", rows)
    status, _, err = outcome(subjective.main, f"sheets --answers {path} --output {tmp_path / 'out'}")
    assert status == 2
    assert "b has 0 answers to '2？'; each model answers each of the questions once" in err
    twice = f"--answers {path} --answers {path}"
    status, _, err = outcome(subjective.main, f"sheets {twice} --output {tmp_path / 'out'}")
    assert "a has 2 answers to '1？'" in err
    path = write_rows(tmp_path / "other.jsonl", [{"instruction": "a", "output": "b"}])
    status, _, err = outcome(subjective.main, f"sheets --answers {path} --output {tmp_path / 'out'}")
    assert 'other.jsonl:1: "domain" is missing, empty, or not text; --answers names what `ask` wrote' in err
    assert not (tmp_path / "out").exists()
