from pathlib import Path

import pytest

from tests.conftest import write_rows
from training.conversation import Conversation, Turn
from training.dataset import (
    encode_rows,
    held_out_count,
    named,
    parse_test_size,
    read_conversations,
    split,
)
from training.encoding import encode
from training.errors import UserError

THREE_TURNS = Conversation((Turn("q1", "a1"), Turn("q2", "a2"), Turn("q3", "a3" * 50)))


def as_row(conversation: Conversation) -> dict:
    messages = []
    for turn in conversation.turns:
        messages.append({"from": "human", "value": turn.human})
        messages.append({"from": "yayi", "value": turn.yayi})
    return {"conversations": messages}


def test_rows_are_encoded_whole_and_in_order(tmp_path: Path, tokenizer) -> None:
    conversations = [Conversation((Turn(f"q{i}", f"a{i}"),)) for i in range(2500)]
    path = write_rows(tmp_path / "rows.jsonl", [as_row(c) for c in conversations])
    rows = encode_rows(path, tokenizer, max_length=512)
    assert (rows.cut, rows.dropped) == ([], [])
    assert len(rows.examples) == 2500
    for conversation, example in zip(conversations, rows.examples, strict=True):
        assert {key: value.tolist() for key, value in example.items()} == encode(conversation, tokenizer)


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
        rows = encode_rows(path, tokenizer, max_length)
        assert (rows.cut, rows.dropped) == ([f"{path}:1"], [])
        assert {key: value.tolist() for key, value in rows.examples[0].items()} == kept

    shortest = len(encode(fits, tokenizer)["input_ids"])
    assert shortest < len(one_turn["input_ids"])
    rows = encode_rows(path, tokenizer, shortest)
    assert (rows.cut, rows.dropped) == ([], [f"{path}:1"])
    assert len(rows.examples) == 1


def test_no_row_left_is_an_error(tmp_path: Path, tokenizer) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [as_row(THREE_TURNS)])
    with pytest.raises(UserError, match="every row is longer than --max-length 10"):
        encode_rows(path, tokenizer, 10)
    with pytest.raises(UserError, match="no rows"):
        encode_rows(write_rows(tmp_path / "empty.jsonl", []), tokenizer, 10)


def test_a_bad_row_is_an_error_with_file_line_and_field(tmp_path: Path) -> None:
    good = {"instruction": "q", "output": "a"}
    path = write_rows(tmp_path / "rows.jsonl", [good, good, {"instruction": "q"}, good])
    with pytest.raises(UserError) as error:
        list(read_conversations(path))
    assert str(error.value) == f'{path}:3: "output" is missing'


@pytest.mark.parametrize(
    ("value", "size"), [("0", 0), ("400", 400), ("0.05", 0.05), ("1e-2", 0.01), ("0.5", 0.5)]
)
def test_test_size_is_a_count_or_a_ratio(value: str, size: float) -> None:
    assert parse_test_size(value) == size
    assert type(parse_test_size(value)) is type(size)


@pytest.mark.parametrize("value", ["2.5", "-1", "1.0", "0.0", "nan", "inf", "many", ""])
def test_any_other_test_size_is_an_error(value: str) -> None:
    with pytest.raises(ValueError, match="neither a count"):
        parse_test_size(value)


@pytest.mark.parametrize(
    ("rows", "size", "count"),
    [(132, 0, 0), (132, 131, 131), (132, 132, 13), (132, 400, 13), (132, 0.5, 66), (50, 0.001, 1), (5, 5, 0)],
)
def test_what_is_held_out(rows: int, size: float, count: int) -> None:
    assert held_out_count(rows, size) == count


def test_the_split_is_a_seeded_choice_that_loses_nothing() -> None:
    examples = list(range(100))
    train, test = split(examples, 30, seed=1)
    assert len(test) == 30
    assert sorted(train + test) == examples
    assert split(examples, 30, seed=1) == (train, test)
    assert split(examples, 30, seed=2) != (train, test)
    assert split(examples, 0, seed=1) == (examples, [])


def test_a_few_places_are_named() -> None:
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
