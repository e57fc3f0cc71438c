from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import SINGLE_TURN
from training import tiny_bloom


def test_it_builds_a_small_bloom_and_a_tokenizer_with_blooms_special_tokens(outcome, tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    status, out, _ = outcome(tiny_bloom.main, f"--data-path {SINGLE_TURN} --output-dir {directory}")
    assert status == 0
    assert str(directory) in out
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>"]) == [0, 1, 2, 3]
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.model_type == "bloom"
    assert model.num_parameters() < 1_000_000
    # vLLM takes no narrower heads on a processor.
    assert model.config.hidden_size // model.config.n_head >= 32
    assert model.config.vocab_size > len(tokenizer)


def test_the_tokenizer_splits_words_as_blooms_does(tokenizer) -> None:
    backend = tokenizer.backend_tokenizer.pre_tokenizer
    text = "a b:\n\n你好，世界。(x|y) 1,000"
    pieces = [text[start:end] for _, (start, end) in backend.pre_tokenize_str(text)]
    assert pieces == ["a", " b:", "\n\n", "你好", "，", "世界", "。(", "x", "|", "y", ")", " 1", ",", "000"]


def test_any_text_survives_a_round_trip(tokenizer) -> None:
    for text in ["你好", "\n\n a \t", "😀𠮷", "é ﬁ \u200b", "<|end|>"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_it_refuses_a_directory_that_holds_something(outcome, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    status, _, err = outcome(tiny_bloom.main, f"--data-path {SINGLE_TURN} --output-dir {tmp_path}")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds something already" in err
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
