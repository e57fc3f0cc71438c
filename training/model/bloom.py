"""transformers' Bloom with fused attention: for packed batches, and for generation.

Parameters, configuration and saved files are the library's own. With `document_lengths` the model takes

    input_ids          (1, tokens)     q1 a1 a1 | q2 q2 a2 | ...     documents one after the other, no padding
    labels             (1, tokens)      . a1 a1 |  .  . a2 | ...     . = -100
    document_lengths   (documents,)       3     |    3     | ...     a list or a tensor

and no document sees another; logits are computed for supervised tokens only. With `past_key_values`, as
`generate` calls it, new tokens see those in the cache. Called with neither, it is the library's model.

A step on a card does not wait for the card where the lengths are a list, and where `supervised_positions`
says where the supervised tokens are.
"""

import functools
import math
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BloomConfig, Cache, DynamicCache, PretrainedConfig
from transformers import BloomForCausalLM as LibraryBloom
from transformers.modeling_outputs import CausalLMOutput, CausalLMOutputWithPast
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomBlock, dropout_add

from training.model.attention import (
    WIDTH_MULTIPLE,
    Documents,
    attend_in_documents,
    documents_of,
    positions_in,
)
from training.model.loss import Head, packed_output
from training.model.trainable_rows import embed, split_off_trainable_rows

# bfloat16 holds 8 bits: a position up to 2**16 is exact as the sum of a multiple of 2**8 and the rest.
POSITION_STEP = 2**8
LONGEST_DOCUMENT = 2**16


class Columns(NamedTuple):
    """What ALiBi adds to the queries and keys."""

    query: torch.Tensor  # (heads, columns)
    key: torch.Tensor  # (tokens, 1, columns)


