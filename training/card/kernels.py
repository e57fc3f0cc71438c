"""Part 2: which attention kernels run, and whether a length that none of them has seen costs more.

Nearly every micro-batch has lengths that the run has not had before. An attention kernel that makes a plan
for each new shape would make that plan in each step. So attention alone is held to a bound. A whole pass of
the model has none: whatever else runs for the first time is in it, such as a kernel of matrix products that
other lengths would have loaded before.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from training.card.engines import engines
from training.card.page import Check
from training.card.profiled import attention_operations
from training.card.scale import bloom_of, on_device, random_rows
from training.card.timing import seconds_of
from training.data.collate import collate
from training.model.attention import WIDTH_MULTIPLE, attend_in_documents, documents_of
from training.model.bloom import BloomForCausalLM

# Milliseconds that a length may cost when it is new, beyond what it costs from then on.
OF_A_NEW_LENGTH = 5.0

# A pass over documents of so many tokens.
Pass = Callable[[int], object]


def find_kernels(check: Check) -> None:
    model = bloom_of(check.scale.kernels, BloomForCausalLM, torch.bfloat16, check.device)
    lengths = iter(_unseen_lengths(check))
    check.add("model", str(check.scale.kernels), note="bf16")
    for name, engine in engines(check.device).items():
        with engine():
            train, attend = partial(_train, model.train()), partial(_attend_to_documents, check)
            _measure(check, f"training, {name}", train, attend, lengths)
    answer, attend = partial(_answer, model.eval()), partial(_attend_to_prompt, check)
    _measure(check, "a prompt and its first token", answer, attend, lengths)


def _unseen_lengths(check: Check) -> list[int]:
    """Enough different lengths for every case, twice, in no order."""
    random = torch.Generator().manual_seed(0)
    cases = len(engines(check.device)) + 1
    return (2 + torch.randperm(check.scale.longest - 2, generator=random))[
        : 2 * cases * check.scale.new_lengths
    ].tolist()


def _train(model: BloomForCausalLM, length: int) -> None:
    """A forward and a backward pass over a document of that length, and one of about half of it."""
    rows = random_rows((length, length // 2 + 1), model.config.vocab_size)
    batch = on_device(collate(rows), model.device)
    model.zero_grad()
    model(**batch).loss.backward()


@torch.no_grad()
def _answer(model: BloomForCausalLM, length: int) -> None:
    """The passes that generation makes: over the prompt, and over the first new token."""
    cache = DynamicCache(config=model.config)
    input_ids = torch.zeros((1, length), dtype=torch.int64, device=model.device)
    model(input_ids=input_ids, past_key_values=cache, logits_to_keep=1)
    model(input_ids=input_ids[:, :1], past_key_values=cache, logits_to_keep=1)


def _queries(check: Check, *shape: int) -> list[torch.Tensor]:
    """Queries, keys and values of this shape, before the width of a head, as a Bloom's attention has them."""
    width = check.scale.kernels.hidden // check.scale.kernels.heads + WIDTH_MULTIPLE
    like = {"dtype": torch.bfloat16, "device": check.device, "requires_grad": True}
    return [torch.randn(*shape, width, **like) for _ in range(3)]


def _attend_to_documents(check: Check, length: int) -> None:
    """The attention of one layer of `_train`, forward and backward."""
    lengths = [length, length // 2 + 1]
    documents = documents_of(lengths, check.device)
    attended = attend_in_documents(
        *_queries(check, sum(lengths), check.scale.kernels.heads), documents, scale=1
    )
    attended.sum().backward()


@torch.no_grad()
def _attend_to_prompt(check: Check, length: int) -> None:
    """The attention of one layer of `_answer`."""
    query, key, value = _queries(check, 1, check.scale.kernels.heads, length)
    F.scaled_dot_product_attention(query, key, value, is_causal=True)
    F.scaled_dot_product_attention(query[:, :, :1], key, value)


def _measure(check: Check, name: str, run: Pass, attend: Pass, lengths: Iterator[int]) -> None:
    run(check.scale.longest)  # sets up what does not depend on the length
    found = attention_operations(partial(run, check.scale.longest), check.on_card)
    check.add(
        f"{name}: attention by", ", ".join(f"{key} ({count})" for key, count in found.items()) or "none"
    )
    cudnn = sum(count for key, count in found.items() if "cudnn" in key)
    check.add(f"{name}: calls of cuDNN's attention", cudnn, at_most=0, of_card=True)
    what = f"the worst of {check.scale.new_lengths} new lengths costs, the first time, extra"
    attend(check.scale.longest)
    extra = _extra_of_new_lengths(check, attend, lengths)
    check.add(
        f"{name}: attention alone, {what}", max(extra), "ms", at_most=OF_A_NEW_LENGTH, of_card=True,
        note=f"median {statistics.median(extra):.2g} ms",
    )  # fmt: skip
    extra = _extra_of_new_lengths(check, run, lengths)
    check.add(
        f"{name}: the whole pass, {what}", max(extra), "ms",
        note=f"median {statistics.median(extra):.2g} ms; with all else that is new at that length",
    )  # fmt: skip


def _extra_of_new_lengths(check: Check, run: Pass, lengths: Iterator[int]) -> list[float]:
    """The milliseconds that each of `new_lengths` lengths costs the first time, beyond its later times."""
    extra = []
    for length in islice(lengths, check.scale.new_lengths):
        cold, *warm = (seconds_of(partial(run, length), check.device) for _ in range(4))
        extra.append(1000 * (cold - statistics.median(warm)))
    return extra
