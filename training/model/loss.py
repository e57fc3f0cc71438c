"""The output matrix of our Bloom, and the loss of its supervised tokens, computed slice by slice."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

# Logits that are in memory at a time: those of 535 tokens with BLOOM's 250,880, half a GiB in float32. With
# fewer, the head's gradient, all of which each slice reads and writes, takes longer to move than to compute.
LOGITS_AT_ONCE = 2**27


class TrainableRows(NamedTuple):
    """The trainable embedding rows of a frozen embedding or head: those of an adapter's new tokens."""

    ids: torch.Tensor  # (n,)
    values: torch.Tensor  # (n, hidden)


class Head(nn.Linear):
    """The output matrix. It gives the logits of hidden states, or their summed loss where there are targets.

    hidden_states: (..., hidden), or (tokens, hidden) with targets (tokens,). trainable_rows: embedding rows
    that take the place of the matrix's own.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor | None = None,
        trainable_rows: TrainableRows | None = None,
    ) -> torch.Tensor:
        if targets is not None:
            ids, values = trainable_rows or (None, None)
            return SlicedCrossEntropy.apply(hidden_states, self.weight, targets, ids, values)
        logits = super().forward(hidden_states)
        if trainable_rows is None:
            return logits
        own = F.linear(hidden_states, trainable_rows.values.to(logits.dtype))
        return logits.index_copy(-1, trainable_rows.ids, own)


class SlicedCrossEntropy(torch.autograd.Function):
    """The summed cross entropy of the supervised tokens of a batch.

    hidden_states (tokens, hidden), weight (vocabulary, hidden), targets (tokens,). ids (n,) and values
    (n, hidden) are embedding rows that take the place of the weight's own, or None.

    At most LOGITS_AT_ONCE logits exist at a time: the gradient of a slice of tokens is computed beside its
    loss, so that nothing is computed twice and nothing of the slice is kept.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, targets, ids, values):
        wants_hidden, wants_weight, _, _, wants_values = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        hidden_grad = torch.zeros_like(hidden_states) if wants_hidden else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        values_grad = torch.zeros_like(values, dtype=torch.float32) if wants_values else None
        if ids is not None:
            values = values.to(weight.dtype)
        slice_length = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(targets), slice_length):
            end = start + slice_length
            hidden, target = hidden_states[start:end], targets[start:end, None]
            logits = F.linear(hidden, weight).float()
            if ids is not None:
                logits[:, ids] = F.linear(hidden, values).float()
            log_total = logits.logsumexp(dim=-1, keepdim=True)
            loss += (log_total - logits.gather(1, target)).sum()
            if not (wants_hidden or wants_weight or wants_values):
                continue
            gradient = logits.sub_(log_total).exp_()
            gradient.scatter_add_(1, target, torch.full_like(log_total, -1.0))
            gradient = gradient.to(weight.dtype)
            if ids is not None:
                of_values = gradient[:, ids]
                gradient[:, ids] = 0
                if values_grad is not None:
                    values_grad += of_values.T @ hidden.to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad[start:end] = gradient @ weight
                if ids is not None:
                    hidden_grad[start:end] += of_values @ values
            if weight_grad is not None:
                weight_grad.addmm_(gradient.T, hidden.to(weight.dtype))  # no second matrix of this size
        ctx.hidden_grad, ctx.weight_grad, ctx.values_grad = hidden_grad, weight_grad, values_grad
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        hidden_grad, weight_grad, values_grad = ctx.hidden_grad, ctx.weight_grad, ctx.values_grad
        # Scaled in place below, so that a second backward has to fail.
        del ctx.hidden_grad, ctx.weight_grad, ctx.values_grad
        for grad in (hidden_grad, weight_grad, values_grad):
            if grad is not None:
                grad.mul_(grad_loss.to(grad.dtype))
        return hidden_grad, weight_grad, None, None, values_grad
