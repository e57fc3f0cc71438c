"""What the model in training answers to a few held-out prompts, and how that compares with the data."""

from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from training.consts import END, NOT_LEARNT
from training.data.encoded import Example
from training.data.examples import Examples

PROMPTS = 4

# An answer may be as long as the reference and half of it more, up to so many tokens.
MOST_TOKENS = 256

# A piece that comes again counts as a repetition from so many tokens on.
REPEATED_TOKENS = 4


class Samples(NamedTuple):
    """Of the answers: the share that ended by `<|End|>`, how long they are on average, as a share of the
    reference's length, the share of their 4-grams that were there before, and one of them as text."""

    ended: float
    length: float
    repeated: float
    text: str


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Examples) -> Samples:
    """Greedy answers to the first prompts of the first rows, in one batch. For all ranks together."""
    pairs = [prompt_and_answer(rows[i]) for i in range(min(PROMPTS, len(rows)))]
    end = tokenizer.convert_tokens_to_ids(END)
    longest = max(len(prompt) for prompt, _ in pairs)
    input_ids = torch.full((len(pairs), longest), end)
    attention_mask = torch.zeros_like(input_ids)
    for i, (prompt, _) in enumerate(pairs):
        input_ids[i, longest - len(prompt) :] = torch.as_tensor(prompt)
        attention_mask[i, longest - len(prompt) :] = 1
    most = min(MOST_TOKENS, max(len(answer) for _, answer in pairs) * 3 // 2)
    config = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=end, pad_token_id=end)
    with torch.no_grad():
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
        )[:, longest:].tolist()
    answers = [ids[: ids.index(end) + 1] if end in ids else ids for ids in output]
    question, answer = tokenizer.decode(pairs[0][0][-40:]), tokenizer.decode(answers[0])
    return Samples(
        ended=mean(answer[-1:] == [end] for answer in answers),
        length=mean(len(answer) for answer in answers) / mean(len(reference) for _, reference in pairs),
        repeated=mean(map(repeated_share, answers)),
        text=f"...{question}{answer}".replace("\n", "\\n"),
    )


def prompt_and_answer(row: Example) -> tuple[np.ndarray, np.ndarray]:
    """The ids before the first answer, and those of the answer."""
    learnt = row["labels"] != NOT_LEARNT
    start = int(learnt.argmax())
    length = int(np.append(~learnt[start:], True).argmax())
    return row["input_ids"][:start], row["input_ids"][start : start + length]


def repeated_share(ids: list[int]) -> float:
    """The share of the pieces of REPEATED_TOKENS tokens that were there before (https://arxiv.org/abs/1908.04319,
    section 6, seq-rep-4)."""
    pieces = [tuple(ids[i : i + REPEATED_TOKENS]) for i in range(len(ids) - REPEATED_TOKENS + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0
