"""Whatever a file holds, each row becomes a Conversation, or an error that names its place.

The files are drawn anew in each run of the tests, so that a few at a time are enough.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.common.errors import UserError
from training.data.encoded import encode_chunks, new_findings, read_conversations
from training.data.reader import read_raw_rows, read_rows
from training.text.conversation import Conversation, from_row
from training.text.encoding import encode_turns
from training.text.formats import FORMATS
from training.text.messages import SPEAKERS

# Any text that Python has, halves of surrogate pairs included, and texts that mean something to us.
TEXTS = st.one_of(
    st.text(),
    st.text(st.characters(codec=None), max_size=5),
    st.sampled_from(["", " ", "\n", "<|End|>", "</s>", "\ud800", "\ue000", "\ufeff", "\x00", *SPEAKERS]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
SPEAKER_KEYS = st.sampled_from(["from", "value", "role", "content"])
MESSAGES = st.lists(
    st.one_of(st.dictionaries(SPEAKER_KEYS, st.one_of(TEXTS, VALUES), max_size=4), VALUES), max_size=5
)
ROWS = st.one_of(
    VALUES,
    st.dictionaries(
        st.sampled_from([*[entry.key for entry in FORMATS], "input", "output", "system"]),
        st.one_of(TEXTS, MESSAGES, VALUES),
        max_size=4,
    ),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "rows.json"


def outcomes(rows: Iterator, path: Path) -> list:
    """What came before the end or the error, whose text has to start with a place in the file.

    What is no text at all, by the file's first bytes, is an error of the whole file.
    """
    found, message = [], None
    try:
        for item in rows:
            found.append(item)
    except UserError as error:
        message = str(error)
    assert message is None or re.match(rf"{re.escape(str(path))}(:\d+: |: .*(; |UTF-16))", message)
    return found


@given(row=ROWS)
@settings(max_examples=200, deadline=None)
def test_any_row_becomes_a_conversation_that_can_be_encoded_or_a_value_error(tokenizer, row: object) -> None:
    try:
        conversation = from_row(row)
    except ValueError:
        return
    assert isinstance(conversation, Conversation)
    (encoded,) = encode_turns([conversation], tokenizer)
    assert len(encoded.turn_ends) == len(conversation.turns) - conversation.is_prompt
    if not conversation.is_prompt:
        assert encoded.turn_ends[-1] == len(encoded.input_ids)


@given(rows=st.lists(ROWS, max_size=4), indent=st.sampled_from([None, 1]), array=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_json_file_gives_its_rows_or_an_error_with_a_place(
    path: Path, rows: list, indent: int | None, array: bool
) -> None:
    # json writes halves of surrogate pairs as escapes, and reads them back.
    lines = [json.dumps(row, indent=indent if array else None) for row in rows]
    text = "[" + ",\n".join(lines) + "]" if array else "\n".join(lines)
    path.write_text(text, encoding="utf-8")
    read = outcomes(read_rows(str(path)), path)
    if array or not text.lstrip().startswith("["):
        assert json.dumps([row for _, row in read]) == json.dumps(rows)
    for place, conversation in outcomes(read_conversations(str(path)), path):
        assert place.startswith(f"{path}:")
        assert isinstance(conversation, Conversation)


@given(
    data=st.one_of(st.binary(), st.text().map(str.encode), st.text("[]{},:\"' \n\\u0e9d8a").map(str.encode))
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_rows_or_an_error_with_a_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for place, _ in outcomes(read_rows(str(path)), path):
        assert place.startswith(f"{path}:")


@given(lines=st.lists(st.one_of(ROWS.map(json.dumps).map(str.encode), st.binary(max_size=40)), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_row_is_counted_as_usable_or_not(path: Path, tokenizer, lines: list[bytes]) -> None:
    path.write_bytes(b"\n".join([b"{}", *lines]))  # so that the file begins as text
    findings = new_findings(tokenizer, 100)
    for chunk in encode_chunks(read_raw_rows(str(path)), tokenizer, 100):
        findings += chunk.findings
    found = findings.summary()
    unusable = sum(noted["count"] for noted in found["unusable"].values())
    assert found["rows"] == unusable + sum(found["formats"].values())
    assert unusable == len(found["errors"])
    assert json.loads(json.dumps(found)) == found
    if not found["ends_at"]:
        assert found["rows"] == len(list(read_raw_rows(str(path))))
