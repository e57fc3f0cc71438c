"""Part 3: forward and backward passes, ours and the library's, beside what matrix products would allow."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import BloomForCausalLM as LibraryBloom

from training.card.engines import engines
from training.card.page import Check
from training.card.profiled import where_time_goes
from training.card.scale import Batch, bloom_of, on_device, random_rows
from training.card.timing import forget_peak, median_seconds, peak_text
from training.cost.flops import matrix_products
from training.data.collate import collate, collate_padded
from training.model.bloom import BloomForCausalLM
from training.run.speed import count_tokens

# The share of the speed of matrix products that `training.plan` assumes a run to reach.
ASSUMED_SHARE = 0.4

# Ours is not to be slower than the library, but for a chance.
NOT_SLOWER = 0.95


def measure_training(check: Check) -> None:
    scale, device = check.scale, check.device
    check.add(
        "model",
        str(scale.training),
        note="bf16, forward and backward, half of the tokens supervised, no optimizer",
    )
    forget_peak(device)
    model = bloom_of(scale.training, BloomForCausalLM, torch.bfloat16, device).train()
    products = matrix_products(model)
    fastest: dict[Batch, float] = {}
    for batch in scale.batches:
        tensors = collate(random_rows([batch.length] * batch.examples, scale.training.vocabulary))
        flops = products.flops(count_tokens(tensors))
        for name, engine in engines(check.device).items():
            with engine():
                seconds = _measure(check, f"{batch}, {name}", model, tensors)
            if seconds is None:
                continue
            fastest[batch] = min(seconds, fastest.get(batch, seconds))
            if check.flops_per_second:
                share = 100 * flops / seconds / check.flops_per_second
                what = f"{batch}, {name}: of what matrix products alone allow"
                check.add(what, share, "%", at_least=100 * ASSUMED_SHARE, of_card=True)
            with engine():
                spent = where_time_goes(
                    partial(_step, model, on_device(tensors, device)), seconds, check.on_card
                )
            check.add(f"{batch}, {name}: where the time goes", spent.shares)
    del model
    forget_peak(device)
    library = bloom_of(scale.training, LibraryBloom, torch.bfloat16, device).train()
    for batch in scale.batches:
        tensors = collate_padded(random_rows([batch.length] * batch.examples, scale.training.vocabulary))
        seconds = _measure(check, f"{batch}, the library", library, tensors)
        if seconds is not None and batch in fastest:
            what = f"{batch}: ours beside the library"
            ratio = seconds / fastest[batch]
            check.add(what, ratio, "times as fast", at_least=NOT_SLOWER, of_card=True)


def _step(model: LibraryBloom, batch: Mapping[str, Any]) -> None:
    model.zero_grad()
    model(**batch).loss.backward()


def _measure(check: Check, what: str, model: LibraryBloom, batch: Mapping[str, Any]) -> float | None:
    """Add the speed and the peak memory of a step; its seconds, or None where the memory does not suffice."""
    model.zero_grad()
    forget_peak(check.device)
    batch = on_device(batch, check.device)
    try:
        seconds = median_seconds(partial(_step, model, batch), check.device, check.scale.steps)
    except torch.OutOfMemoryError:
        check.add(what, "out of memory", note="the card is too small for this batch")
        return None
    tokens = batch["input_ids"].numel()
    note = f"{1000 * seconds:.3g} ms a step{peak_text(check.device)}"
    check.add(what, tokens / seconds, "tokens/s", note=note)
    return seconds
