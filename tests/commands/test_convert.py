import json
from pathlib import Path

import pytest

from tests.conftest import MULTI_TURN, SINGLE_TURN, write_rows
from training import convert
from training.text.conversation import from_row

SYSTEM = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
}


def rows_of(path: Path | str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("to", ["multi-round", "messages"])
def test_all_rows_of_all_files_keep_what_they_say(tmp_path: Path, outcome, to: str) -> None:
    more = write_rows(tmp_path / "more.jsonl", [SYSTEM, {"instruction": "q", "input": "i"}])
    output = tmp_path / "out.jsonl"
    files = [SINGLE_TURN, MULTI_TURN, more]
    options = " ".join(f"--data-path {path}" for path in files)
    status, out, err = outcome(convert.main, f"{options} --to {to} --output {output}")
    assert (status, err) == (0, "")
    assert out == f"{output}: 162 rows, of 162 read\n"
    assert list(map(from_row, rows_of(output))) == [from_row(row) for path in files for row in rows_of(path)]
    key = {"multi-round": "conversations", "messages": "messages"}[to]
    assert all(key in row for row in rows_of(output))


def test_instruction_rows(tmp_path: Path, outcome) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl",
        [SYSTEM, {"conversations": [{"from": "human", "value": "q"}]}, *rows_of(MULTI_TURN)[:4]],
    )
    output = tmp_path / "out.jsonl"
    status, out, _ = outcome(convert.main, f"--data-path {path} --to instruction --output {output}")
    assert status == 0
    assert out.splitlines() == [
        "left out, a dialogue of several turns has no instruction row: 4 "
        f"({path}:3, {path}:4, {path}:5, ...)",
        f"{output}: 2 rows, of 6 read",
    ]
    assert rows_of(output) == [
        {"instruction": "q", "input": "", "output": "a", "system": "s"},
        {"instruction": "q", "input": ""},
    ]


def test_what_does_not_come_along_is_counted(tmp_path: Path, outcome) -> None:
    message = {"role": "user", "content": "q", "name": "n"}
    rows = [{"messages": [message], "id": 1}, {"messages": [message]}, [], {"instruction": ""}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out.jsonl"
    status, out, _ = outcome(convert.main, f"--data-path {path} --to messages --output {output}")
    assert status == 0
    assert out.splitlines() == [
        f"left out, a row is a list, not an object: 1 ({path}:3)",
        f'left out, "instruction" is empty: 1 ({path}:4)',
        'not carried over, "id": of 1 rows',
        'not carried over, "name": of 2 rows',
        f"{output}: 2 rows, of 4 read",
    ]


def test_nothing_is_written_over_without_force(tmp_path: Path, outcome) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows_of(SINGLE_TURN)[:2])
    before = Path(path).read_bytes()
    command = f"--data-path {path} --to messages --output {path}"
    status, _, err = outcome(convert.main, command)
    assert status == 2
    assert err == f"error: {path}: is there already; give another --output, or --force to write over it\n"
    assert Path(path).read_bytes() == before
    assert outcome(convert.main, f"{command} --force")[0] == 0
    assert [list(row) for row in rows_of(path)] == [["messages"]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "q"},\n{"instruction": }]', "rows.json:2: not JSON"),
        ("[]", "out.jsonl: not written; none of the 0 rows can be a row of messages"),
        ('{"a": 1}', "out.jsonl: not written; none of the 1 rows can be a row of messages"),
    ],
)
def test_a_mistake_leaves_no_file(tmp_path: Path, outcome, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    output = tmp_path / "out.jsonl"
    status, _, err = outcome(convert.main, f"--data-path {path} --to messages --output {output}")
    assert status == 2
    assert err.startswith(f"error: {tmp_path}/{message}")
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_file_that_is_not_there_leaves_no_file_either(tmp_path: Path, outcome) -> None:
    arguments = f"--data-path {SINGLE_TURN} --data-path {tmp_path}/b.json --to messages"
    status, _, err = outcome(convert.main, f"{arguments} --output {tmp_path}/out.jsonl")
    assert (status, err) == (2, f"error: {tmp_path}/b.json: no such file\n")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, outcome) -> None:
    output = tmp_path / "no" / "out.jsonl"
    status, _, err = outcome(convert.main, f"--data-path {SINGLE_TURN} --to messages --output {output}")
    assert (status, err) == (2, f"error: {output}: No such file or directory\n")


def test_the_columns_of_tables_are_not_asked_of_a_faq(tmp_path: Path, outcome) -> None:
    (tmp_path / "faq.md").write_text("## q1\n\na1\n")
    (tmp_path / "faq.csv").write_text("问题,答案\nq2,a2\n")
    output = tmp_path / "out.jsonl"
    status, out, err = outcome(
        convert.main,
        f"--data-path {tmp_path / 'faq.md'} --data-path {tmp_path / 'faq.csv'} --to instruction "
        f"--columns question=问题,answer=答案 --output {output}",
    )
    assert (status, out, err) == (0, f"{output}: 2 rows, of 2 read\n", "")
    assert [(row["instruction"], row["output"]) for row in rows_of(output)] == [("q1", "a1"), ("q2", "a2")]
