import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from training.cost.flops import Tokens, matrix_products
from training.model.lora import add_adapter


def small_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    )


@pytest.mark.parametrize("architecture", ["bloom", "llama"])
def test_the_formula_counts_what_torch_counts(base: str, architecture: str) -> None:
    """The model is a plain one, which computes every logit, and every pair in attention, causal or not."""
    model = AutoModelForCausalLM.from_pretrained(base) if architecture == "bloom" else small_llama()
    model.set_attn_implementation("eager")
    model.train()
    length = 23
    computed = matrix_products(model).flops(Tokens(total=length, supervised=length, pairs=length * length))
    assert computed == pytest.approx(flops_of_step(model, length), rel=0.01)


def test_the_matrix_of_a_head_with_an_adapter_is_counted_once() -> None:
    plain = matrix_products(small_llama())
    model = add_adapter(small_llama(), [], rank=4, alpha=8, dropout=0.0, target="q_proj,lm_head")
    products = matrix_products(model)
    assert (products.head, products.frozen_head) == (plain.head, plain.head)
    assert products.frozen == plain.weights


def flops_of_step(model: torch.nn.Module, length: int) -> int:
    ids = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops()


def test_frozen_weights_have_no_gradient_to_be_computed(base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").train()
    model = add_adapter(model, [1, 2], rank=4, alpha=8, dropout=0.0, target="auto")
    products = matrix_products(model)
    assert products.frozen_head == products.head
    assert 0 < products.frozen < products.weights
    length = 23
    computed = products.flops(Tokens(total=length, supervised=length, pairs=length * length))
    # In the library's model peft computes the gradient of the whole head; ours does not.
    of_head = 2 * products.head * length
    assert computed + of_head == pytest.approx(flops_of_step(model, length), rel=0.01)


def test_checkpointing_costs_one_more_pass_through_the_blocks(base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").train()
    length = 23
    once = flops_of_step(model, length)
    model.activation_checkpointing_enable({"use_reentrant": False})
    computed = matrix_products(model).flops_of_checkpointing(
        Tokens(total=length, supervised=length, pairs=length * length)
    )
    last = sum(2 * block.mlp.dense_4h_to_h.weight.numel() * length for block in model.transformer.h)
    assert computed - last == pytest.approx(flops_of_step(model, length) - once, rel=0.01)


def test_the_formula_on_a_batch_of_documents(base: str) -> None:
    products = matrix_products(AutoModelForCausalLM.from_pretrained(base))
    one, two = Tokens(total=10, supervised=4, pairs=55), Tokens(total=10, supervised=4, pairs=30)
    assert products.flops(one) - products.flops(two) == 12 * products.attention * 25
    assert products.flops(Tokens(supervised=1)) == 6 * products.head
