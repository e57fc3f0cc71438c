"""Part 1: our Bloom beside the library's, which is taken in float32 for what is right.

The weights are bf16 numbers in every model, so that the models in bf16 have the errors of their arithmetic
and not those of rounded weights.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import BloomForCausalLM as LibraryBloom
from transformers import GenerationConfig, PreTrainedModel

from training.card.page import Check
from training.card.scale import Sizes, bloom_of, on_device, random_rows
from training.card.timing import forget_peak
from training.consts import NOT_SUPERVISED
from training.data.collate import collate, collate_padded
from training.model.bloom import BloomForCausalLM

# Relative errors of float32: its rounding, 6e-8, in sums of some thousand products.
IN_FLOAT32 = 1e-4

# How much larger than the library's an error in bf16 may be: equally good arithmetic differs by chance, most
# in the gradient of a single weight and in the logits of a few tokens.
BY_CHANCE, ONE_BY_CHANCE, FEW_TOKENS = 1.1, 1.3, 32

# A loss in bf16 is not asked to be nearer to the right one than a step of bf16 at the loss.
STEP_OF_BF16 = 2**-8

GREEDY_TOKENS = 32

Rows = list[dict[str, list[int]]]


class Results(NamedTuple):
    """What a model makes of rows. The loss is the mean over all supervised tokens, the gradients its own."""

    logits: list[torch.Tensor]  # of each row, (tokens, vocabulary)
    loss: float
    gradients: dict[str, torch.Tensor]


def compare_with_library(check: Check) -> None:
    scale = check.scale
    _compare(check, scale.exact, scale.rows)
    _compare_answers(check, scale.exact, scale.prompt)
    forget_peak(check.device)
    _compare(check, scale.long, (scale.long_row,))


def of_library(model: LibraryBloom, rows: Rows) -> Results:
    """By the library's model, with nothing of ours.

    In float32 it takes one row at a time, without padding. In bf16 it takes all rows in one padded batch, as
    one would train with it: torch adds up a layer norm's gradients over the batch, on a CPU in bf16.
    """
    supervised = sum(label != NOT_SUPERVISED for row in rows for label in row["labels"][1:])
    batches = [[row] for row in rows] if model.dtype == torch.float32 else [rows]
    logits, loss = [], 0.0
    for batch in batches:
        tensors = on_device(collate_padded(batch), model.device)
        labels = tensors.pop("labels")
        of_batch = model(**tensors, use_cache=False).logits
        of_loss = F.cross_entropy(
            of_batch[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"
        )
        if labels.shape[1] > 1:  # a token alone has nothing to predict
            (of_loss / supervised).backward()
            loss += of_loss.item() / supervised
        logits += [of_row[: len(row["labels"])].detach() for of_row, row in zip(of_batch, batch, strict=True)]
    return Results(logits, loss, gradients_of(model))


def of_ours(model: BloomForCausalLM, rows: Rows) -> Results:
    """By our model, all rows in one packed batch."""
    batch = on_device(collate(rows), model.device)
    loss = model(**batch).loss
    loss.backward()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], document_lengths=batch["document_lengths"]).logits[0]
    return Results(list(logits.split([len(row["labels"]) for row in rows])), loss.item(), gradients_of(model))


def gradients_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    """The norm of the difference, divided by the norm of what is right."""
    right = right.float()
    return (torch.linalg.vector_norm(found.float() - right) / torch.linalg.vector_norm(right)).item()


def _compare(check: Check, sizes: Sizes, lengths: tuple[int, ...]) -> None:
    rows = random_rows(lengths, sizes.vocabulary)
    check.add("model", str(sizes), note=f"rows of {', '.join(f'{length:,}' for length in lengths)} tokens")

    def of(model_class: type[LibraryBloom], dtype: torch.dtype) -> Results:
        model = bloom_of(sizes, model_class, dtype, check.device).train()
        return of_ours(model, rows) if isinstance(model, BloomForCausalLM) else of_library(model, rows)

    right = of(LibraryBloom, torch.float32)
    _add_errors(check, "float32", lengths, right, of(BloomForCausalLM, torch.float32))
    library = of(LibraryBloom, torch.bfloat16)
    _add_errors(check, "bf16", lengths, right, of(BloomForCausalLM, torch.bfloat16), library)


def _add_errors(
    check: Check,
    dtype: str,
    lengths: tuple[int, ...],
    right: Results,
    ours: Results,
    library: Results | None = None,
) -> None:
    """Rows for our errors. Their bound is float32's, or what the library errs in the same type."""

    def add(
        what: str, error: float, of_library: float | None, chance: float = BY_CHANCE, least: float = 0.0
    ) -> None:
        if of_library is None:
            check.add(f"{what}, {dtype}", error, "relative error", at_most=IN_FLOAT32)
            return
        bound = max(chance * of_library, least)
        check.add(
            f"{what}, {dtype}", error, "relative error", at_most=bound, note=f"the library: {of_library:.2g}"
        )

    for index, length in enumerate(lengths):
        what = f"logits of {length:,} token(s)"
        error = relative_error(ours.logits[index], right.logits[index])
        of_library = relative_error(library.logits[index], right.logits[index]) if library else None
        add(what, error, of_library, chance=ONE_BY_CHANCE if length < FEW_TOKENS else BY_CHANCE)
    error = abs(ours.loss / right.loss - 1)
    add("loss", error, abs(library.loss / right.loss - 1) if library else None, least=STEP_OF_BF16)
    add(
        "all gradients as one vector",
        _error_of_all(ours, right),
        _error_of_all(library, right) if library else None,
    )
    errors = _gradient_errors(ours, right)
    of_each = _gradient_errors(library, right) if library else {}
    worst = max(errors, key=lambda name: errors[name] / of_each.get(name, 1.0))
    what = f"worst gradient of {len(errors)}, of {worst.removeprefix('transformer.')}"
    add(what, errors[worst], of_each.get(worst), chance=ONE_BY_CHANCE)


