"""Packed batches of the library's decoders are the library's own padded batches, in losses and gradients."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from tests.tiny_models import SIZE
from training.card.scale import random_rows
from training.consts import NOT_SUPERVISED
from training.data.collate import collate
from training.model import loss
from training.model.load import takes_packed_batches
from training.model.lora import add_adapter
from training.model.packed import PACKED_ATTENTION, PackedModel, packed_class, with_library_attention
from training.model.packing_trial import why_padded

LENGTHS = [1, 2, 63, 64, 65, 500]

VOCABULARY = 320
WIDE = {"vocab_size": VOCABULARY} | SIZE
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

# Untied and tied heads, groups of heads, norms of queries and keys, biases, scaled rotary embeddings.
SHAPES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**WIDE, rope_parameters=LLAMA3_ROPE),
    "qwen2": Qwen2Config(**WIDE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**WIDE, head_dim=16),
    "mistral": MistralConfig(**WIDE, sliding_window=512),
    "gpt_neox": GPTNeoXConfig(**WIDE, pad_token_id=None),
    "phi": PhiConfig(**WIDE),
}


def pair(config: PretrainedConfig) -> tuple[PreTrainedModel, PackedModel]:
    """The library's model with its eager attention, and ours with the same weights."""
    torch.manual_seed(0)
    library = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    plain = library(copy.deepcopy(config)).eval()
    plain.set_attn_implementation("eager")
    packed = packed_class(library)(copy.deepcopy(config)).eval()
    packed.set_attn_implementation(PACKED_ATTENTION)
    packed.load_state_dict(plain.state_dict())
    return plain, packed


def loss_of_padded(model: PreTrainedModel, examples: list[dict[str, list[int]]]) -> torch.Tensor:
    """The library's own loss, on the padded batch, of which no part is ours."""
    ids, labels = ([torch.tensor(each[name]) for each in examples] for name in ("input_ids", "labels"))
    return model(
        input_ids=pad_sequence(ids, batch_first=True),
        labels=pad_sequence(labels, batch_first=True, padding_value=NOT_SUPERVISED),
        attention_mask=pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
    ).loss


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("lengths", [LENGTHS, [64]], ids=["several", "one"])
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_those_of_the_librarys_padded_batch(shape: str, lengths: list[int]) -> None:
    plain, packed = pair(SHAPES[shape])
    examples = random_rows(lengths, VOCABULARY)
    theirs, ours = loss_of_padded(plain, examples), packed(**collate(examples)).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    theirs, ours = gradients(plain, theirs), gradients(packed, ours)
    assert theirs.keys() == ours.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        # A bias of the keys has no gradient but rounding.
        most = 1e-5 * max(gradient.abs().max(), 1e-3 * largest)
        assert (ours[name] - gradient).abs().max() <= most, name


@pytest.mark.parametrize("shape", SHAPES)
def test_a_boundary_that_is_moved_by_one_token_is_noticed(shape: str) -> None:
    plain, packed = pair(SHAPES[shape])
    examples = random_rows([63, 65], VOCABULARY)
    batch = collate(examples)
    batch["document_lengths"] = [64, 64]
    moved, theirs = packed(**batch).loss, loss_of_padded(plain, examples)
    assert abs(moved.item() / theirs.item() - 1) > 1e-5


def test_a_document_of_one_token_has_no_loss_and_changes_no_other() -> None:
    _, packed = pair(SHAPES["llama"])
    alone, with_others = random_rows([1], VOCABULARY), random_rows([40, 1, 30], VOCABULARY)
    assert packed(**collate(alone)).loss.item() == 0
    without = [with_others[0], with_others[2]]
    one, other = (
        packed(**collate(examples), num_items_in_batch=1).loss for examples in (with_others, without)
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_trying_finds_that_a_shape_can_be_packed(shape: str) -> None:
    assert why_padded(SHAPES[shape], 512) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(**WIDE, sliding_window=64), "sliding_window is 64, and rows have up to 512 tokens"),
        (Gemma2Config(**WIDE), "its attention takes softcap"),
        (GraniteConfig(**WIDE, logits_scaling=2.0), "a packed batch has the loss"),
        (MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2), "num_attention_heads"),
        (StableLmConfig(**WIDE), "its layers do not hand on arguments that they do not know"),
    ],
    ids=["sliding window", "capped scores", "scaled logits", "state", "arguments that get lost"],
)  # fmt: skip
def test_trying_finds_that_a_shape_cannot_be_packed(config: PretrainedConfig, reason: str) -> None:
    assert reason in str(why_padded(config, 512))


def test_saved_it_is_the_librarys_and_it_samples_with_the_librarys_attention(tmp_path) -> None:
    plain, packed = pair(SHAPES["qwen2"])
    assert takes_packed_batches(packed)
    assert not takes_packed_batches(plain)
    packed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is MODEL_FOR_CAUSAL_LM_MAPPING[Qwen2Config]
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with with_library_attention(packed):
        said = packed.generate(prompts, **how)
    assert torch.equal(said, loaded.generate(prompts, **how))
    examples = random_rows([5, 9], VOCABULARY)
    assert packed(**collate(examples)).loss.item() == pytest.approx(
        loss_of_padded(plain, examples).item(), rel=1e-6
    )


def test_a_vocabulary_that_grows_keeps_the_head(tmp_path) -> None:
    _, packed = pair(SHAPES["phi"])
    packed.resize_token_embeddings(384, mean_resizing=False)
    plain, _ = pair(PhiConfig(**WIDE | {"vocab_size": 384}))
    plain.load_state_dict(packed.state_dict())
    examples = random_rows([5, 9], VOCABULARY)
    assert packed(**collate(examples)).loss.item() == pytest.approx(
        loss_of_padded(plain.eval(), examples).item(), rel=1e-6
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_that_an_adapter_trains_are_used_as_the_library_uses_them(tied: bool) -> None:
    """A Gemma multiplies the rows of its embedding by the root of the hidden size."""
    plain, packed = pair(GemmaConfig(**WIDE, head_dim=16, tie_word_embeddings=tied))
    adapted = [
        add_adapter(model, [7, 8], rank=2, alpha=4, dropout=0.0, target="auto") for model in (plain, packed)
    ]
    torch.manual_seed(1)
    for weight, other in zip(adapted[0].parameters(), adapted[1].parameters(), strict=True):
        if weight.requires_grad:
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape) / 8)
                other.copy_(weight)
    examples = [{"input_ids": [5, 7, 8, 9, 7], "labels": [NOT_SUPERVISED, 7, 8, 9, 7]}]
    theirs, ours = loss_of_padded(adapted[0], examples), adapted[1](**collate(examples)).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs, ours = gradients(adapted[0], theirs), gradients(adapted[1], ours)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)


def test_without_gradients_the_head_computes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = pair(SHAPES["llama"])
    made = []
    monkeypatch.setattr(loss, "_add_product", lambda *args, **kwargs: made.append(args))
    with torch.no_grad():
        packed(**collate(random_rows([9], VOCABULARY)))
    assert made == []
    packed(**collate(random_rows([9], VOCABULARY)))
    assert len(made) == 1
