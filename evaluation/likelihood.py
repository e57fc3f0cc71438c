"""How likely a model finds given answers to a prompt, many prompts at a time."""

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from inference.batch_answers import pad_left
from training.model.context import context_limit
from training.text.conversation import Conversation
from training.text.encoding import encode, encode_prompt


def answer_ids(
    prompt: Conversation, answers: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> list[list[int]]:
    """The supervised tokens of each answer, as in training: up to and including its `<|End|>`."""
    prompt_ids = encode_prompt(prompt, tokenizer)
    *before, last = prompt.turns
    supervised = []
    for answer in answers:
        conversation = replace(prompt, turns=(*before, replace(last, yayi=answer)))
        ids = encode(conversation, tokenizer)["input_ids"]
        assert ids[: len(prompt_ids)] == prompt_ids, "a prompt's ids are a prefix of training's"
        supervised.append(ids[len(prompt_ids) :])
    return supervised


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]
) -> list[list[float]]:
    """The natural logarithm of the probability of each answer after its prompt, by prompt and answer.

    prompts: the input_ids of each; answers: for each prompt, the input_ids of each of its answers. A prompt
    is read once, whatever the number of its answers.

    prompts   . 7 8    answers of the first   1 2 .        read first   . 7 8    then   1 . .    after . 7 8
              5 7 8    of the second          3 4 9                     5 7 8           3 4 .    after 5 7 8
                                              6                                         . . .    after 5 7 8
    """
    mask = pad_left([[1] * len(prompt) for prompt in prompts], 0).to(model.device)
    cache = DynamicCache(config=model.config)
    first_logits = _read(model, pad_left(prompts, 0).to(model.device), mask, cache, logits_to_keep=1)[:, -1]

    owner_of = [owner for owner, of_prompt in enumerate(answers) for _ in of_prompt]
    all_answers = [answer for of_prompt in answers for answer in of_prompt]
    owners = torch.tensor(owner_of, device=model.device)
    # An answer's last token predicts nothing that counts. Padding is at the end, where no token sees it.
    inputs = [torch.tensor(answer[:-1], dtype=torch.int64) for answer in all_answers]
    input_ids = pad_sequence(inputs, batch_first=True).to(model.device)
    later_logits = None
    if input_ids.shape[1]:
        cache.batch_select_indices(owners)
        later_logits = _read(
            model, input_ids, torch.cat([mask[owners], torch.ones_like(input_ids)], dim=1), cache
        )

    totals: list[list[float]] = [[] for _ in prompts]
    for index, (owner, answer) in enumerate(zip(owner_of, all_answers, strict=True)):
        logits = first_logits[owner][None]
        if len(answer) > 1:
            logits = torch.cat([logits, later_logits[index, : len(answer) - 1]])
        targets = torch.tensor(answer, device=logits.device)[:, None]
        totals[owner].append(logits.float().log_softmax(dim=-1).gather(1, targets).sum().item())
    return totals


def _read(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    cache: DynamicCache,
    logits_to_keep: int = 0,
) -> torch.Tensor:
    """Logits (batch, tokens, vocabulary) for input_ids that go on from `cache`; mask: (batch, all tokens)."""
    positions = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        last = (context_limit(model.config) or mask.shape[1]) - 1  # which the padding must not exceed either
        positions = {"position_ids": (mask.cumsum(dim=1) - 1).clamp(0, last)[:, -input_ids.shape[1] :]}
    return model(
        input_ids=input_ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=logits_to_keep,
        **positions,
    ).logits
