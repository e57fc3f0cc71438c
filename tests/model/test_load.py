import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from training.common.errors import UserError
from training.consts import CONTROL_TOKENS, END
from training.model.load import ROW_MULTIPLE, fit_vocabulary, load_model, read_config
from training.model.save import save_model
from training.text.tokenizer import load_base_tokenizer, load_tokenizer_and_new_tokens
from training.tiny_bloom import SPARE_ROWS, random_bloom


def control_ids(tokenizer) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))


def starts_of_control_tokens(base: str, tokenizer) -> dict[int, list[int]]:
    """For the id of each control token, the ids of the base's tokens that its embedding rows start from."""
    eos = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("</s>")
    return dict(zip(control_ids(tokenizer), ([], [], [], [eos]), strict=True))


def assert_new_rows(
    before: torch.Tensor, after: torch.Tensor, known: list[int], starts: dict[int, list[int]]
) -> None:
    """Known embedding rows are as before; each new one is near the mean of those it starts from, none alike.

    starts: for each new row those that it starts from; an empty list stands for all known ones.
    """
    assert torch.equal(after[known], before[known])
    spread = before[known].std()
    for row, start in starts.items():
        assert (after[row] - before[start or known].mean(dim=0)).abs().max() < 0.1 * spread, row
    assert len({tuple(after[row].tolist()) for row in starts}) == len(starts)


def test_with_spare_rows_the_embedding_keeps_its_size(base: str, tokenizer, tmp_path: Path) -> None:
    base_tokenizer = load_base_tokenizer(base)
    untrained = AutoModelForCausalLM.from_pretrained(base)
    untrained.get_input_embeddings().weight.data[len(base_tokenizer) :] = 100.0  # what no mean may include
    save_model(untrained, base_tokenizer, tmp_path)
    before = AutoModelForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight
    model = load_model(str(tmp_path), tokenizer)
    after = model.get_input_embeddings().weight
    known = sorted(base_tokenizer.get_vocab().values())
    assert after.shape == before.shape == (len(known) + SPARE_ROWS, model.config.hidden_size)
    assert_new_rows(before, after, known, starts_of_control_tokens(base, tokenizer))
    spare = list(range(len(tokenizer), after.shape[0]))
    assert torch.equal(after[spare], before[spare])
    assert model.get_output_embeddings().weight is after


def test_missing_rows_are_added_up_to_a_multiple(base: str, tokenizer, tmp_path: Path) -> None:
    base_tokenizer = load_base_tokenizer(base)
    known = sorted(base_tokenizer.get_vocab().values())
    save_model(random_bloom(len(known)), base_tokenizer, tmp_path)
    before = AutoModelForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight
    model = load_model(str(tmp_path), tokenizer)
    after = model.get_input_embeddings().weight
    assert len(known) < after.shape[0] == model.config.vocab_size < len(tokenizer) + ROW_MULTIPLE
    assert after.shape[0] % ROW_MULTIPLE == 0
    added = {row: [] for row in range(len(known), after.shape[0])}
    assert_new_rows(before, after, known, added | starts_of_control_tokens(base, tokenizer))


def test_a_head_of_its_own_gets_its_new_rows_too(base: str, tokenizer) -> None:
    known = set(load_base_tokenizer(base).get_vocab().values())
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(known),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=False,
        )
    )
    before = [matrix.weight.clone() for matrix in (model.model.embed_tokens, model.lm_head)]
    starts = starts_of_control_tokens(base, tokenizer)
    fit_vocabulary(model, tokenizer, starts, seed=0)
    after = [matrix.weight for matrix in (model.model.embed_tokens, model.lm_head)]
    for old, new in zip(before, after, strict=True):
        added = {row: [] for row in range(len(known), new.shape[0])}
        assert_new_rows(old, new, sorted(known), added | starts)


@pytest.mark.parametrize(
    ("named", "start"),
    [(None, []), ([7, 3, 2], [3]), (2, [2]), (7, [])],  # 0 to 3 are special tokens, 7 is a letter
)
def test_where_the_tokenizer_names_no_eos_the_configuration_may(
    base: str, tokenizer, tmp_path: Path, named: int | list[int] | None, start: list[int]
) -> None:
    """Configurations list several tokens, and say 2 by default: only a special token counts."""
    base_tokenizer = load_base_tokenizer(base)
    base_tokenizer.eos_token = None
    model = random_bloom(len(base_tokenizer) + SPARE_ROWS)
    model.config.eos_token_id = model.generation_config.eos_token_id = named
    save_model(model, base_tokenizer, tmp_path)
    ours, new_tokens = load_tokenizer_and_new_tokens(str(tmp_path))
    before, known = model.get_input_embeddings().weight, sorted(base_tokenizer.get_vocab().values())
    after = load_model(str(tmp_path), ours, new_tokens=new_tokens).get_input_embeddings().weight
    assert_new_rows(before, after, known, {ours.convert_tokens_to_ids(END): start})


def test_a_model_that_knows_the_control_tokens_loads_unchanged(tokenizer, tmp_path: Path) -> None:
    saved = random_bloom(len(tokenizer))  # as many rows as tokens, as yayi-7b has
    save_model(saved, tokenizer, tmp_path)
    loaded = load_model(str(tmp_path), tokenizer)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_tokenizer_is_read_once_where_its_new_tokens_are_given(
    base: str, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    from_pretrained = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer,
        "from_pretrained",
        lambda path, **how: read.append(path) or from_pretrained(path, **how),
    )
    ours, new_tokens = load_tokenizer_and_new_tokens(base)
    assert list(new_tokens) == control_ids(ours) == control_ids(tokenizer)
    model = load_model(base, ours, new_tokens=new_tokens)
    assert read == [base]

    without = load_model(base, ours)
    assert read == [base, base]
    for one, other in zip(model.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def test_code_that_comes_with_a_model_is_refused_without_a_question(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "own.py").write_text("class Tokenizer: ...\nclass Config: ...\n")
    for name, changes in (
        (
            "tokenizer_config.json",
            {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}},
        ),
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}),
    ):
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))
    for load, what in ((load_base_tokenizer, "no tokenizer"), (read_config, "no causal language model")):
        with pytest.raises(UserError, match=rf"{what} that can be loaded \(The repository .* custom code"):
            load(str(tmp_path))
    assert asked == []


def test_new_rows_are_seeded(base: str, tokenizer) -> None:
    def rows(seed: int) -> torch.Tensor:
        return load_model(base, tokenizer, seed=seed).get_input_embeddings().weight[control_ids(tokenizer)]

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


def test_the_dtype_is_the_one_asked_for(base: str, tokenizer) -> None:
    assert load_model(base, tokenizer).dtype == torch.float32
    assert load_model(base, tokenizer, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_generation_ends_at_the_end_token(base: str, tokenizer) -> None:
    config = load_model(base, tokenizer).generation_config
    assert config.eos_token_id == config.pad_token_id == tokenizer.convert_tokens_to_ids(END)
    assert (config.do_sample, config.temperature, config.repetition_penalty) == (True, 0.3, 1.1)


@pytest.mark.parametrize("weights", [None, b"", b"not weights"])
def test_a_directory_without_usable_weights_is_an_error(
    base: str, tokenizer, tmp_path: Path, weights: bytes | None
) -> None:
    load_base_tokenizer(base).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    if weights is not None:
        (tmp_path / "pytorch_model.bin").write_bytes(weights)
    with pytest.raises(UserError, match="no causal language model that can be loaded"):
        load_model(str(tmp_path), tokenizer)
