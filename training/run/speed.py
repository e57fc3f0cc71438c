"""How fast a run is, and how fast the machine's matrix products would allow it to be."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from training.consts import NOT_LEARNT

# Products of this width reach what a machine can do; where that takes too long, smaller ones are measured.
LARGEST_PRODUCT = 8192
SMALLEST_PRODUCT = 128


class Tokens(NamedTuple):
    """What is in some batches."""

    total: int = 0  # without padding
    learnt: int = 0
    padding: int = 0
    pairs: int = 0  # of a token and one that it looks at: itself, and those before it in its document

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(one + another for one, another in zip(self, other, strict=True)))


def tokens_of(batch: Mapping[str, torch.Tensor]) -> Tokens:
    """Of a batch that a collator of `training.data.collate` made."""
    lengths = batch["document_lengths"] if "document_lengths" in batch else batch["attention_mask"].sum(dim=1)
    total = int(lengths.sum())
    return Tokens(
        total=total,
        learnt=int((batch["labels"] != NOT_LEARNT).sum()),
        padding=batch["input_ids"].numel() - total,
        pairs=int((lengths * (lengths + 1) // 2).sum()),
    )


class MatrixProducts(NamedTuple):
    """What the matrix products of a model depend on."""

    weights: int  # of the linear layers, without the head
    head: int  # vocabulary * hidden
    attention: int  # layers * hidden
    frozen: int = 0  # of the weights, those that are not trained
    frozen_head: int = 0

    def flops(self, tokens: Tokens) -> int:
        """Of one forward and backward pass over these tokens; what is computed twice is counted once.

        6 for each weight and token (https://arxiv.org/abs/2001.08361, section 2.1), 4 where the weight is
        frozen, which needs no gradient; the head's weights for learnt tokens only. In attention 12 * hidden
        for each layer and pair: a product for the score and one for the value, with two FLOPs for each
        component, three times (https://arxiv.org/abs/2204.02311, appendix B, which does not leave out the
        pairs that causal attention never looks at).
        """
        every = 6 * (self.weights * tokens.total + self.head * tokens.learnt)
        not_needed = 2 * (self.frozen * tokens.total + self.frozen_head * tokens.learnt)
        return every - not_needed + 12 * self.attention * tokens.pairs

    def flops_of_checkpointing(self, tokens: Tokens) -> int:
        """Of the forward pass through the blocks that activation checkpointing makes once more, at most.

        torch leaves out what comes after the last tensor that is kept: a block's last product.
        """
        return 2 * self.weights * tokens.total + 4 * self.attention * tokens.pairs


def matrix_products(model: PreTrainedModel) -> MatrixProducts:
    head = model.get_output_embeddings()
    head = getattr(head, "original_module", head)  # an adapter wraps it
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    config = model.config.get_text_config()
    return MatrixProducts(
        weights=sum(_size(module) for module in linear),
        head=_size(head),
        attention=config.num_hidden_layers * config.hidden_size,
        frozen=sum(_size(module) for module in linear if not module.weight.requires_grad),
        frozen_head=0 if head.weight.requires_grad else _size(head),
    )


def _size(layer: nn.Linear) -> int:
    """Of its matrix, whatever form that is kept in."""
    return layer.in_features * layer.out_features


def numel(weight: nn.Parameter) -> int:
    """Under ZeRO-3 a rank holds no element of a weight; `ds_numel` is what all hold together. Of weights in
    4 bits, two are in each element that torch sees.
    """
    return _elements(weight) * (2 if getattr(weight, "bnb_quantized", False) else 1)


def stored_bytes(weight: nn.Parameter) -> int:
    return _elements(weight) * weight.element_size()


def _elements(weight: nn.Parameter) -> int:
    return getattr(weight, "ds_numel", weight.numel())


def product_flops_per_second(dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """The most that this process reaches in a product of two square matrices, measured for about `seconds`.

    Of the three products of a linear layer, forward and backward: some processors lay out bfloat16 for one of
    them ten times as slowly as for another.
    """
    size, best = SMALLEST_PRODUCT, 0.0
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        slowest = 0.0
        for left, right in ((a, b), (a, b.T), (a.T, b)):
            _seconds_of(left, right, 1)  # the first one prepares things
            spent = _seconds_of(left, right, 1)
            slowest = max(slowest, spent)
            if 2 * size**3 / spent > best:
                best, fastest = 2 * size**3 / spent, (left, right, spent)
        if size == LARGEST_PRODUCT or 48 * slowest > seconds:  # the next three have 8 times the FLOPs
            break
        size *= 2
    left, right, spent = fastest
    times = max(1, round(seconds / spent))
    return 2 * len(left) ** 3 * times / _seconds_of(left, right, times)


def _seconds_of(left: torch.Tensor, right: torch.Tensor, times: int) -> float:
    _wait_for(left.device)
    start = time.perf_counter()
    for _ in range(times):
        left @ right
    _wait_for(left.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Throughput:
    """Counts tokens and the time that they take, of this rank, between two calls of `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.tokens = Tokens()
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what is no training step: evaluations and checkpoints."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start
