import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.batch import prompt_of
from tests.conftest import write_rows
from training import check, convert
from training.data.encoded import load_encoded
from training.text.conversation import Conversation, Turn, from_row, read_row
from training.text.encoding import encode
from training.text.formats import FORMATS, Reading, RowFormat
from training.text.keys import Keys


def read_riddle(keys: Keys) -> Reading:
    return Reading(Conversation((Turn(keys.take("riddle"), keys.take("reply")),)), "the reply is missing")


def write_riddle(conversation: Conversation) -> dict:
    return {"riddle": conversation.turns[0].human, "reply": conversation.turns[0].yayi}


NEW_FORMAT = RowFormat("riddle and reply", "riddle", read_riddle, write_riddle, "riddle")


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
    rows = [{"riddle": "q", "reply": "a"}, {"instruction": "q2", "output": "a2"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    file = load_encoded(path, tokenizer, 512, tmp_path / "cache")
    assert file[0]["input_ids"].tolist() == encode(Conversation((Turn("q", "a"),)), tokenizer)["input_ids"]

    status, out, _ = outcome(check.main, f"--data-path {path} --input-model {base} --json")
    assert (status, json.loads(out)["formats"]) == (0, {"riddle and reply": 1, "instruction": 1})

    for option, expected in [
        ("riddle", [{"riddle": "q", "reply": "a"}, {"riddle": "q2", "reply": "a2"}]),
        ("instruction", [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in ("", "2")]),
    ]:
        output = tmp_path / f"{option}.jsonl"
        assert outcome(convert.main, f"--data-path {path} --to {option} --output {output}")[0] == 0
        assert [json.loads(line) for line in output.read_text().splitlines()] == expected

    assert prompt_of({"riddle": "q", "reply": "a"}) == Conversation((Turn("q"),))
    with pytest.raises(ValueError, match="the reply is missing"):
        from_row({"riddle": "q"}, answered=True)
    with pytest.raises(ValueError, match='"riddle"; this one has nothing'):
        from_row({})


def test_without_its_entry_the_format_is_unknown(outcome, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='this one has "riddle", "reply"'):
        from_row({"riddle": "q", "reply": "a"})
    path = write_rows(tmp_path / "rows.jsonl", [{"riddle": "q", "reply": "a"}])
    status, _, err = outcome(convert.main, f"--data-path {path} --to riddle --output {tmp_path / 'out'}")
    assert status == 2
    assert "'riddle' is not one of 'instruction', 'multi-round', 'messages'" in err


@pytest.mark.parametrize("row_format", [entry for entry in FORMATS if entry.write], ids=lambda e: e.name)
@pytest.mark.parametrize("system", ["", "s"])
@pytest.mark.parametrize("answer", ["a", None])
def test_what_a_format_writes_it_reads_back(row_format: RowFormat, system: str, answer: str | None) -> None:
    conversation = Conversation((Turn("q", answer),), system)
    row = json.loads(json.dumps(row_format.write(conversation)))
    assert from_row(row) == conversation
    # Only the name "yayi" tells the two formats with "conversations" apart.
    is_told_apart = answer or row_format.name != "YaYi multi-round"
    assert read_row(row).row_format == (row_format.name if is_told_apart else "ShareGPT")
    assert read_row(row).not_learnt == read_row(row).harmless == ()


def test_a_context_answer_is_written_and_read_back() -> None:
    conversation = Conversation((Turn("q", "a", is_context=True), Turn("q2", "a2")))
    for row_format in FORMATS:
        if row_format.write and row_format.name != "instruction":
            assert read_row(row_format.write(conversation)).conversation == conversation


def test_a_prompt_beside_another_format_is_a_key_like_any_other() -> None:
    assert from_row({"prompt": "q", "system": "s"}) == Conversation((Turn("q"),), "s")
    both = read_row({"prompt": "p", "instruction": "q", "output": "a"})
    assert both.conversation == Conversation((Turn("q", "a"),))
    assert both.not_learnt == ("prompt",)


def test_a_key_that_only_another_format_reads_is_not_lost_unseen() -> None:
    message = {"role": "user", "content": "q", "reasoning_content": "r", "name": None}
    row = {"messages": [message, message | {"role": "assistant"}], "input": "i", "output": None, "id": 3}
    read = read_row(row)
    assert read.not_learnt == ("input", "reasoning_content")
    assert read.harmless == ("id",)