def _gradient_errors(found: Results, right: Results) -> dict[str, float]:
    assert found.gradients.keys() == right.gradients.keys()
    return {name: relative_error(found.gradients[name], right.gradients[name]) for name in right.gradients}


def _error_of_all(found: Results, right: Results) -> float:
    """The relative error of all gradients together, as one vector."""
    norms = {name: torch.linalg.vector_norm(gradient).item() for name, gradient in right.gradients.items()}
    errors = _gradient_errors(found, right)
    return math.hypot(*(errors[name] * norms[name] for name in norms)) / math.hypot(*norms.values())


def _compare_answers(check: Check, sizes: Sizes, prompt: int) -> None:
    """The greedy tokens after a prompt, by generation with a KV cache."""
    input_ids = torch.tensor([random_rows([prompt], sizes.vocabulary)[0]["input_ids"]], device=check.device)
    config = GenerationConfig(
        max_new_tokens=GREEDY_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0, bos_token_id=None
    )
    made = {}
    for name, model_class, dtype in (
        ("library", LibraryBloom, torch.float32),
        ("float32", BloomForCausalLM, torch.float32),
        ("library in bf16", LibraryBloom, torch.bfloat16),
        ("bf16", BloomForCausalLM, torch.bfloat16),
    ):
        model = bloom_of(sizes, model_class, dtype, check.device).eval()
        mask = torch.ones_like(input_ids)
        made[name] = model.generate(input_ids, attention_mask=mask, generation_config=config)[0, prompt:]

    def equal(name: str) -> int:
        """How many tokens from the first on are the library's in float32."""
        differs = (made[name] != made["library"]).nonzero()
        return int(differs[0]) if len(differs) else GREEDY_TOKENS

    what = f"greedy tokens after {prompt} tokens, equal from the first on"
    check.add(f"{what}, float32", equal("float32"), f"of {GREEDY_TOKENS}", at_least=GREEDY_TOKENS)
    check.add(
        f"{what}, bf16", equal("bf16"), f"of {GREEDY_TOKENS}", note=f"the library: {equal('library in bf16')}"
    )
