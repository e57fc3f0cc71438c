"""What loaders other than transformers 5 read in a saved model; `tests/transformers4.py` tries one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)

from tests.tiny_models import SIZE, TOKENIZERS
from training.model.load import load_model
from training.model.save import save_model, write_older_names
from training.text.tokenizer import load_base_tokenizer, load_tokenizer_and_new_tokens, save_tokenizer

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 20000.0}),
         {"rope_theta": 20000.0, "rope_scaling": None}),
        (LlamaConfig(rope_parameters={**LLAMA_3, "rope_theta": 500000.0}),
         {"rope_theta": 500000.0, "rope_scaling": LLAMA_3}),
        (GPTNeoXConfig(rope_parameters={"rope_theta": 5000.0, "partial_rotary_factor": 0.5}),
         {"rotary_emb_base": 5000.0, "rotary_pct": 0.5, "rope_theta": 5000.0, "rope_scaling": None}),
        (Gemma3TextConfig(rope_parameters={layer: {"rope_type": "default", "rope_theta": 7.0}
                                           for layer in ("full_attention", "sliding_attention")}),
         {"rope_theta": 7.0, "rope_scaling": None}),
    ],
)  # fmt: skip
def test_rotary_embeddings_have_their_older_names_too(
    tmp_path: Path, config: PretrainedConfig, names: dict
) -> None:
    config.save_pretrained(tmp_path)
    assert write_older_names(tmp_path, vocab_size=9)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in names} == names
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters
    assert again.vocab_size == 9


def test_rotary_embeddings_of_several_kinds_are_one_line(tmp_path: Path, capsys) -> None:
    tokenizer = TOKENIZERS["qwen"]()
    config = Gemma3TextConfig(vocab_size=len(tokenizer), **{**SIZE, "head_dim": 16})
    save_model(Gemma3ForCausalLM(config), tokenizer, tmp_path)
    out = capsys.readouterr().out
    assert out.count(f"WARNING: {tmp_path}: its layers have rotary embeddings of several kinds") == 1
    assert not {"rope_theta", "rope_scaling"} & json.loads((tmp_path / "config.json").read_text()).keys()


@pytest.mark.parametrize("tied", [False, True])
def test_a_sentencepiece_model_is_saved_without_rows_beyond_its_tokens(tmp_path: Path, tied: bool) -> None:
    base = TOKENIZERS["llama"]()
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(base) + 3, tie_word_embeddings=tied, **SIZE)
    save_model(LlamaForCausalLM(config), base, tmp_path / "base")
    tokenizer, new_tokens = load_tokenizer_and_new_tokens(str(tmp_path / "base"))
    model = load_model(str(tmp_path / "base"), tokenizer, new_tokens=new_tokens)
    assert model.config.vocab_size > len(tokenizer) == len(base) + 5  # four control tokens, and the pad token
    save_model(model, tokenizer, tmp_path / "taught")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "taught")
    assert saved.config.vocab_size == len(tokenizer)
    assert (saved.lm_head.weight is saved.model.embed_tokens.weight) == tied
    ids = torch.tensor([[5, 600, *new_tokens]])
    assert torch.equal(saved(ids).logits, model(ids).logits[..., : len(tokenizer)])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokenizers_files_say_what_older_loaders_ask(tmp_path: Path, kind: str) -> None:
    TOKENIZERS[kind]().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer, _ = load_tokenizer_and_new_tokens(str(tmp_path))
    save_tokenizer(tokenizer, tmp_path / "taught")
    written = json.loads((tmp_path / "taught" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["model_input_names"] == ["input_ids", "attention_mask"]
    assert (written["add_bos_token"], written["add_prefix_space"]) == (False, False)
    assert "extra_special_tokens" not in written
    again = AutoTokenizer.from_pretrained(tmp_path / "taught")
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.extra_special_tokens == tokenizer.extra_special_tokens

    # An untaught one, as `training.extend_vocabulary` saves it, does what Llama's own does.
    save_tokenizer(load_base_tokenizer(str(tmp_path)), tmp_path / "untaught")
    written = json.loads((tmp_path / "untaught" / "tokenizer_config.json").read_text())
    assert written["add_bos_token"] == (kind != "qwen")
    assert written["add_prefix_space"] == (kind in {"llama", "old llama"})
