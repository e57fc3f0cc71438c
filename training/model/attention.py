"""Causal attention inside the documents of a packed batch, for any decoder.

The documents lie one after the other, without padding, and no document sees another:

    tokens      q1 a1 a1 | q2 q2 a2 a2 | q3        lengths   3 4 1        starts   0 3 7 8

Two engines compute the same. On a card one kernel takes all documents. Elsewhere, in float32 and with
attention dropout, there is a call of torch's fused attention for each document.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

# cuDNN's attention makes an execution plan for each new shape, which takes up to a second, and almost every
# micro-batch has new shapes. Torch prefers it on some cards unless it is switched off, once for the process.
torch.backends.cuda.enable_cudnn_sdp(False)

# What the card's kernel is made for: cards from this compute capability on, and heads up to this width.
KERNEL_CAPABILITY = (8, 0)
KERNEL_WIDTH = 256

# torch 2.13 wants to be told that several heads share a key; 2.11 has no such argument, and needs none.
IS_TOLD_OF_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters

# The attention kernels need an attention head's width to be a multiple of this.
WIDTH_MULTIPLE = 8


_one_by_one = ContextVar("_one_by_one", default=False)


class Documents(NamedTuple):
    """The documents of a packed batch."""

    lengths: list[int]  # tokens of each
    starts: torch.Tensor  # (documents + 1,), int32: where each one starts, and where the last one ends


def documents_of(lengths: torch.Tensor | list[int], device: torch.device) -> Documents:
    """The documents of these lengths, in tokens; their starts are put on `device`.

    Lengths in a tensor on a card have to be waited for; a list of them has not.
    """
    counts = lengths.tolist() if isinstance(lengths, torch.Tensor) else lengths
    starts = F.pad(torch.tensor(counts, dtype=torch.int32), (1, 0)).cumsum(0, dtype=torch.int32)
    return Documents(counts, starts.to(device, non_blocking=True))


def positions_in(documents: Documents) -> torch.Tensor:
    """The place of each token in its document, from 0: (tokens,), int64."""
    starts, total = documents.starts, sum(documents.lengths)
    # With the size of its result given, `repeat_interleave` does not wait for a card.
    first = starts[:-1].repeat_interleave(starts.diff(), output_size=total)
    return torch.arange(total, device=starts.device) - first


def attend_in_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    *,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Each token's attention to the tokens of its document up to itself.

    query (tokens, heads, width); key and value (tokens, groups, width), where each group serves
    heads / groups heads that lie side by side. Returns (tokens, heads, width). The width is a multiple of
    WIDTH_MULTIPLE. scale: multiplies the product of a query and a key.
    """
    is_grouped = key.shape[1] != query.shape[1]
    total = sum(documents.lengths)
    assert total == len(query) == len(key) == len(value), f"{len(query)} tokens, documents of {total}"
    if has_one_kernel(query, dropout):
        longest = max(documents.lengths)
        grouped: dict[str, Any] = {"enable_gqa": True} if is_grouped and IS_TOLD_OF_GROUPS else {}
        attended = varlen_attn(
            query,
            key,
            value,
            documents.starts,
            documents.starts,
            longest,
            longest,
            scale=scale,
            window_size=(-1, 0),  # everything before, nothing after: causal
            **grouped,
        )
        assert isinstance(attended, torch.Tensor)  # without what else it can return
        return attended
    attended = [
        F.scaled_dot_product_attention(
            *(part.transpose(0, 1)[None] for part in document),
            is_causal=True,
            scale=scale,
            dropout_p=dropout,
            enable_gqa=is_grouped,
        )
        for document in zip(*(x.split(documents.lengths) for x in (query, key, value)), strict=True)
    ]
    return torch.cat([context[0].transpose(0, 1) for context in attended])


@contextmanager
def attend_one_by_one() -> Iterator[None]:
    """A block in which each document gets a call of its own on a card, too, to compare the two engines."""
    token = _one_by_one.set(True)
    try:
        yield
    finally:
        _one_by_one.reset(token)


def has_one_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether one kernel can take all documents of a batch with such queries, instead of one call for each.

    It has no dropout, no float32 and no heads of other widths, and older cards do not have it.
    """
    return (
        not _one_by_one.get()
        and query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % WIDTH_MULTIPLE == 0
        and query.shape[-1] <= KERNEL_WIDTH
        and dropout == 0
        and torch.cuda.get_device_capability(query.device) >= KERNEL_CAPABILITY
    )
