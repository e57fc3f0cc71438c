import json
from pathlib import Path

import datasets
import pytest

from training.common import hub
from training.common.errors import UserError
from training.data import json_rows, reader
from training.data.reader import fingerprint, parse, read_raw_rows, read_rows

ROWS = [{"a": 1}, {"a": "两\u2028行"}, {"a": [{}]}]


def read(path: Path, data: str | bytes) -> list:
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return list(read_rows(str(path)))


@pytest.mark.parametrize("start", ["", "\ufeff", "\n \r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n"])
def test_json_lines(tmp_path: Path, start: str, end: str) -> None:
    path = tmp_path / "rows.json"
    text = start + "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + end
    first = 1 + start.count("\n")
    assert read(path, text) == [(f"{path}:{first + i}", row) for i, row in enumerate(ROWS)]


def test_places_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read(path, '{"a": 1}\n\n  \n{"a": 2}') == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": 2})]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "form",
    [
        lambda rows, **how: json.dumps(rows, **how),
        lambda rows, **how: json.dumps({"version": 1, "data": rows}, **how),
        lambda rows, **how: json.dumps({"data": rows, "name": "n", "license": None}, **how) + "\n\n",
    ],
)
def test_an_array_and_an_object_around_one_give_the_numbers_of_rows(tmp_path: Path, indent, form) -> None:
    path = tmp_path / "rows.json"
    read_back = read(path, form(ROWS, ensure_ascii=False, indent=indent))
    assert read_back == [(f"{path}:{number}", row) for number, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize("start", ["", "\ufeff", "\n \r\n"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_objects_over_several_lines_are_a_row_each(tmp_path: Path, start: str, rows: list) -> None:
    path = tmp_path / "rows.json"
    text = start + "\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in rows) + "\n"
    assert read(path, text) == [(f"{path}:{number}", row) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    "row",
    [
        {"data": []},
        {"data": [1, 2]},
        {"data": "text"},
        {"data": [{"a": 1}], "instruction": "q"},
        {"data": [{"a": 1}], "name": ["n"]},
        {"data": [{"a": 1}], "source": "n" * 201},
    ],
)
def test_an_object_that_is_not_only_around_rows_is_a_row(tmp_path: Path, row: dict) -> None:
    for indent in (None, 1):
        assert [row for _, row in read(tmp_path / "rows.json", json.dumps(row, indent=indent))] == [row]


def test_two_objects_around_rows_are_two_rows(tmp_path: Path) -> None:
    row = {"data": [{"a": 1}]}
    assert [row for _, row in read(tmp_path / "a", f"{json.dumps(row)}\n" * 2)] == [row, row]


def test_a_first_line_that_is_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1,\n{"a": 2}\n')
    first, second = read_raw_rows(str(path))
    assert parse(second) == {"a": 2}
    with pytest.raises(ValueError, match="not JSON"):
        parse(first)


def test_a_large_file_that_is_read_whole_is_announced(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(json_rows, "LARGE_BYTES", 100)
    path = tmp_path / "rows.json"
    read(path, json.dumps([{"a": "x" * 100}]))
    assert capsys.readouterr().err.startswith(f"{path}: 0.0 GB of JSON are read whole")
    read(path, json.dumps({"a": "x" * 100}))
    assert capsys.readouterr().err == ""


def test_an_empty_file_and_an_empty_array_have_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", "") == []
    assert read(tmp_path / "b.json", " [ ] \n") == []


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ('{"a": 1}\n{"a": }\n', ":2: not JSON"),
        ('{\n "a": 1\n}\n{\n "a": }', ":2: not JSON (line 5: Expecting value"),
        (b'{\n "a": "\xff"}', ":1: not UTF-8 (line 2"),
        ("[" * 100_000, ": not JSON"),
        ('{"a": ' + "9" * 5000 + "}", ":1: not JSON"),
        ('[{"a": 1},\n{"a": }]', ":2: not JSON"),
        ('[{"a": 1}\n{"a": 2}]', ":2: not JSON: expected ','"),
        ('[{"a": 1},\n', ":2: not JSON"),
        ('[{"a": 1}]\n\nx', ":1: not JSON: text after the end of the array (line 3)"),
        ('[{"a": 1},]', ":2: not JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', ":2: not UTF-8"),
        (b'[{"a": 1},\n\n{"a": "\xff"}]', ":1: not UTF-8 (line 3"),
    ],
)
def test_what_is_not_json_in_utf8_is_an_error_with_its_place(tmp_path: Path, data: str, place: str) -> None:
    path = tmp_path / "rows.json"
    with pytest.raises(UserError) as error:
        read(path, data)
    assert str(error.value).startswith(str(path))
    assert place in str(error.value)


@pytest.mark.parametrize("name", ["nope.jsonl", "data/nope.json", "./nope", "a/b/c"])
def test_a_missing_file_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_rows(name)


@pytest.mark.parametrize("read", [lambda path: list(read_rows(path)), fingerprint])
def test_a_file_that_the_system_refuses_is_an_error(tmp_path: Path, monkeypatch, read) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "rows.json").write_text("{}")
    monkeypatch.setattr(reader, "open", refuse, raising=False)
    with pytest.raises(UserError, match=r"rows\.json: Permission denied"):
        read(str(tmp_path / "rows.json"))


def test_a_name_is_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.Dataset.from_list([{"instruction": "q", "output": "a"}, {"instruction": "q2"}])
    asked = []
    monkeypatch.setattr(
        hub.huggingface_hub, "repo_exists", lambda name, repo_type: asked.append(name) or True
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: {("org/set", "train"): data}[name, split]
    )
    assert list(read_rows("org/set")) == [
        ("org/set:1", {"instruction": "q", "output": "a"}),
        ("org/set:2", {"instruction": "q2", "output": None}),
    ]
    assert asked == ["org/set"]


def test_a_fingerprint_is_that_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(data: bytes, name: str) -> str:
        (tmp_path / name).write_bytes(data)
        return fingerprint(str(tmp_path / name))

    assert of(b"a" * 3_000_000, "a") == of(b"a" * 3_000_000, "b") != of(b"a" * 2_999_999 + b"b", "b")
    with pytest.raises(UserError, match="no such file"):
        fingerprint(str(tmp_path / "no.json"))

    monkeypatch.setattr(hub.huggingface_hub, "repo_exists", lambda name, repo_type: True)

    def of_hub(rows: list[dict], name: str) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache"))
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
        raw_rows = read_raw_rows("org/set")
        assert len(list(raw_rows)) == len(rows)
        assert not raw_rows.has_bom
        assert raw_rows.fingerprint == fingerprint("org/set")
        return raw_rows.fingerprint

    assert of_hub([{"a": "1"}], "c") == of_hub([{"a": "1"}], "d") != of_hub([{"a": "2"}], "d")


def test_a_byte_order_mark_is_seen(tmp_path: Path) -> None:
    for text in (b"", b"{}", b"[{}]"):
        for start in (b"\xef\xbb\xbf", b""):
            (tmp_path / "rows").write_bytes(start + text)
            raw_rows = read_raw_rows(str(tmp_path / "rows"))
            assert len(list(raw_rows)) == (1 if text else 0)
            assert raw_rows.has_bom == bool(start)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xef\xbb\xbf",
        b'\xef\xbb\xbf\n \n{"a": 1}\n\n{"a": 2}',
        b" [1, 2]\n",
        b"[1, 2",
        b"[\xff]",
        b"{\xff\n",
    ],
)
def test_the_fingerprint_of_what_was_read_is_that_of_the_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    raw_rows = read_raw_rows(str(path))
    list(raw_rows)
    assert raw_rows.fingerprint == fingerprint(str(path))
    path.write_bytes(data + b"\n")
    assert raw_rows.fingerprint != fingerprint(str(path))


def test_a_name_that_the_hub_does_not_have_or_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.huggingface_hub, "repo_exists", lambda name, repo_type: False)
    with pytest.raises(UserError, match="neither a local path nor a dataset"):
        list(read_rows("org/set"))

    def unreachable(name: str, repo_type: str) -> bool:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub.huggingface_hub, "repo_exists", unreachable)
    with pytest.raises(UserError, match=r"cannot be asked for it \(no route\).*HF_ENDPOINT"):
        list(read_rows("org/set"))
