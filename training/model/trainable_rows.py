"""The embedding rows that an adapter trains: those of its new tokens, in a frozen embedding and head.

peft would make a copy of the whole matrix in each forward pass, with a gradient as large. Here the matrix
stays as it is, and the rows are put in their place where they are used.
"""

from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

Layer = TypeVar("Layer", bound=nn.Module)

# The ids of the trainable rows of each layer that has some, by the adapter's name and the device. They are
# made once: whatever is copied to a card waits for the work of the card.
_row_ids: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.device], torch.Tensor]] = WeakKeyDictionary()


class TrainableRows(NamedTuple):
    """The trainable embedding rows of a frozen embedding or head: those of an adapter's new tokens."""

    ids: torch.Tensor  # (n,)
    values: torch.Tensor  # (n, hidden)


def split_off_trainable_rows(layer: Layer) -> tuple[Layer, TrainableRows | None]:
    """(the embedding or head without an adapter, the rows of it that the adapter trains or None)."""
    adapter = getattr(layer, "token_adapter", None)
    if adapter is None:
        return layer, None
    if adapter.merged or adapter.disable_adapters:
        return adapter.base_layer, None
    (name,) = adapter.active_adapters
    values = adapter.trainable_tokens_delta[name]
    of_layer = _row_ids.setdefault(adapter, {})
    if (name, values.device) not in of_layer:
        of_layer[name, values.device] = torch.tensor(adapter.token_indices[name], device=values.device)
    return adapter.base_layer, TrainableRows(of_layer[name, values.device], values)


def embed(embedding: nn.Embedding, input_ids: torch.Tensor) -> torch.Tensor:
    """The embedding rows of tokens, with those that an adapter trains in place of the embedding's own."""
    embedding, trainable_rows = split_off_trainable_rows(embedding)
    embedded = embedding(input_ids)
    if trainable_rows is None:
        return embedded
    place = torch.full((embedding.num_embeddings,), -1, device=input_ids.device)
    place[trainable_rows.ids] = torch.arange(len(trainable_rows.ids), device=input_ids.device)
    place = place[input_ids]
    own = F.embedding(place.clamp(min=0), trainable_rows.values).to(embedded.dtype)
    scale = getattr(embedding, "embed_scale", None)  # by which some of the library's embeddings multiply rows
    if scale is not None:
        own = own * torch.as_tensor(scale, dtype=own.dtype, device=own.device)
    return torch.where(place[..., None] >= 0, own, embedded)


def gather_for_peft(model: nn.Module) -> None:
    """Let ZeRO-3 gather a divided matrix where peft's own layer puts an adapter's rows into it."""
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed

    for layer in model.modules():
        adapter = getattr(layer, "token_adapter", None)
        if adapter is not None:
            deepspeed.zero.register_external_parameter(adapter, adapter.base_layer.weight)
