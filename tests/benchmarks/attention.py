"""What ALiBi costs in attention: as scores in full, as a dense bias, and in the key columns.

`python -m tests.benchmarks.report --only attention` measures it: one document, forward and backward.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from transformers import BloomConfig

from training.card.timing import median_seconds, the_device
from training.model.attention import attend_in_documents, documents_of
from training.model.bloom import alibi_columns, alibi_slopes

LENGTHS = (256, 512, 1024, 2048, 4096)
HEADS, WIDTH = 8, 64
TIMES = 3

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def attention_seconds(dtype: torch.dtype = torch.float32) -> list[dict[str, float]]:
    """For each length: the seconds of each way, and the bytes of its scores, bias or columns.

    Raises AssertionError where two ways differ in float32.
    """
    found = []
    for length in LENGTHS:
        torch.manual_seed(0)
        parts = [torch.randn(length, HEADS, WIDTH, dtype=dtype, device=the_device()) for _ in range(3)]
        ways, sizes = ways_of_attention(length, dtype)
        line: dict[str, float] = {"length": length}
        expected = ways["columns"](*parts)
        for name, attend in ways.items():
            difference = (attend(*parts).float() - expected.float()).abs().max().item()
            assert difference < 1e-4 or dtype != torch.float32, f"{name} differs by {difference}"
            line[name] = median_seconds(partial(forward_and_backward, attend, parts), the_device(), TIMES)
            line[f"{name}, bytes"] = sizes[name]
        found.append(line)
    return found


def forward_and_backward(attend: Attention, parts: list[torch.Tensor]) -> None:
    query, key, value = (part.detach().requires_grad_() for part in parts)
    attend(query, key, value).sum().backward()


def ways_of_attention(length: int, dtype: torch.dtype) -> tuple[dict[str, Attention], dict[str, int]]:
    """The ways, from query, key and value of (tokens, heads, width) to the same shape, and their bytes."""
    device, scale = the_device(), 1 / math.sqrt(WIDTH)
    columns = alibi_columns(
        torch.arange(length, device=device), BloomConfig(n_head=HEADS, hidden_size=HEADS * WIDTH), dtype
    )
    documents = documents_of([length], device)
    alibi = (alibi_slopes(HEADS).to(device)[:, None, None] * torch.arange(length, device=device)).to(dtype)
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    dense = alibi.expand(-1, length, -1).masked_fill(future, -math.inf)[None]

    def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As the library has it: all scores in memory, and their softmax in float32."""
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        scores = alibi.baddbmm(query, key.transpose(1, 2), alpha=scale).masked_fill(future, -math.inf)
        return (scores.softmax(dim=-1, dtype=torch.float32).to(dtype) @ value).transpose(0, 1)

    def biased(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=dense, scale=scale)
        return attended[0].transpose(0, 1)

    def in_columns(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key = (
            torch.cat([part, more.expand(*part.shape[:2], -1)], dim=-1)
            for part, more in zip((query, key), columns, strict=True)
        )
        value = F.pad(value, (0, query.shape[-1] - WIDTH))
        return attend_in_documents(query, key, value, documents, scale=scale)[..., :WIDTH]

    ways: dict[str, Attention] = {"scores": eager, "bias": biased, "columns": in_columns}
    wider = columns.query.shape[-1]
    square = HEADS * length * length * dtype.itemsize
    # The library keeps the scores in float32 and in the type of the values for the backward pass.
    sizes = {"scores": square + HEADS * length * length * 4, "bias": square}
    sizes["columns"] = 3 * length * HEADS * wider * dtype.itemsize
    return ways, sizes
