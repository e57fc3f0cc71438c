"""transformers' Bloom, for a batch laid end to end, and with logits only where something is learnt.

Parameters, configuration and saved files are the library's own. With `document_lengths` the model takes

    input_ids          (1, tokens)     q1 a1 a1 | q2 q2 a2 | ...     documents one after the other, no padding
    labels             (1, tokens)      . a1 a1 |  .  . a2 | ...     . = -100
    document_lengths   (documents,)       3     |    3     | ...

and no document sees another. Called without, it is the library's model: padding, KV cache, `generate`.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BloomConfig
from transformers import BloomForCausalLM as LibraryBloom
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.bloom.modeling_bloom import BloomAttention, _get_alibi_slopes, dropout_add

from training.consts import NOT_LEARNT

# Logits that are in memory at a time: 535 rows of BLOOM's 250,880, half a GiB in float32. With fewer rows the
# head's gradient, which each slice reads and writes whole, takes longer to move than to compute.
LOGITS_AT_ONCE = 2**27

# bfloat16 holds 8 bits: a position up to 2**16 is exact as the sum of a multiple of 2**8 and the rest.
POSITION_STEP = 2**8
LONGEST_DOCUMENT = 2**16

# A kernel wants a head's width to be a multiple of this.
WIDTH_MULTIPLE = 8


class Documents(NamedTuple):
    """Where the documents of a batch are, and what ALiBi adds to the queries and keys."""

    lengths: list[int]
    query_columns: torch.Tensor  # (1, heads, 1, columns)
    key_columns: torch.Tensor  # (1, 1, tokens, columns)


def documents_of(lengths: torch.Tensor, config: BloomConfig, dtype: torch.dtype) -> Documents:
    """ALiBi (https://arxiv.org/abs/2108.12409) adds slope * position to the product of a query and a key.

    Here that is a part of the product itself: further columns of the query hold the slope, those of the key
    the position in its document, each as a sum of parts that `dtype` holds exactly. The kernel adds the
    products up in float32, so that the bias is as exact as there, and no (tokens, tokens) tensor is needed.
    """
    device, lengths = lengths.device, lengths.tolist()  # once: on a card this waits for what is under way
    if max(lengths) > LONGEST_DOCUMENT:
        raise ValueError(f"a document of {max(lengths)} tokens; at most {LONGEST_DOCUMENT} are possible")
    head_width = config.hidden_size // config.n_head
    position = torch.cat([torch.arange(length, device=device) for length in lengths])
    # The kernel divides every product by the root of the head's width.
    slope = _get_alibi_slopes(config.n_head, device).double() * math.sqrt(head_width)
    if dtype == torch.float32:
        slopes, positions = [slope], [position]
    else:
        slopes, positions = [], [position // POSITION_STEP * POSITION_STEP, position % POSITION_STEP]
        for _ in range(3):
            slopes.append(slope.to(dtype))
            slope = slope - slopes[-1].double()
    pairs = [(s, p) for s in slopes for p in positions]
    empty = -(head_width + len(pairs)) % WIDTH_MULTIPLE
    query_columns = torch.stack([s.to(dtype) for s, _ in pairs], dim=-1)
    key_columns = torch.stack([p.to(dtype) for _, p in pairs], dim=-1)
    return Documents(
        lengths,
        F.pad(query_columns, (0, empty))[None, :, None, :],
        F.pad(key_columns, (0, empty))[None, None],
    )


class DocumentAttention(BloomAttention):
    """The library's attention; of documents laid end to end where `alibi` is `Documents`."""

    def forward(self, hidden_states, residual, alibi, attention_mask, **kwargs):
        if not isinstance(alibi, Documents):
            return super().forward(hidden_states, residual, alibi, attention_mask, **kwargs)
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        tokens = query.shape[2]
        query = torch.cat([query, alibi.query_columns.expand(-1, -1, tokens, -1)], dim=-1)
        key = torch.cat([key, alibi.key_columns.expand(-1, self.num_heads, -1, -1)], dim=-1)
        value = F.pad(value, (0, query.shape[-1] - self.head_dim))
        context = torch.cat(
            [
                F.scaled_dot_product_attention(
                    *document,
                    is_causal=True,
                    scale=self.inv_norm_factor,
                    dropout_p=self.attention_dropout.p if self.training else 0.0,
                )
                for document in zip(
                    *(x.split(alibi.lengths, dim=2) for x in (query, key, value)), strict=True
                )
            ],
            dim=2,
        )
        context = context[..., : self.head_dim].transpose(1, 2).reshape(hidden_states.shape)
        return dropout_add(self.dense(context), residual, self.hidden_dropout, self.training), None


class Head(nn.Linear):
    """The output matrix: logits of hidden states, or their summed loss where targets are given."""

    def forward(self, hidden_states: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if targets is None:
            return super().forward(hidden_states)
        return SlicedCrossEntropy.apply(hidden_states, self.weight, targets)


class SlicedCrossEntropy(torch.autograd.Function):
    """The summed cross entropy of hidden_states (rows, hidden), weight (vocabulary, hidden), targets (rows,).

    Only LOGITS_AT_ONCE logits exist at a time: the gradient of a slice is computed beside its loss, so that
    nothing is computed twice and nothing of the slice is kept.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, targets):
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        ctx.hidden_grad = torch.zeros_like(hidden_states) if wants_hidden else None
        ctx.weight_grad = torch.zeros_like(weight) if wants_weight else None
        rows = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(targets), rows):
            hidden, target = hidden_states[start : start + rows], targets[start : start + rows, None]
            logits = F.linear(hidden, weight).float()
            log_total = logits.logsumexp(dim=-1, keepdim=True)
            loss += (log_total - logits.gather(1, target)).sum()
            if not (wants_hidden or wants_weight):
                continue
            gradient = logits.sub_(log_total).exp_()
            gradient.scatter_add_(1, target, torch.full_like(log_total, -1.0))
            gradient = gradient.to(weight.dtype)
            if wants_hidden:
                ctx.hidden_grad[start : start + rows] = gradient @ weight
            if wants_weight:
                ctx.weight_grad.addmm_(gradient.T, hidden.to(weight.dtype))  # no second matrix of this size
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        hidden_grad, weight_grad = ctx.hidden_grad, ctx.weight_grad
        del ctx.hidden_grad, ctx.weight_grad  # scaled in place below, so that a second backward has to fail
        for grad in (hidden_grad, weight_grad):
            if grad is not None:
                grad.mul_(grad_loss.to(grad.dtype))
        return hidden_grad, weight_grad, None


class BloomForCausalLM(LibraryBloom):
    """The library's class by its own name, so that it is saved as that."""

    def __init__(self, config: BloomConfig) -> None:
        super().__init__(config)
        for index, block in enumerate(self.transformer.h):
            block.self_attention = DocumentAttention(config, index)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """The library makes a plain matrix when the vocabulary grows; here it becomes a head again."""
        head = Head(new_embeddings.in_features, new_embeddings.out_features, bias=False, device="meta")
        head.weight = new_embeddings.weight
        self.lm_head = head

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        document_lengths: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ):
        """As the module says. The loss is summed over the learnt tokens and divided by `num_items_in_batch`,
        or by their number; 0 where there are none. Without labels, the logits: (1, tokens, vocabulary).
        """
        if document_lengths is None:
            if num_items_in_batch is not None:
                kwargs["num_items_in_batch"] = num_items_in_batch
            return super().forward(input_ids=input_ids, labels=labels, **kwargs)
        model = self.transformer
        hidden_states = model.word_embeddings_layernorm(model.word_embeddings(input_ids))
        documents = documents_of(document_lengths, self.config, self._compute_dtype(hidden_states))
        for block in model.h:
            hidden_states, _ = block(hidden_states, alibi=documents, attention_mask=None)
        hidden_states = model.ln_f(hidden_states)
        if labels is None:
            return CausalLMOutput(logits=self.lm_head(hidden_states))

        # A token is predicted from the one before it; the first of a document from nothing.
        targets = labels[0].roll(-1)
        targets[document_lengths.cumsum(0) - 1] = NOT_LEARNT
        is_learnt = targets != NOT_LEARNT
        loss = self.lm_head(hidden_states[0, is_learnt], targets[is_learnt])
        count = is_learnt.sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=loss / torch.as_tensor(count, device=loss.device).clamp(min=1))

    @staticmethod
    def _compute_dtype(hidden_states: torch.Tensor) -> torch.dtype:
        kind = hidden_states.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
