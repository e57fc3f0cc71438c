import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.conftest import MULTI_TURN, ROOT, SINGLE_TURN, write_rows
from training import check
from training.common.errors import UserError
from training.consts import INTRO
from training.data import encoded, reader
from training.data.encoded import EncodedFile, load_encoded, read_conversations
from training.data.reader import RawRow, RawRows
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import encode
from training.text.tokenizer import load_tokenizer

THREE_TURNS = Conversation((Turn("q1", "a1"), Turn("q2", "a2"), Turn("q3", "a3" * 50)))


def as_row(conversation: Conversation) -> dict:
    messages = []
    for turn in conversation.turns:
        messages.append({"from": "human", "value": turn.human})
        messages.append({"from": "yayi", "value": turn.yayi})
    return {"conversations": messages}


def lists(file: EncodedFile) -> list[dict[str, list[int]]]:
    return [{key: value.tolist() for key, value in example.items()} for example in file]


def counted(file: EncodedFile) -> dict[str, int]:
    labels = [label for example in lists(file) for label in example["labels"]]
    return {"rows": len(file), "tokens": len(labels), "learnt": sum(label != -100 for label in labels)}


def places(file: EncodedFile, kind: str) -> list[list[int]]:
    return file.summary["notes"].get(kind, {"lines": []})["lines"]


def test_rows_are_encoded_whole_and_in_order(tmp_path: Path, tokenizer) -> None:
    conversations = [Conversation((Turn(f"q{i}", f"a{i}"),) * (1 + i % 3)) for i in range(1000)]
    path = write_rows(tmp_path / "rows.jsonl", [as_row(conversation) for conversation in conversations])
    file = load_encoded(path, tokenizer, 2048, tmp_path / "cache")
    assert file.rows["line"].tolist() == list(range(1, 1001))
    assert lists(file) == [encode(conversation, tokenizer) for conversation in conversations]
    assert file.summary["kept"] == counted(file)


def test_a_thread_takes_few_rows_where_rows_are_long() -> None:
    half = encoded.SIZE_PER_CHUNK // 2
    for long in (b"x" * half, {"messages": [{"content": "字" * half, "weight": 0}]}):
        rows = iter([RawRow(number, content) for number, content in enumerate([b"{}", *[long] * 5])])
        assert [len(encoded._rows_of_chunk(rows)) for _ in range(4)] == [3, 2, 1, 0]
    rows = iter([RawRow(number, b"{}") for number in range(300)])
    assert [len(encoded._rows_of_chunk(rows)) for _ in range(3)] == [128, 128, 44]


def test_a_long_row_is_cut_after_its_last_turn_that_fits_or_dropped(tmp_path: Path, tokenizer) -> None:
    two_turns = encode(Conversation(THREE_TURNS.turns[:2]), tokenizer)
    one_turn = encode(Conversation(THREE_TURNS.turns[:1]), tokenizer)
    fits = Conversation((Turn("q", "a"),))
    path = write_rows(tmp_path / "rows.jsonl", [as_row(THREE_TURNS), as_row(fits)])

    for max_length, kept in [
        (len(two_turns["input_ids"]), two_turns),
        (len(two_turns["input_ids"]) - 1, one_turn),
        (len(one_turn["input_ids"]), one_turn),
    ]:
        file = load_encoded(path, tokenizer, max_length, tmp_path / "cache")
        assert (places(file, "cut"), places(file, "dropped")) == ([[1]], [])
        assert lists(file) == [kept, encode(fits, tokenizer)]
        assert file.summary["kept"] == counted(file)

    shortest = len(encode(fits, tokenizer)["input_ids"])
    assert shortest < len(one_turn["input_ids"])
    file = load_encoded(path, tokenizer, shortest, tmp_path / "cache")
    assert (places(file, "cut"), places(file, "dropped")) == ([], [[1]])
    assert lists(file) == [encode(fits, tokenizer)]


