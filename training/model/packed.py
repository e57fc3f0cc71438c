"""Packed batches for any decoder whose attention function transformers lets one choose.

A model of `packed_class` is the library's own with one more way to be called: with `document_lengths`.

    input_ids          (1, tokens)     q1 a1 a1 | q2 q2 a2 | ...     documents one after the other, no padding
    labels             (1, tokens)      . a1 a1 |  .  . a2 | ...     . = -100
    document_lengths   (documents,)       3     |    3     | ...     a list or a tensor

Positions restart in each document, and no document sees another; logits are computed for supervised tokens
only. Nothing here is about an architecture: `training.model.packing_trial` finds out by trying whether the
models of a configuration give the same losses and gradients in this way.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PretrainedConfig, PreTrainedModel

from training.model.attention import Documents, attend_in_documents, documents_of, positions_in
from training.model.loss import Head, packed_output
from training.model.trainable_rows import embed, gather_for_peft

# The name of `attend_to_documents` among transformers' attention functions.
PACKED_ATTENTION = "packed_documents"

# What layers tell an attention function, and what changes nothing for this one.
WITHOUT_EFFECT = {"position_ids", "use_cache"}


class CannotPack(ValueError):
    """Why the attention of a model cannot be computed document by document."""


def attend_to_documents(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document, as transformers' layers call it.

    query (1, heads, tokens, width); key and value (1, heads or groups of heads, tokens, width). Returns
    (1, tokens, heads, width). Raises CannotPack for arguments that have no meaning here.
    """
    unknown = [name for name, given in others.items() if given is not None and name not in WITHOUT_EFFECT]
    if unknown or attention_mask is not None:
        raise CannotPack(f"its attention takes {', '.join(unknown) or 'a mask of its own'}")
    if documents is None:
        raise CannotPack("its layers do not hand on arguments that they do not know")
    if sliding_window is not None and sliding_window < max(documents.lengths):
        raise CannotPack(
            f"its attention sees {sliding_window} tokens, and a row has {max(documents.lengths)}"
        )
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_in_documents(query, key, value, documents, scale=scale, dropout=dropout)[None], None


AttentionInterface.register(PACKED_ATTENTION, attend_to_documents)


class PackedModel(PreTrainedModel):
    """The part of a class of `packed_class` that is ours; the rest is the library's class of that name."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        head = self.get_output_embeddings()
        assert isinstance(head, nn.Linear), "the trial has seen that it is one"
        has_bias = head.bias is not None
        super().set_output_embeddings(Head(head.in_features, head.out_features, bias=has_bias))
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """The library makes a plain matrix when the vocabulary grows; here it becomes a head again."""
        assert isinstance(new_embeddings, nn.Linear)
        super().set_output_embeddings(Head.of(new_embeddings))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        document_lengths: torch.Tensor | list[int] | None = None,
        supervised_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """With `document_lengths`, the loss or the logits of a packed batch; without, what the library gives.

        The loss is summed over the supervised tokens and divided by `num_items_in_batch`, or by their number;
        it is 0 where there are none.
        """
        if document_lengths is None:
            if num_items_in_batch is not None:
                kwargs["num_items_in_batch"] = num_items_in_batch
            return super().forward(input_ids=input_ids, labels=labels, **kwargs)
        assert input_ids is not None
        documents = documents_of(document_lengths, input_ids.device)
        hidden_states = self.hidden_states(input_ids, documents)
        return packed_output(
            cast(nn.Module, self.get_output_embeddings()),
            hidden_states,
            labels,
            documents,
            supervised_positions,
            num_items_in_batch,
        )

    def hidden_states(self, input_ids: torch.Tensor, documents: Documents) -> torch.Tensor:
        """What the head takes for the tokens of a packed batch, (1, tokens, hidden)."""
        return self.base_model(
            inputs_embeds=embed(cast(nn.Embedding, self.get_input_embeddings()), input_ids),
            position_ids=positions_in(documents)[None],
            use_cache=False,
            documents=documents,
        ).last_hidden_state


def library_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The library's class of causal language models of this configuration. Raises KeyError for none."""
    return cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


@functools.cache
def packed_class(library: type[PreTrainedModel]) -> type[PackedModel]:
    """A library's class, whose name it keeps because config.json records that, with our forward pass."""
    return cast(type[PackedModel], type(library.__name__, (PackedModel, library), {}))


@contextmanager
def with_library_attention(model: nn.Module) -> Iterator[None]:
    """A block in which a model, with an adapter or without, generates as the library's own does."""
    packed = [module for module in model.modules() if isinstance(module, PackedModel)]
    for each in packed:
        each.set_attn_implementation(each.get_correct_attn_implementation(None))
        gather_for_peft(each)
    try:
        yield
    finally:
        for each in packed:
            each.set_attn_implementation(PACKED_ATTENTION)
