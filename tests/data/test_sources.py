"""What --data-path stands for: folders, patterns, pipes, weights."""

import os
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from tests.conftest import write_rows
from training.common.errors import UserError
from training.common.option_texts import Source, parse_source
from training.common.options import Options
from training.data import pipes
from training.data.examples import build_datasets
from training.data.reader import fingerprint, read_rows
from training.data.sources import expand_path, expand_sources, files_without_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl",
        "a.csv",
        "sub/c.JSON.gz",
        ".hidden/d.jsonl",
        "~$e.xlsx",
        "README.md",
        "sub/f.txt",
    ):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "folder"


def test_a_folder_stands_for_its_files_and_names_the_others(folder: Path, capsys) -> None:
    assert expand_path(str(folder)) == [f"{folder}/a.csv", f"{folder}/b.jsonl", f"{folder}/sub/c.JSON.gz"]
    said = capsys.readouterr().err
    assert said == f"{folder}: not read, by their names: 2 files (README.md, sub/f.txt)\n"


def test_a_folder_is_read_behind_links_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "g.jsonl").touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "around").symlink_to(folder)
    assert [os.path.relpath(path, folder) for path in expand_path(str(folder))] == [
        "a.csv",
        "b.jsonl",
        "link/g.jsonl",
        "sub/c.JSON.gz",
    ]


def test_a_pattern_stands_for_what_it_matches(folder: Path) -> None:
    assert expand_path(f"{folder}/[ab].*") == [f"{folder}/a.csv", f"{folder}/b.jsonl"]
    assert expand_path(f"{folder}/*.md") == [f"{folder}/README.md"]
    assert expand_path(f"{folder}/s*") == [f"{folder}/sub/c.JSON.gz"]
    assert expand_path(f"{folder}/**/*.gz") == [f"{folder}/sub/c.JSON.gz"]
    (folder / "a[1].csv").touch()
    assert expand_path(f"{folder}/a[1].csv") == [f"{folder}/a[1].csv"]  # a file of this name comes first


@pytest.mark.parametrize("name", ["*.parquet", "empty"])
def test_nothing_to_read_is_one_line(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file matches this pattern|a folder without a file of rows"):
        expand_path(f"{folder}/{name}")


def test_anything_else_stands_for_itself() -> None:
    for name in ("no.jsonl", "org/set#zh/test", "book.xlsx#一"):
        assert expand_path(name) == [name]


def test_each_file_has_the_weight_of_all(folder: Path, capsys) -> None:
    sources = [parse_source(f"{folder}/[ab].*:0.5"), Source("org/set#zh")]
    assert expand_sources(sources) == [
        Source(f"{folder}/a.csv", 0.5),
        Source(f"{folder}/b.jsonl", 0.5),
        Source("org/set#zh"),
    ]
    assert files_without_weights(sources) == [source.path for source in expand_sources(sources)]
    said = capsys.readouterr().err
    assert said == f"{folder}/[ab].*: weight 0.5 counts in training only; here each row is taken once\n"


@pytest.mark.parametrize(
    "text", ["org/set", "org/set#zh", "org/set#zh/test", "book.xlsx#一", "rows*.jsonl", "/dev/fd/63"]
)
def test_a_weight_is_the_last_suffix(text: str) -> None:
    assert parse_source(text) == Source(text)
    assert parse_source(f"{text}:0.5") == Source(text, 0.5)


def test_the_rows_of_a_folder_have_the_places_of_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = [write_rows(folder / name, [{"a": name}]) for name in ("b.jsonl", "a.jsonl")]
    assert list(read_rows(str(folder))) == [(f"{path}:1", {"a": Path(path).name}) for path in sorted(paths)]
    before = fingerprint(str(folder))
    assert fingerprint(f"{folder}/a*") == fingerprint(str(folder / "a.jsonl"))
    write_rows(folder / "c.jsonl", [{"a": "c"}])
    assert fingerprint(str(folder)) != before


def test_the_trainer_reads_each_file_of_a_folder_with_the_folders_weight(
    tmp_path: Path, tokenizer, capsys
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    rows = [{"instruction": f"q{number}", "output": "a"} for number in range(2)]
    a = write_rows(folder / "a.jsonl", rows)
    (folder / "b.csv").write_text("instruction,output\nq2,a\n")
    options = Options(
        data_path=(Source(str(folder), 2),), cache_dir=tmp_path / "cache", max_length=100, test_size=0
    )
    training, _ = build_datasets(options, tokenizer)
    places = [training.place(index) for index in range(len(training))]
    assert sorted(places) == sorted([f"{a}:1", f"{a}:2", f"{folder}/b.csv:2"] * 2)
    assert f"{folder}/b.csv: weight 2: 2 rows, of 1\n" in capsys.readouterr().out


@pytest.fixture
def named_pipe(tmp_path: Path, monkeypatch) -> str:
    """A named pipe, out of which a row comes once."""
    monkeypatch.setattr(pipes, "_copies", {})
    path = tmp_path / "pipe"
    os.mkfifo(path)
    threading.Thread(target=path.write_text, args=['{"a": 1}\n'], daemon=True).start()
    return str(path)


def test_a_pipe_is_copied_once_and_read_any_number_of_times(tmp_path: Path, named_pipe: str) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        assert expand_path(named_pipe, cache) == [named_pipe]
        assert list(read_rows(named_pipe)) == [(f"{named_pipe}:1", {"a": 1})]
    same = write_rows(tmp_path / "same.jsonl", [{"a": 1}])
    assert fingerprint(named_pipe) == fingerprint(same)
    (copy,) = cache.glob("pipe-*/rows")
    assert copy.read_text() == '{"a": 1}\n'


def test_the_copy_of_a_killed_process_is_removed_by_the_next(tmp_path: Path, monkeypatch, named_pipe) -> None:
    cache = tmp_path / "cache"
    expand_path(named_pipe, cache)
    names = {path.name for path in cache.iterdir()}
    assert all(f"-{os.getpid()}-" in name for name in names)
    with subprocess.Popen(["true"]) as ended:
        pass
    for name in names:  # as if that process had made them
        (cache / name).rename(cache / name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    (cache / "examples").mkdir()
    monkeypatch.setattr(pipes, "_copies", {})
    threading.Thread(target=Path(named_pipe).write_text, args=["{}"], daemon=True).start()
    expand_path(named_pipe, cache)
    assert {path.name for path in cache.iterdir()} == {*names, "examples"}


def test_the_open_files_of_the_command_are_read_by_its_ranks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pipes, "_copies", {})
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE) as typed:
        assert typed.stdin
        typed.stdin.write(b'{"a": 1}\n')
        typed.stdin.close()
        monkeypatch.setattr(pipes, "launchers", lambda: [psutil.Process(typed.pid)])
        assert expand_path("/dev/stdin", tmp_path) == ["/dev/stdin"]
        typed.kill()
    assert list(read_rows("/dev/stdin")) == [("/dev/stdin:1", {"a": 1})]


def test_a_pipe_cannot_be_read_by_several_nodes(tmp_path: Path, monkeypatch, named_pipe: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=f"^{named_pipe}: a pipe, which only one node can read"):
        expand_path(named_pipe, tmp_path / "cache")
    Path(named_pipe).read_text()  # lets the writer end
