"""transformers' Bloom with fused attention: for packed batches, and for generation.

Parameters, configuration and saved files are the library's own. With `document_lengths` the model takes

    input_ids          (1, tokens)     q1 a1 a1 | q2 q2 a2 | ...     documents one after the other, no padding
    labels             (1, tokens)      . a1 a1 |  .  . a2 | ...     . = -100
    document_lengths   (documents,)       3     |    3     | ...

and no document sees another; logits are computed for supervised tokens only. With `past_key_values`, as
`generate` calls it, new tokens see those in the cache. Called with neither, it is the library's model.
"""

import functools
import math
from typing import NamedTuple, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BloomConfig, Cache, DynamicCache
from transformers import BloomForCausalLM as LibraryBloom
from transformers.modeling_outputs import CausalLMOutput, CausalLMOutputWithPast
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomBlock, dropout_add

from training.consts import NOT_SUPERVISED
from training.model.loss import Head, TrainableRows

# bfloat16 holds 8 bits: a position up to 2**16 is exact as the sum of a multiple of 2**8 and the rest.
POSITION_STEP = 2**8
LONGEST_DOCUMENT = 2**16

# The attention kernels need an attention head's width to be a multiple of this.
WIDTH_MULTIPLE = 8

Layer = TypeVar("Layer", bound=nn.Module)


class Columns(NamedTuple):
    """What ALiBi adds to the queries and keys."""

    query: torch.Tensor  # (1, heads, 1, columns)
    key: torch.Tensor  # (1, 1, tokens, columns)


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
    return Columns(query, F.pad(key, (0, query.shape[-1] - key.shape[-1]))[None, None])


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
    return F.pad(query, (0, empty))[None, :, None, :], parts


class Documents(NamedTuple):
    """The lengths, in tokens, of the documents of a packed batch, and their ALiBi columns."""

    lengths: list[int]
    columns: Columns

    def attend(self, query, key, value, layer: int, **how) -> torch.Tensor:
        documents = zip(*(x.split(self.lengths, dim=2) for x in (query, key, value)), strict=True)
        return torch.cat(
            [F.scaled_dot_product_attention(*document, is_causal=True, **how) for document in documents],
            dim=2,
        )


def documents_of(lengths: torch.Tensor, config: BloomConfig, dtype: torch.dtype) -> Documents:
    """The documents of these lengths, (documents,); positions restart in each.

    Raises ValueError for one that is longer than LONGEST_DOCUMENT.
    """
    counts = lengths.tolist()  # once: on a card this waits for all work in the queue
    _check_length(max(counts))
    positions = torch.cat([torch.arange(count, device=lengths.device) for count in counts])
    return Documents(counts, alibi_columns(positions, config, dtype))


class Past(NamedTuple):
    """What a new token attends to: the tokens in the cache, except padding, and the new ones up to itself."""

    cache: DynamicCache
    mask: torch.Tensor | None  # booleans, (batch, 1, new tokens, all tokens); None: all before
    columns: Columns

    def attend(self, query, key, value, layer: int, **how) -> torch.Tensor:
        key, value = self.cache.update(key, value, layer)
        is_causal = self.mask is None and query.shape[2] > 1
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, is_causal=is_causal, **how
        )


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
    """The library's attention, by a fused kernel where `alibi` is `Documents` or `Past`."""

    def forward(self, hidden_states, residual, alibi, attention_mask, **kwargs):
        if isinstance(alibi, torch.Tensor):
            return super().forward(hidden_states, residual, alibi, attention_mask, **kwargs)
        # (batch, tokens, heads * 3 * width): the query, key and value of each head lie side by side
        fused = self.query_key_value(hidden_states)
        fused = fused.view(*fused.shape[:2], self.num_heads, 3, self.head_dim)
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(dim=3))
        batch, heads, tokens, width = query.shape
        query = torch.cat([query, alibi.columns.query.expand(batch, -1, tokens, -1)], dim=-1)
        key = torch.cat([key, alibi.columns.key.expand(batch, heads, -1, -1)], dim=-1)
        value = F.pad(value, (0, query.shape[-1] - width))
        dropout = self.attention_dropout.p if self.training else 0.0
        context = alibi.attend(
            query, key, value, self.layer_idx, scale=self.inv_norm_factor, dropout_p=dropout
        )
        context = context[..., :width].transpose(1, 2).reshape(hidden_states.shape)
        return dropout_add(self.dense(context), residual, self.hidden_dropout, self.training), None


def split_off_trainable_rows(layer: Layer) -> tuple[Layer, TrainableRows | None]:
    """(the embedding or head without an adapter, the rows of it that the adapter trains or None).

    peft would make a copy of the whole matrix in each forward pass, with a gradient as large.
    """
    adapter = getattr(layer, "token_adapter", None)
    if adapter is None:
        return layer, None
    if adapter.merged or adapter.disable_adapters:
        return adapter.base_layer, None
    (name,) = adapter.active_adapters
    values = adapter.trainable_tokens_delta[name]
    return adapter.base_layer, TrainableRows(
        torch.tensor(adapter.token_indices[name], device=values.device), values
    )


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
        head = Head(new_embeddings.in_features, new_embeddings.out_features, bias=False, device="meta")
        head.weight = new_embeddings.weight
        self.lm_head = head

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        document_lengths: torch.Tensor | None = None,
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
        """
        if document_lengths is not None:
            assert input_ids is not None
            return self._forward_packed(input_ids, labels, document_lengths, num_items_in_batch)
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
        document_lengths: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> CausalLMOutput:
        hidden_states = self._embed(input_ids)
        documents = documents_of(document_lengths, self.config, self._compute_dtype(hidden_states))
        hidden_states = self._run_blocks(hidden_states, documents)
        head, trainable_rows = split_off_trainable_rows(self.lm_head)
        if labels is None:
            return CausalLMOutput(logits=head(hidden_states, trainable_rows=trainable_rows))

        # A token is predicted from the one before it; the first of a document from nothing.
        targets = labels[0].roll(-1)
        targets[document_lengths.cumsum(0) - 1] = NOT_SUPERVISED
        positions = (targets != NOT_SUPERVISED).nonzero()[:, 0]
        # A model spread over several cards has its last block on another one than its embedding.
        device = hidden_states.device
        supervised = hidden_states[0].index_select(0, positions.to(device))
        loss = head(supervised, targets[positions].to(device), trainable_rows)
        count = len(positions) if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=loss / torch.as_tensor(count, device=loss.device).clamp(min=1))

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        model = self.transformer
        # Its setter makes transformers' type of it a tensor or a module.
        word_embeddings = cast(nn.Embedding, model.word_embeddings)
        embedding, trainable_rows = split_off_trainable_rows(word_embeddings)
        embedded = embedding(input_ids)
        if trainable_rows:
            place = torch.full((embedding.num_embeddings,), -1, device=input_ids.device)
            place[trainable_rows.ids] = torch.arange(len(trainable_rows.ids), device=input_ids.device)
            place = place[input_ids]
            own = F.embedding(place.clamp(min=0), trainable_rows.values).to(embedded.dtype)
            embedded = torch.where(place[..., None] >= 0, own, embedded)
        return model.word_embeddings_layernorm(embedded)

    def _run_blocks(self, hidden_states: torch.Tensor, alibi: Documents | Past) -> torch.Tensor:
        for block in self.transformer.h:
            hidden_states, _ = block(hidden_states, alibi=alibi, attention_mask=None)
        return self.transformer.ln_f(hidden_states)

    @staticmethod
    def _compute_dtype(hidden_states: torch.Tensor) -> torch.dtype:
        kind = hidden_states.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
