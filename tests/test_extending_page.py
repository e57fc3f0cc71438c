"""docs/extending.md: what it shows works when it is put where the page says."""

import pytest

from inference.generation import generation_config
from tests.pages import blocks, text_of
from training.consts import END
from training.text import formats
from training.text.conversation import Conversation, Turn, from_row


def block_with(word: str) -> str:
    [found] = (block for block in blocks(text_of("docs/extending.md"), "python") if word in block)
    return found


def test_the_row_format_of_the_page_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"riddle": "q", "reply": "a"}
    with pytest.raises(ValueError, match="riddle"):
        from_row(row)
    monkeypatch.setattr(formats, "FORMATS", [*formats.FORMATS])
    exec(block_with("RowFormat"), {**vars(formats)})
    assert from_row(row) == Conversation((Turn("q", "a"),))


def test_the_stop_rule_of_the_page_ends_an_answer_at_a_newline(tokenizer) -> None:
    names = {"tokenizer": tokenizer, "generation_config": generation_config}
    exec(block_with("eos_token_id"), names)
    assert names["config"].eos_token_id == [tokenizer.convert_tokens_to_ids(END), *tokenizer("\n").input_ids]
