"""Answers to many prompts, a batch at a time."""

import copy
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from inference.generation import answer_text, generation_config, room_for_answer
from inference.options import sampling_of
from inference.resumable import Journal
from training.common.errors import UserError
from training.consts import END


class BatchAnswer(NamedTuple):
    """An answer, whether the model said `<|End|>`, and how many tokens the answer took."""

    answer: str
    ended: bool
    tokens: int


def check_prompt_lengths(places: Sequence[str], prompts: Sequence[list[int]], context: int) -> None:
    """Raise UserError for the first prompt that leaves no room for an answer."""
    for place, prompt in zip(places, prompts, strict=True):
        if len(prompt) >= context:
            raise UserError(
                f"{place}: its {len(prompt):,} tokens leave no room for an answer in the model's "
                f"context of {context:,}; shorten the row, or take it out"
            )


def batch_answerer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    journal: Journal,
    options: SimpleNamespace,
) -> Callable[[list[int]], list[dict[str, Any]]]:
    """A function from indices of prompts to their answers, sampled as `options` say, for `work_through`."""
    config = generation_config(tokenizer, **sampling_of(options))

    def answer(rows: list[int]) -> list[dict[str, Any]]:
        # Seeded anew for each batch, so that a continued run samples what an uninterrupted one would.
        if options.seed is not None:
            torch.manual_seed(options.seed + len(journal.answers))
        answers = answer_batch(model, tokenizer, [prompts[row] for row in rows], config)
        return [{"row": row} | answer._asdict() for row, answer in zip(rows, answers, strict=True)]

    return answer


def answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
) -> list[BatchAnswer]:
    """The answers to prompts, given as their input_ids. At temperature 0 each is what it would be alone.

    input_ids        s 7 h 9 9 y     attention_mask  1 1 1 1 1 1     s, h, y = <|System|>, <|Human|>, <|YaYi|>
                     e e s 7 h y                     . . 1 1 1 1     e = <|End|>, the padding
    """
    longest = max(map(len, prompts))
    room = room_for_answer(model, longest, config.max_new_tokens)
    if room < config.max_new_tokens:
        if len(prompts) > 1:  # a batch would leave the shorter prompts no more room than the longest
            return [answer for one in prompts for answer in answer_batch(model, tokenizer, [one], config)]
        config = copy.copy(config)
        config.max_new_tokens = room
    input_ids = pad_left(prompts, config.pad_token_id)
    mask = pad_left([[1] * len(prompt) for prompt in prompts], 0)
    sequences = model.generate(
        input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
    )
    return [decode_answer(ids, tokenizer) for ids in sequences[:, input_ids.shape[1] :].tolist()]


def pad_left(sequences: Iterable[list[int]], padding: int) -> torch.Tensor:
    """The sequences as one tensor (batch, tokens of the longest), with `padding` before the shorter ones."""
    tensors = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side="left")


def decode_answer(new_ids: list[int], tokenizer: PreTrainedTokenizerFast) -> BatchAnswer:
    """The answer in `new_ids`; after its `<|End|>` there is padding, to the longest of the batch."""
    end_id = tokenizer.convert_tokens_to_ids(END)
    ended = end_id in new_ids
    tokens = new_ids.index(end_id) + 1 if ended else len(new_ids)
    return BatchAnswer("".join(answer_text(tokenizer, new_ids)), ended, tokens)
