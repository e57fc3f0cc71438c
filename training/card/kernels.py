"""Part 2: which attention kernels run, and whether a length that none of them has seen costs more.

Nearly every micro-batch has lengths that the run has not had before. A kernel that makes a plan for each new
shape would make that plan in each step.
"""

import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from training.card.engines import engines
from training.card.page import Check
from training.card.scale import bloom_of, on_device, random_rows
from training.card.timing import seconds_of
from training.data.collate import collate
from training.model.bloom import BloomForCausalLM

# Milliseconds that a length may cost when it is new, beyond what it costs from then on.
OF_A_NEW_LENGTH = 5.0

# What the names of attention's operations and kernels have in them.
OF_ATTENTION = ("attention", "attn", "flash", "fmha", "cudnn")

# A pass over documents of so many tokens.
Pass = Callable[[int], object]


def find_kernels(check: Check) -> None:
    model = bloom_of(check.scale.kernels, BloomForCausalLM, torch.bfloat16, check.device)
    lengths = iter(_unseen_lengths(check))
    check.add("model", str(check.scale.kernels), note="bf16")
    for name, engine in engines(check.device).items():
        with engine():
            _measure(check, f"training, {name}", partial(_train, model.train()), lengths)
    _measure(check, "a prompt and its first token", partial(_answer, model.eval()), lengths)


def _unseen_lengths(check: Check) -> list[int]:
    """Enough different lengths for every case, in no order."""
    random = torch.Generator().manual_seed(0)
    cases = len(engines(check.device)) + 1
    return (2 + torch.randperm(check.scale.longest - 2, generator=random))[
        : cases * check.scale.new_lengths
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


def _measure(check: Check, name: str, run: Pass, lengths: Iterable[int]) -> None:
    run(check.scale.longest)  # sets up what does not depend on the length
    found = attention_operations(partial(run, check.scale.longest), check.on_card)
    check.add(
        f"{name}: attention by", ", ".join(f"{key} ({count})" for key, count in found.items()) or "none"
    )
    cudnn = sum(count for key, count in found.items() if "cudnn" in key)
    check.add(f"{name}: calls of cuDNN's attention", cudnn, at_most=0, of_card=True)
    extra = []
    for _, length in zip(range(check.scale.new_lengths), lengths, strict=False):
        cold, *warm = (seconds_of(partial(run, length), check.device) for _ in range(4))
        extra.append(1000 * (cold - statistics.median(warm)))
    check.add(
        f"{name}: the worst of {len(extra)} new lengths costs, the first time, extra",
        max(extra), "ms", at_most=OF_A_NEW_LENGTH, of_card=True,
        note=f"median {statistics.median(extra):.2g} ms",
    )  # fmt: skip


def attention_operations(work: Callable[[], object], on_card: bool) -> dict[str, int]:
    """The operations and kernels of attention that `work` runs, and how often each of them runs."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as profiled:
        work()
        if on_card:
            torch.cuda.synchronize()
    return {
        event.key: event.count
        for event in profiled.key_averages()
        if any(part in event.key.lower() for part in OF_ATTENTION)
    }
