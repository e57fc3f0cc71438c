"""What the model in training answers to a few held-out prompts, and how that compares with the data."""

from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from training.consts import END, NOT_SUPERVISED
from training.data.encoded import Example
from training.data.examples import Examples
from training.model.context import context_limit
from training.model.packed import with_library_attention

PROMPTS = 4

# An answer may be half as long again as the longest reference, but has at most this number of tokens.
MOST_TOKENS = 256

# Tokens in a piece of an answer that counts as a repetition when it occurs again.
REPEATED_TOKENS = 4


class HeldOutAnswers(NamedTuple):
    """Measures of the model's answers, and one of them as text."""

    ended: float  # the share that ended by `<|End|>`
    length: float  # the mean number of tokens, divided by that of the references
    repeated: float  # the mean share of 4-grams that occurred earlier in the same answer
    text: str  # the end of the first prompt, and its answer


def answer_held_out_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, examples: Examples
) -> HeldOutAnswers:
    """Greedy answers to the prompts of the first PROMPTS examples, in one batch. For all ranks together."""
    pairs = [prompt_and_answer(examples[i]) for i in range(min(PROMPTS, len(examples)))]
    end = tokenizer.convert_tokens_to_ids(END)
    longest = max(len(prompt) for prompt, _ in pairs)
    input_ids = torch.full((len(pairs), longest), end)
    attention_mask = torch.zeros_like(input_ids)
    for i, (prompt, _) in enumerate(pairs):
        input_ids[i, longest - len(prompt) :] = torch.as_tensor(prompt)
        attention_mask[i, longest - len(prompt) :] = 1
    most = min(MOST_TOKENS, max(len(answer) for _, answer in pairs) * 3 // 2)
    if limit := context_limit(model.config):
        most = min(most, limit - longest)
    config = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=end, pad_token_id=end)
    with torch.no_grad(), with_library_attention(model):
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
        )[:, longest:].tolist()
    answers = [ids[: ids.index(end) + 1] if end in ids else ids for ids in output]
    question, answer = tokenizer.decode(pairs[0][0][-40:]), tokenizer.decode(answers[0])
    return HeldOutAnswers(
        ended=mean(answer[-1:] == [end] for answer in answers),
        length=mean(len(answer) for answer in answers) / mean(len(reference) for _, reference in pairs),
        repeated=mean(map(repeated_share, answers)),
        text=f"...{question}{answer}".replace("\n", "\\n"),
    )


def prompt_and_answer(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """The ids before the first answer, and those of the answer."""
    supervised = example["labels"] != NOT_SUPERVISED
    start = int(supervised.argmax())
    length = int(np.append(~supervised[start:], True).argmax())
    return example["input_ids"][:start], example["input_ids"][start : start + length]


def repeated_share(ids: list[int]) -> float:
    """The share of the pieces of REPEATED_TOKENS tokens that occur earlier in `ids`.

    This is seq-rep-4 of https://arxiv.org/abs/1908.04319, section 6.
    """
    pieces = [tuple(ids[i : i + REPEATED_TOKENS]) for i in range(len(ids) - REPEATED_TOKENS + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0