def test_rows_that_cannot_be_used_are_passed_over(tmp_path: Path, tokenizer) -> None:
    good = {"instruction": "q", "output": "a"}
    path = write_rows(tmp_path / "rows.jsonl", [good, [], good, {"instruction": "q"}])
    file = load_encoded(path, tokenizer, 100, tmp_path / "cache")
    assert file.rows["line"].tolist() == [1, 3]
    assert [line for line, _ in file.summary["errors"]] == [2, 4]


@pytest.mark.parametrize("text", ["", "[]", "{}\n[]\n"])
def test_a_file_without_a_usable_row_has_no_examples(tmp_path: Path, tokenizer, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert len(load_encoded(str(path), tokenizer, 100, tmp_path / "cache")) == 0


def test_a_bad_row_is_an_error_with_file_line_and_field(tmp_path: Path) -> None:
    good = {"instruction": "q", "output": "a"}
    path = write_rows(tmp_path / "rows.jsonl", [good, good, {"instruction": "q"}, good])
    with pytest.raises(UserError) as error:
        list(read_conversations(path))
    assert str(error.value) == f'{path}:3: "output" is missing'


@pytest.fixture
def load(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Load the file from its cache, and say whether it had to be made."""
    shutil.copytree(base, tmp_path / "model")
    shutil.copy(SINGLE_TURN, tmp_path / "rows.jsonl")
    made = []
    write = encoded._write_encoded
    monkeypatch.setattr(encoded, "_write_encoded", lambda *args: made.append(args) or write(*args))

    def load(
        max_length: int = 512, cache: str = "cache", data: str = "rows.jsonl", system: str | None = None
    ) -> bool:
        made.clear()
        tokenizer = load_tokenizer(str(tmp_path / "model"), system)
        file = load_encoded(str(tmp_path / data), tokenizer, max_length, tmp_path / cache)
        assert [example["input_ids"].tolist() for example in file] == [
            encode(from_row(json.loads(line)), tokenizer)["input_ids"]
            for line in (tmp_path / data).read_text("utf-8").splitlines()
        ]
        return bool(made)

    return load


def change_byte(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_what_the_examples_depend_on_makes_the_cache_anew(load, tmp_path: Path, monkeypatch) -> None:
    assert load()
    assert not load()

    assert load(max_length=513)
    assert not load(max_length=513)

    change_byte(tmp_path / "rows.jsonl", "你是谁".encode(), "他是谁".encode())
    assert load()
    assert not load()

    # The tokenizer loses a merge, and the file beside it gets something that changes no id.
    state = json.loads((tmp_path / "model" / "tokenizer.json").read_text("utf-8"))
    state["model"]["merges"].pop()
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    assert load()
    assert not load()
    change_byte(tmp_path / "model" / "tokenizer.json", b"{", b"{ ")
    assert load()
    change_byte(tmp_path / "model" / "tokenizer_config.json", b"{", b"{ ")
    assert load()
    assert not load()

    assert load(system="Another text.")
    assert not load(system="Another text.")
    assert not load(system=INTRO)

    shutil.copytree(ROOT / "training", tmp_path / "code")
    monkeypatch.setattr(encoded, "__file__", str(tmp_path / "code" / "data" / "encoded.py"))
    assert not load()
    for name in ("consts.py", "text/encoding.py", "data/findings.py"):
        with open(tmp_path / "code" / name, "a") as file:
            file.write("\n")
        assert load()
        assert not load()
    (tmp_path / "code" / "text" / "new.py").write_text("")
    assert load()


def test_nothing_else_makes_it_anew(load, tmp_path: Path) -> None:
    assert load()
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "copy.jsonl")  # another name, another time
    (tmp_path / "model" / "README.md").write_text("")
    change_byte(tmp_path / "model" / "config.json", b"{", b"{ ")
    assert not load(data="copy.jsonl")
    assert load(cache="elsewhere")
    assert not load()
    assert {path.name for path in tmp_path.iterdir()} == {
        "model", "rows.jsonl", "copy.jsonl", "cache", "elsewhere"
    }  # fmt: skip


def test_a_damaged_cache_is_not_trusted(load, tmp_path: Path) -> None:
    load()
    (ids,) = (tmp_path / "cache").glob("*/input_ids.bin")
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"damaged \(input_ids.bin has another size\); remove it"):
        load()
    ids.unlink()
    with pytest.raises(UserError, match=r"damaged \(.*No such file"):
        load()
    shutil.rmtree(ids.parent)
    assert load()


@pytest.mark.parametrize("moment", ["before it is read", "while it is read"])
def test_data_that_changes_between_its_fingerprint_and_its_last_row_is_an_error(
    tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    rows = [{"instruction": f"q{i}", "output": "a" * 1000} for i in range(1000)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    read_raw_rows, encode_chunks = encoded.read_raw_rows, encoded.encode_chunks

    def append() -> None:
        with open(path, "a") as file:
            file.write("\n")

    def append_and_read(data_path: str) -> RawRows:
        append()
        return read_raw_rows(data_path)

    def append_at_first_chunk(*args) -> Iterator[encoded.Chunk]:
        for number, chunk in enumerate(encode_chunks(*args)):
            if number == 0:
                append()
            yield chunk

    if moment == "before it is read":
        monkeypatch.setattr(encoded, "read_raw_rows", append_and_read)
    else:
        monkeypatch.setattr(encoded, "encode_chunks", append_at_first_chunk)
    with pytest.raises(UserError, match="changed while it was read"):
        load_encoded(path, tokenizer, 100, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ""]


def test_a_file_is_read_once_for_its_fingerprint_and_once_more_to_be_encoded(
    tmp_path: Path, base: str, tokenizer, outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def counting_open(path: str, mode: str) -> BinaryIO:
        opened.append(path)
        return open(path, mode)

    monkeypatch.setattr(reader, "open", counting_open, raising=False)
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "q", "output": "a"}])
    for expected in (2, 1):  # the second start finds the cache
        load_encoded(path, tokenizer, 100, tmp_path / "cache")
        assert len(opened) == expected
        opened.clear()
    assert outcome(check.main, f"--data-path {path} --input-model {base}")[0] == 0
    assert len(opened) == 2  # whether it has tools decides how it is encoded


# Builds the cache again and again, each time killed one moment later than the time before, until it is there.
KILLED_BUILDS = """
import os, signal, sys
from pathlib import Path
from typing import BinaryIO
from training.data import encoded, reader
from training.text.tokenizer import load_tokenizer

data, model, cache = sys.argv[1:]
tokenizer = load_tokenizer(model)
encoded.ROWS_PER_CHUNK = 16
encode_chunks = encoded.encode_chunks
moments_left = 0

def moment():
    global moments_left
    moments_left -= 1
    if moments_left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(event, args):
    if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and cache in str(args[0]):
        moment()

def interrupted(*args):
    for chunk in encode_chunks(*args):
        moment()
        yield chunk

for moments in range(1000):
    child = os.fork()
    if child == 0:
        moments_left = moments
        sys.addaudithook(watch)
        encoded.encode_chunks = interrupted
        encoded.load_encoded(data, tokenizer, 512, Path(cache))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(moments)
"""


@pytest.mark.slow
def test_a_build_that_is_killed_at_any_moment_leaves_nothing_that_is_trusted(
    tmp_path: Path, base: str, tokenizer
) -> None:
    cache = tmp_path / "cache"
    arguments = [str(MULTI_TURN), base, str(cache)]
    finished = subprocess.run(
        [sys.executable, "-c", KILLED_BUILDS, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert int(finished.stdout) > 12

    load_encoded(str(MULTI_TURN), tokenizer, 512, tmp_path / "undisturbed")
    (made,) = (path for path in cache.iterdir() if path.suffix == "")
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    (made,) = (path for path in (tmp_path / "undisturbed").iterdir() if path.suffix == "")
    assert files == {path.name: path.read_bytes() for path in made.iterdir()}
