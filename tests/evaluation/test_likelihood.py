"""Likelihoods, compared with plain transformers: one answer at a time, without cache or padding."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from evaluation.likelihood import answer_ids, log_likelihoods
from inference.generation import load
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode

PROMPT_LENGTHS = (9, 3, 1, 17)

# Tokens of each answer to each prompt: lengths and numbers of answers differ, and some have one token.
ANSWER_LENGTHS = ((4, 1, 7), (2,), (1, 1), (12, 3, 3, 5))


def one_at_a_time(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    predicted = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
    return sum(predicted[index, token].item() for index, token in enumerate(answer))


def some_ids(length: int, seed: int) -> list[int]:
    return torch.randint(5, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def small(kind: str, tuned: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model to test, and the library's own of the same weights."""
    if kind == "bloom":
        return load(tuned, device="cpu", dtype="float32")[0], AutoModelForCausalLM.from_pretrained(
            tuned, dtype=torch.float32
        )
    torch.manual_seed(0)
    if kind == "llama":
        size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=320, num_key_value_heads=2, **size))
    else:  # learns a vector for each position: padding must not move them
        model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=64))
    for weights in model.parameters():
        weights.data *= 3  # far from a uniform guess
    return model.eval(), model


@pytest.mark.parametrize("kind", ["bloom", "llama", "gpt2"])
def test_likelihoods_are_those_of_one_answer_at_a_time(kind: str, tuned: str) -> None:
    ours, theirs = small(kind, tuned)
    prompts = [some_ids(length, seed) for seed, length in enumerate(PROMPT_LENGTHS)]
    answers = [
        [some_ids(length, 100 + 10 * seed + index) for index, length in enumerate(lengths)]
        for seed, lengths in enumerate(ANSWER_LENGTHS)
    ]
    found = log_likelihoods(ours, prompts, answers)
    for prompt, several, totals in zip(prompts, answers, found, strict=True):
        expected = [one_at_a_time(theirs, prompt, answer) for answer in several]
        assert totals == pytest.approx(expected, abs=1e-4)
        assert min(expected) < -5


def test_answers_of_one_token_need_no_second_reading(tuned: str) -> None:
    ours, theirs = small("bloom", tuned)
    found = log_likelihoods(ours, [[7, 8]], [[[9], [10]]])
    assert found[0] == pytest.approx([one_at_a_time(theirs, [7, 8], [token]) for token in (9, 10)], abs=1e-4)


def test_the_tokens_of_an_answer_are_those_that_training_supervises(tuned: str) -> None:
    """An answer's log-likelihood is therefore minus the row's loss times its supervised tokens."""
    _, tokenizer = load(tuned, device="cpu", dtype="float32")
    library = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    ours = load(tuned, device="cpu", dtype="float32")[0]
    prompt = Conversation((Turn("再短一点", "好"), Turn("你是谁")), system="你是一名记者。")
    answers = ["我是雅意。", "A", "B. 通车\n。"]
    supervised = answer_ids(prompt, answers, tokenizer)
    whole = [
        encode(Conversation((prompt.turns[0], Turn("你是谁", answer)), prompt.system), tokenizer)
        for answer in answers
    ]
    prompt_ids = whole[0]["input_ids"][: -len(supervised[0])]
    for ids, row, total in zip(
        supervised, whole, log_likelihoods(ours, [prompt_ids], [supervised])[0], strict=True
    ):
        assert row["input_ids"] == prompt_ids + ids
        labels = torch.tensor([[-100] * (len(prompt_ids)) + ids])
        with torch.no_grad():
            loss = library(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
        assert total == pytest.approx(-loss * len(ids), abs=1e-4)
        assert tokenizer.decode(ids).endswith("\n\n<|End|>")
