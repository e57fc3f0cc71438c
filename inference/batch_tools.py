"""Answers to many conversations whose model calls tools: each round of answers is a batch."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from inference.batch_answers import BatchAnswer, answer_batch
from inference.generation import context_length, generation_config, room_for_prompt
from inference.options import sampling_of
from inference.resumable import Journal
from inference.tool_loop import ToolLoop
from inference.tool_process import ToolFile
from training.text.calls import read_call
from training.text.encoding import encode_prompt
from training.text.turns import Conversation, Turn


def tool_answerer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Conversation],
    tools: ToolFile,
    journal: Journal,
    options: SimpleNamespace,
) -> Callable[[list[int]], list[dict[str, Any]]]:
    """A function from indices of prompts to their answers with the calls, for `work_through`.

    All calls of `tools` are run. An answer's "tokens" are those of all rounds.
    """
    config = generation_config(tokenizer, **sampling_of(options))
    longest = min(room_for_prompt(model, options.max_new_tokens), context_length(model) - 1)

    def fits(prompt: Conversation) -> bool:
        return len(encode_prompt(prompt, tokenizer)) <= longest

    def answer(rows: list[int]) -> list[dict[str, Any]]:
        if options.seed is not None:  # anew for each batch, as without tools
            torch.manual_seed(options.seed + len(journal.answers))
        loops = [ToolLoop(prompts[row], tools, fits=fits, max_calls=options.max_calls) for row in rows]
        said: list[list[BatchAnswer]] = [[] for _ in rows]
        while is_open := [index for index, loop in enumerate(loops) if loop.is_open]:
            input_ids = [encode_prompt(loops[index].conversation, tokenizer) for index in is_open]
            for index, one in zip(is_open, answer_batch(model, tokenizer, input_ids, config), strict=True):
                said[index].append(one)
                for _ in loops[index].take(one.answer):
                    pass
        return [
            {
                "row": row,
                "answer": loop.conversation.turns[-1].yayi,
                "ended": of_row[-1].ended and not loop.problem,
                "tokens": sum(one.tokens for one in of_row),
                "problem": loop.problem,
                "calls": list(calls_of(loop.conversation.turns[-1], prompts[row].turns[-1])),
            }
            for row, loop, of_row in zip(rows, loops, said, strict=True)
        ]

    return answer


def calls_of(turn: Turn, before: Turn) -> Iterator[dict[str, Any]]:
    """The calls of an answered turn with their results; not those that were in it before it was answered."""
    for use in turn.tool_uses[len(before.tool_uses) :]:
        for text, result in zip(use.calls, use.results, strict=True):
            try:
                call: dict[str, Any] = read_call(text)._asdict()
            except ValueError:
                call = {"text": text}
            yield {**call, "result": result}
