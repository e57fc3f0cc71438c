import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_rows
from training.common.errors import UserError
from training.common.option_texts import Source
from training.common.options import Options
from training.data.encoded import RowOptions, load_encoded
from training.data.examples import Examples, build_datasets
from training.data.held_out import write_held_out


def messages(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    listed = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    listed[1].update(more)
    return {"messages": listed}


def test_rows_are_written_as_messages_uncut_and_with_their_weights(tmp_path: Path, tokenizer) -> None:
    long = "很" * 300
    rows = [
        {"instruction": "q", "input": "i", "output": "a\n", "system": "s"},
        {"instruction": "", "output": "a"},  # cannot be used
        messages("q1", "a1", "q2", long),  # cut after its first turn
        {"instruction": long, "output": "a"},  # dropped
        {"conversations": [{"from": "human", "value": "q"}, {"from": "yayi", "value": "a"}]},
        messages("q1", "a1", "q2", "a2", weight=0),
        messages("q1", "a1", "q2"),  # ends with the human
    ]
    other = [messages("p", "b"), messages("p2", "b2")]
    expected = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q\ni"},
                {"role": "assistant", "content": "a\n"},
            ]
        },
        rows[2],
        messages("q", "a"),
        rows[5],
        messages("q1", "a1"),
    ]
    paths = [write_rows(tmp_path / "rows.jsonl", rows), write_rows(tmp_path / "other.jsonl", other)]
    files = [load_encoded(path, tokenizer, 200, tmp_path / "cache") for path in paths]
    assert [len(file) for file in files] == [5, 2]
    write_held_out(Examples(files, [0, 1, 2, 3, 4, 6]), tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert written == [*expected, other[1]]
    # What is written is again what was encoded.
    again = load_encoded(str(tmp_path / "out.jsonl"), tokenizer, 200, tmp_path / "cache")
    for number, example in enumerate([*files[0], files[1][1]]):
        assert {key: ids.tolist() for key, ids in again[number].items()} == {
            key: ids.tolist() for key, ids in example.items()
        }


def test_where_only_last_answers_are_learnt_the_earlier_ones_weigh_nothing(tmp_path: Path, tokenizer) -> None:
    rows = [{"q": "p", "a": "b", "h": [["q1", "a1"]]}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    options = RowOptions("last", {"question": "q", "answer": "a", "history": "h"})
    file = load_encoded(path, tokenizer, 200, tmp_path / "cache", options)
    write_held_out(Examples([file], [0]), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == messages("q1", "a1", "p", "b", weight=0)


@pytest.mark.parametrize("held_out", [[0], [1, 3], [2], [0, 1, 2, 3]])
def test_rows_on_one_line_of_an_array_are_told_apart(tmp_path: Path, tokenizer, held_out: list[int]) -> None:
    rows = [messages("q", text) for text in ("a", "b", "b", "c")]
    broken, dropped = {"instruction": "q"}, messages("q" * 500, "b")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([broken, rows[0], dropped, *rows[1:3], broken, dropped, rows[3]]))
    file = load_encoded(str(path), tokenizer, 200, tmp_path / "cache")
    assert len(file) == 4
    write_held_out(Examples([file], held_out), tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [rows[number] for number in held_out]


@pytest.mark.parametrize("row", [0, 1], ids=["the row held out", "another row"])
def test_a_file_that_has_changed_is_refused(tmp_path: Path, tokenizer, row: int) -> None:
    rows = [messages("q", "a"), messages("p", "b")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    file = load_encoded(path, tokenizer, 200, tmp_path / "cache")
    rows[row] = messages("q", "other")
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"rows\.jsonl: has changed since it was encoded; start again"):
        write_held_out(Examples([file], [0]), tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*out*"))


def test_how_a_table_is_read_is_said_once_at_every_start(tmp_path: Path, tokenizer, capsys) -> None:
    path = tmp_path / "faq.csv"
    path.write_bytes("question,answer\n一,二\n三,四\n".encode("gb18030"))
    options = Options(
        data_path=(Source(str(path)),), cache_dir=tmp_path / "cache", max_length=100, test_size=1
    )
    for _ in range(2):
        _, held_out = build_datasets(options, tokenizer)
        write_held_out(held_out, tmp_path / "out.jsonl")
        out, err = capsys.readouterr()
        assert (out.count(f"{path}: not UTF-8, and read as GB18030\n"), "GB18030" in err) == (1, False)
