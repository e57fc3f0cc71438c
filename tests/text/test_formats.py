import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.batch import prompt_of
from tests.conftest import write_rows
from training import check, convert
from training.data.encoded import load_encoded
from training.text.conversation import Conversation, Turn, format_of, from_row, other_keys
from training.text.encoding import encode
from training.text.formats import FORMATS, RowFormat


def read_question(row: dict) -> Conversation:
    return Conversation((Turn(row["question"], row.get("reply")),))


def write_question(conversation: Conversation) -> dict:
    return {"question": conversation.turns[0].human, "reply": conversation.turns[0].yayi}


NEW_FORMAT = RowFormat(
    "question and reply", "question", read_question, ("reply",), write=write_question, option="question"
)


@pytest.fixture
def new_format() -> Iterator[None]:
    """A format is added to the table; `convert` looks for the choices of `--to` when it is imported."""
    FORMATS.append(NEW_FORMAT)
    importlib.reload(convert)
    yield
    FORMATS.remove(NEW_FORMAT)
    importlib.reload(convert)


def test_a_new_entry_is_known_to_the_reader_the_check_convert_and_inference(
    new_format: None, tmp_path: Path, base: str, tokenizer, outcome
) -> None:
    rows = [{"question": "q", "reply": "a"}, {"instruction": "q2", "output": "a2"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    file = load_encoded(path, tokenizer, 512, tmp_path / "cache")
    assert file[0]["input_ids"].tolist() == encode(Conversation((Turn("q", "a"),)), tokenizer)["input_ids"]

    status, out, _ = outcome(check.main, f"--data-path {path} --input-model {base} --json")
    assert (status, json.loads(out)["formats"]) == (0, {"question and reply": 1, "instruction": 1})

    for option, expected in [
        ("question", [{"question": "q", "reply": "a"}, {"question": "q2", "reply": "a2"}]),
        ("instruction", [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in ("", "2")]),
    ]:
        output = tmp_path / f"{option}.jsonl"
        assert outcome(convert.main, f"--data-path {path} --to {option} --output {output}")[0] == 0
        assert [json.loads(line) for line in output.read_text().splitlines()] == expected

    assert prompt_of({"question": "q", "reply": "a"}) == Conversation((Turn("q"),))
    with pytest.raises(ValueError, match="the answer is missing"):
        from_row({"question": "q"}, answered=True)
    with pytest.raises(ValueError, match='"conversations", "messages" and "question"; this one has none'):
        from_row({})


def test_without_its_entry_the_format_is_unknown(outcome, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"conversations" and "messages"; this one has none'):
        from_row({"question": "q", "reply": "a"})
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "q", "reply": "a"}])
    status, _, err = outcome(convert.main, f"--data-path {path} --to question --output {tmp_path / 'out'}")
    assert status == 2
    assert "'question' is not one of 'instruction', 'multi-round', 'messages'" in err


@pytest.mark.parametrize("row_format", [entry for entry in FORMATS if entry.write], ids=lambda e: e.name)
@pytest.mark.parametrize("system", ["", "s"])
@pytest.mark.parametrize("answer", ["a", None])
def test_what_a_format_writes_it_reads_back(row_format: RowFormat, system: str, answer: str | None) -> None:
    conversation = Conversation((Turn("q", answer),), system)
    row = json.loads(json.dumps(row_format.write(conversation)))
    assert from_row(row) == conversation
    # Only the name "yayi" tells the two formats with "conversations" apart.
    is_told_apart = answer or row_format.name != "YaYi multi-round"
    assert format_of(row) == (row_format.name if is_told_apart else "ShareGPT")
    assert other_keys(row) == set()


def test_a_prompt_row_is_recognised_only_where_prompts_are_wanted() -> None:
    row = {"prompt": "q", "system": "s"}
    assert from_row(row, prompts=True) == Conversation((Turn("q"),), "s")
    for answered in (False, True):
        with pytest.raises(ValueError, match='"conversations" and "messages"; this one has none'):
            from_row(row, answered=answered)
    # Beside a format with an answer it is a key like any other.
    both = {"prompt": "p", "instruction": "q", "output": "a"}
    assert from_row(both, prompts=True) == from_row(both) == Conversation((Turn("q", "a"),))
    assert other_keys(both) == {'"prompt"'}


def test_a_key_that_only_another_format_reads_is_not_lost_unseen() -> None:
    message = {"role": "user", "content": "q", "value": "v", "name": None}
    row = {"messages": [message], "input": "i", "output": None, "instruction": None}
    assert other_keys(row) == {'"input"', '"messages"[…]."value"'}
