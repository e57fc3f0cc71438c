import json

import pytest

from tests.conftest import SINGLE_TURN, write_rows
from training.common.errors import UserError
from training.common.option_texts import Source
from training.common.options import Options
from training.data.examples import build_datasets

ROWS = [json.loads(line) for line in SINGLE_TURN.read_text("utf-8").splitlines()]


def dialogue(*questions: str) -> dict:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] + [
        {"role": role, "content": text} for text in questions for role in ("user", "assistant")
    ]}  # fmt: skip


MOVED = (
    "changed sides, so that rows with one prompt, and dialogues that go on from one another, are on the same "
    "side"
)
TOO_MANY = "would leave none of the rows to train on; a tenth of them is held out instead"
BOUND = "are trained on whatever --test-size says: several dialogues begin with them, or with their prompt"
OPENINGS = [dialogue(), dialogue(), dialogue("r"), dialogue("i")]


@pytest.mark.parametrize(
    ("rows", "weight", "test_size", "lines"),
    [
        (
            ROWS[:1],
            1,
            0.05,
            [
                "1 rows to train on, 0 held out",
                f"WARNING: --test-size 0.05 {TOO_MANY}, 0 rows",
            ],
        ),
        (
            ROWS[:10],
            1,
            0.99,
            [
                "9 rows to train on, 1 held out",
                f"WARNING: --test-size 0.99 {TOO_MANY}, 1 rows",
            ],
        ),
        (
            [{"instruction": "q", "output": f"a{i}"} for i in range(6)],
            1,
            2,
            [
                "6 rows to train on, 0 held out",
                f"2 rows {MOVED}",
                "WARNING: 0 rows are held out, not 2: 6 go together with more rows than there was room for",
            ],
        ),
        (
            OPENINGS,
            1,
            3,
            [
                "2 rows to train on, 2 held out",
                f"1 rows {MOVED}",
                f"2 rows {BOUND}",
                "WARNING: 2 rows are held out, not 3: there are no others",
            ],
        ),
        (
            ROWS[:10],
            1.5,
            4,
            [
                "rows.jsonl: weight 1.5: 10 rows, of 10",
                "10 rows to train on, 4 held out",
                "of 10 rows, 6 are trained on, 4 held out, and 0 left out by a weight below 1",
            ],
        ),
        (
            ROWS[:10],
            0.5,
            1,
            [
                "rows.jsonl: weight 0.5: 4 rows, of 10",
                "4 rows to train on, 1 held out",
                "of 10 rows, 4 are trained on, 1 held out, and 5 left out by a weight below 1",
            ],
        ),
    ],
    ids=["one row", "nearly all", "one prompt", "openings", "repeated", "left out"],
)
def test_the_lines_account_for_every_row(
    tokenizer, tmp_path, capsys, rows: list, weight: float, test_size: float, lines: list[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    options = Options(
        data_path=(Source(path, weight),),
        max_length=500,
        test_size=test_size,
        seed=1,
        cache_dir=tmp_path / "cache",
    )
    build_datasets(options, tokenizer)
    out = capsys.readouterr().out.replace(f"{tmp_path}/", "").splitlines()
    first = next(number for number, line in enumerate(out) if "weight" in line or "to train on" in line)
    assert out[first:] == lines


def test_weights_that_leave_no_row_are_one_line(tokenizer, tmp_path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    options = Options(data_path=(Source(path, 0.1),), max_length=500, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"^no rows to train on: the weights of --data-path leave none of 1"):
        build_datasets(options, tokenizer)