def alibi_columns(positions: torch.Tensor, config: BloomConfig, dtype: torch.dtype) -> Columns:
    """ALiBi (https://arxiv.org/abs/2108.12409) adds slope * position to the product of a query and a key.

    Here that is a part of the product itself: additional columns of the query hold the slope, those of the
    key the position, each as a sum of parts that `dtype` holds exactly. The kernel adds the products up in
    float32, so that the bias is exact to float32, and no (tokens, tokens) tensor is needed.

    positions: (tokens,), the place of each token in its document, from 0.
    """
    query, parts = _slope_columns(config.n_head, config.hidden_size // config.n_head, dtype, positions.device)
    if dtype != torch.float32:
        positions = torch.stack([positions // POSITION_STEP * POSITION_STEP, positions % POSITION_STEP])
    key = positions.to(dtype).reshape(-1, positions.shape[-1]).T.repeat(1, parts)
    return Columns(query, F.pad(key, (0, query.shape[-1] - key.shape[-1]))[:, None])


def alibi_slopes(heads: int) -> torch.Tensor:
    """The slope of each head, (heads,), in float32 (https://arxiv.org/abs/2108.12409, section 3).

    For 2**n heads they are the powers 1, 2, ... of 2**(-8 / 2**n). For a number in between, the rest are
    every other one of the slopes for 2**(n + 1) heads. Bases and powers are rounded as the library's are.
    """
    power_of_2 = 2 ** math.floor(math.log2(heads))
    base, base_of_rest = (torch.tensor(2 ** (-8 / count)) for count in (power_of_2, 2 * power_of_2))
    powers = torch.arange(1, power_of_2 + 1)
    powers_of_rest = torch.arange(1, 2 * (heads - power_of_2) + 1, 2)
    return torch.cat([base**powers, base_of_rest**powers_of_rest])


@functools.lru_cache(maxsize=8)
def _slope_columns(
    heads: int, head_width: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, int]:
    """(the queries' columns, the number of parts that add up to a slope)."""
    # The kernel divides every product by the root of the head's width.
    rest = alibi_slopes(heads).to(device).double() * math.sqrt(head_width)
    if dtype == torch.float32:
        columns, parts = [rest], 1
    else:
        columns, parts = [], 3
        for _ in range(parts):
            columns += 2 * [rest.to(dtype)]  # for either part of a position
            rest = rest - columns[-1].double()
    empty = -(head_width + len(columns)) % WIDTH_MULTIPLE
    query = torch.stack([column.to(dtype) for column in columns], dim=-1)
    return F.pad(query, (0, empty)), parts


class PackedDocuments(NamedTuple):
    """What a token of a packed batch attends to: the tokens of its document up to itself."""

    documents: Documents
    columns: Columns

    def attend(self, query, key, value, layer: int, *, scale: float, dropout: float) -> torch.Tensor:
        """query, key, value, and what is returned: (1, tokens, heads, width)."""
        return attend_in_documents(query[0], key[0], value[0], self.documents, scale=scale, dropout=dropout)[
            None
        ]


def packed_documents(
    lengths: torch.Tensor | list[int], config: BloomConfig, dtype: torch.dtype, device: torch.device
) -> PackedDocuments:
    """The documents of these lengths; positions restart in each.

    Raises ValueError for one that is longer than LONGEST_DOCUMENT.
    """
    documents = documents_of(lengths, device)
    _check_length(max(documents.lengths))
    return PackedDocuments(documents, alibi_columns(positions_in(documents), config, dtype))


class Past(NamedTuple):
    """What a new token attends to: the tokens in the cache, except padding, and the new ones up to itself."""

    cache: DynamicCache
    mask: torch.Tensor | None  # booleans, (batch, 1, new tokens, all tokens); None: all before
    columns: Columns

    def attend(self, query, key, value, layer: int, *, scale: float, dropout: float) -> torch.Tensor:
        """query, key, value, and what is returned: (batch, new tokens, heads, width)."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        key, value = self.cache.update(key, value, layer)
        is_causal = self.mask is None and query.shape[2] > 1
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, is_causal=is_causal, scale=scale, dropout_p=dropout
        ).transpose(1, 2)


def past_of(
    cache: DynamicCache,
    tokens: int,
    attention_mask: torch.Tensor | None,
    config: BloomConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> Past:
    """What `tokens` new tokens after those in `cache` attend to.

    attention_mask: (batch, all tokens), 0 where there is padding. Padding on the left may count in the
    positions, because ALiBi depends on their differences only. Raises ValueError for more tokens than
    LONGEST_DOCUMENT.
    """
    before = cache.get_seq_length()
    _check_length(before + tokens)
    seen = torch.arange(before + tokens, device=device)
    new = seen[before:, None]
    mask = seen <= new if before and tokens > 1 else None
    if attention_mask is not None and not attention_mask.all():
        is_token = attention_mask.to(device)[:, None, None, :].bool()
        # A padding token sees itself, because the mean of nothing is NaN.
        mask = ((seen <= new) & is_token) | (seen == new)
    return Past(cache, mask, alibi_columns(new[:, 0], config, dtype))


def _check_length(tokens: int) -> None:
    if tokens > LONGEST_DOCUMENT:
        raise ValueError(f"a document of {tokens} tokens; at most {LONGEST_DOCUMENT} are possible")


class FusedAttention(BloomAttention):
    """The library's attention, by a fused kernel where `alibi` is `PackedDocuments` or `Past`."""

    def forward(self, hidden_states, residual, alibi, attention_mask, **kwargs):
        if isinstance(alibi, torch.Tensor):
            return super().forward(hidden_states, residual, alibi, attention_mask, **kwargs)
        # (batch, tokens, heads * 3 * width): the query, key and value of each head lie side by side
        fused = self.query_key_value(hidden_states)
        fused = fused.view(*fused.shape[:2], self.num_heads, 3, self.head_dim)
        query, key, value = fused.unbind(dim=3)
        query, key = (
            torch.cat([part, columns.expand(*part.shape[:3], -1)], dim=-1)
            for part, columns in zip((query, key), alibi.columns, strict=True)
        )
        value = F.pad(value, (0, query.shape[-1] - self.head_dim))
        dropout = self.attention_dropout.p if self.training else 0.0
        context = alibi.attend(query, key, value, self.layer_idx, scale=self.inv_norm_factor, dropout=dropout)
        context = context[..., : self.head_dim].reshape(hidden_states.shape)
        return dropout_add(self.dense(context), residual, self.hidden_dropout, self.training), None


def is_bloom(config: PretrainedConfig) -> TypeGuard[BloomConfig]:
    """Whether models of this configuration are Blooms, for which there is `BloomForCausalLM`."""
    return config.model_type == "bloom"


class BloomForCausalLM(LibraryBloom):
    """The library's model with fused attention, under the library's name, because config.json records it."""

    def __init__(self, config: BloomConfig) -> None:
        super().__init__(config)
        for index, block in enumerate(self.transformer.h):
            assert isinstance(block, BloomBlock)
            block.self_attention = FusedAttention(config, index)
            # The library's formula, in one kernel.
            block.mlp.register_module("gelu_impl", nn.GELU(approximate="tanh"))
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """The library makes a plain matrix when the vocabulary grows; here it becomes a head again."""
        self.lm_head = Head.of(new_embeddings)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        document_lengths: torch.Tensor | list[int] | None = None,
        supervised_positions: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ):
        """The loss where there are labels, the logits where there are none; see the module's docstring.

        The loss is summed over the supervised tokens and divided by `num_items_in_batch`, or by their number;
        it is 0 where there are none. Logits have the shape (batch, tokens, vocabulary), or are those of the
        last `logits_to_keep` tokens only.

        supervised_positions: (supervised tokens,), where they are in a packed batch; none is the first of its
        document, which is predicted from nothing. Where None, they are looked for in the labels.
        """
        if document_lengths is not None:
            assert input_ids is not None
            return self._forward_packed(
                input_ids, labels, document_lengths, supervised_positions, num_items_in_batch
            )
        if isinstance(past_key_values, DynamicCache) and input_ids is not None and labels is None:
            return self._forward_cached(past_key_values, input_ids, attention_mask, logits_to_keep)
        if num_items_in_batch is not None:
            kwargs["num_items_in_batch"] = num_items_in_batch
        return super().forward(
            input_ids=input_ids,
            labels=labels,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _forward_cached(
        self,
        cache: DynamicCache,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        logits_to_keep: int,
    ) -> CausalLMOutputWithPast:
        hidden_states = self._embed(input_ids)
        dtype = self._compute_dtype(hidden_states)
        past = past_of(cache, input_ids.shape[1], attention_mask, self.config, dtype, hidden_states.device)
        hidden_states = self._run_blocks(hidden_states, past)
        head, trainable_rows = split_off_trainable_rows(self.lm_head)
        logits = head(hidden_states[:, -logits_to_keep:], trainable_rows=trainable_rows)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _forward_packed(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None,
        document_lengths: torch.Tensor | list[int],
        supervised_positions: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> CausalLMOutput:
        hidden_states = self._embed(input_ids)
        dtype = self._compute_dtype(hidden_states)
        packed = packed_documents(document_lengths, self.config, dtype, hidden_states.device)
        hidden_states = self._run_blocks(hidden_states, packed)
        return packed_output(
            self.lm_head, hidden_states, labels, packed.documents, supervised_positions, num_items_in_batch
        )

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        # Its setter makes transformers' type of it a tensor or a module.
        word_embeddings = cast(nn.Embedding, self.transformer.word_embeddings)
        return self.transformer.word_embeddings_layernorm(embed(word_embeddings, input_ids))

    def _run_blocks(self, hidden_states: torch.Tensor, alibi: PackedDocuments | Past) -> torch.Tensor:
        for block in self.transformer.h:
            hidden_states, _ = block(hidden_states, alibi=alibi, attention_mask=None)
        return self.transformer.ln_f(hidden_states)

    @staticmethod
    def _compute_dtype(hidden_states: torch.Tensor) -> torch.dtype:
        kind = hidden_states.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
