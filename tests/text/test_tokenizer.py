from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from tests.tiny_models import TOKENIZERS
from training.common.errors import UserError
from training.consts import CONTROL_TOKENS
from training.text.tokenizer import load_tokenizer, load_tokenizer_and_new_tokens, new_tokens


def test_each_control_token_is_one_new_special_id(base: str, tokenizer) -> None:
    size = len(AutoTokenizer.from_pretrained(base))
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == [size, size + 1, size + 2, size + 3]
    for token in CONTROL_TOKENS:
        assert len(tokenizer(token).input_ids) == 1
        assert tokenizer.decode(tokenizer(token).input_ids, skip_special_tokens=True) == ""


def test_other_text_tokenizes_as_before(base: str, tokenizer) -> None:
    text = "你好, world! 1 + 1 </s>\n\n|End|"
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(base)(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_loading_what_was_saved_changes_nothing(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_new_tokens_are_those_that_the_tokenizer_lacked(base: str, tokenizer, tmp_path: Path) -> None:
    all_four = tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
    assert list(load_tokenizer_and_new_tokens(base)[1]) == all_four
    assert load_tokenizer_and_new_tokens(base)[1] == new_tokens(base, tokenizer)

    some = AutoTokenizer.from_pretrained(base)
    some.add_tokens(["<|YaYi|>", "<|Human|>"], special_tokens=True)
    some.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    ours, new = load_tokenizer_and_new_tokens(str(tmp_path))
    assert list(new) == ours.convert_tokens_to_ids(["<|System|>", "<|End|>"])
    assert new == new_tokens(str(tmp_path), ours)

    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer_and_new_tokens(str(tmp_path))[1] == {}


def test_a_base_without_a_pad_token_gets_one_after_the_control_tokens(tmp_path: Path) -> None:
    TOKENIZERS["llama"]().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer, new = load_tokenizer_and_new_tokens(str(tmp_path))
    assert tokenizer.pad_token == "<pad>"
    assert list(new) == tokenizer.convert_tokens_to_ids([*CONTROL_TOKENS, "<pad>"])
    assert new[tokenizer.pad_token_id] == []  # it starts as the mean of all rows
    assert new == new_tokens(str(tmp_path), tokenizer)

    # A run or a model of an earlier version has none, and gets none.
    older, new = load_tokenizer_and_new_tokens(str(tmp_path), adds_pad=False)
    assert (older.pad_token, len(new)) == (None, len(CONTROL_TOKENS))
    older.save_pretrained(tmp_path)
    again, new = load_tokenizer_and_new_tokens(str(tmp_path))
    assert (again.pad_token, new) == (None, {})
    assert again.get_vocab() == older.get_vocab()


def test_a_normalizer_that_was_there_stays(base: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    ours = load_tokenizer(str(tmp_path))
    assert ours.backend_tokenizer.normalizer.normalize_str("ａ\ue000b") == "ab"


@pytest.mark.parametrize("path", ["./nope", "/nope", "a/b/c"])
def test_a_missing_directory(path: str) -> None:
    with pytest.raises(UserError, match="no such model directory"):
        load_tokenizer(path)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without config\.json"):
        load_tokenizer(str(tmp_path))


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    with pytest.raises(UserError, match="no tokenizer that can be loaded"):
        load_tokenizer(str(tmp_path))
