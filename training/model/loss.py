"""The head of a model that takes packed batches, and the loss of supervised tokens, slice by slice."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput

from training.consts import NOT_SUPERVISED
from training.model.attention import Documents
from training.model.trainable_rows import TrainableRows, split_off_trainable_rows

# Logits that are in memory at a time: those of 1,024 tokens with BLOOM's 250,880, half a GiB in bf16. With
# fewer, the head's gradient, all of which each slice reads and writes, takes longer to move than to compute.
LOGITS_AT_ONCE = 2**28

# A slice has a multiple of this many tokens, because matrix products are faster on such widths.
TOKEN_MULTIPLE = 512

# Logits whose softmax is taken at a time on a CPU, in float32: those of 8 tokens with BLOOM's 250,880, which
# fit into the processor's cache. On a card it is taken of a whole slice.
LOGITS_IN_CACHE = 2**21

# Rows of the head's gradient that are computed at a time where it has another type than the products.
ROWS_AT_ONCE = 2**15


class Head(nn.Linear):
    """The output matrix. It gives the logits of hidden states, or their summed loss where there are targets.

    hidden_states: (..., hidden), or (tokens, hidden) with targets (tokens,). trainable_rows: embedding rows
    that take the place of the matrix's own.
    """

    @classmethod
    def of(cls, matrix: nn.Linear) -> "Head":
        """A head that has the weights of a plain matrix, without a copy of them.

        Not for use while ZeRO-3 divides a model that is being made: a module on the meta device would then
        leave DeepSpeed dividing all later ones.
        """
        has_bias = matrix.bias is not None
        head = cls(matrix.in_features, matrix.out_features, bias=has_bias, device="meta")
        head.weight, head.bias = matrix.weight, matrix.bias
        return head

    def forward(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor | None = None,
        trainable_rows: TrainableRows | None = None,
    ) -> torch.Tensor:
        if targets is not None:
            ids, values = trainable_rows or (None, None)
            weights = [self.weight, self.bias, values]
            if not torch.is_grad_enabled():  # which a Function does not see: it would compute their gradients
                weights = [weight if weight is None else weight.detach() for weight in weights]
            weight, bias, values = weights
            return SlicedCrossEntropy.apply(hidden_states, weight, bias, targets, ids, values)
        logits = super().forward(hidden_states)
        if trainable_rows is None:
            return logits
        bias = None if self.bias is None else self.bias[trainable_rows.ids]
        own = F.linear(hidden_states, trainable_rows.values.to(logits.dtype), bias)
        return logits.index_copy(-1, trainable_rows.ids, own)


def packed_output(
    output_layer: nn.Module,
    hidden_states: torch.Tensor,
    labels: torch.Tensor | None,
    documents: Documents,
    supervised_positions: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None,
) -> CausalLMOutput:
    """The logits of a packed batch; with labels instead its loss, summed and divided by `num_items_in_batch`.

    output_layer: a `Head`, or peft's layer around one. hidden_states: (1, tokens, hidden). labels:
    (1, tokens). supervised_positions: as the collator gives them; where None, they are looked for in the
    labels. num_items_in_batch: where None, the number of supervised tokens. Without any, the loss is 0.
    """
    head, trainable_rows = split_off_trainable_rows(output_layer)
    if labels is None:
        return CausalLMOutput(logits=head(hidden_states, trainable_rows=trainable_rows))
    hidden_states, labels = hidden_states[0], labels[0]
    if supervised_positions is None:
        is_supervised = labels != NOT_SUPERVISED
        is_supervised[documents.starts[:-1].long()] = False  # predicted from nothing
        supervised_positions = is_supervised.nonzero()[:, 0]  # on a card this waits for all work before
    targets = labels.index_select(0, supervised_positions)
    # A model that is spread over several cards has its last block on another one than its embedding.
    device = hidden_states.device
    # A token is predicted from the one before it.
    before = hidden_states.index_select(0, supervised_positions.to(device) - 1)
    loss = head(before, targets.to(device), trainable_rows)
    if isinstance(num_items_in_batch, torch.Tensor):
        return CausalLMOutput(loss=loss / num_items_in_batch.to(loss.device).clamp(min=1))
    count = len(supervised_positions) if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutput(loss=loss / max(1, count))


class SlicedCrossEntropy(torch.autograd.Function):
    """The summed cross entropy of the supervised tokens of a batch.

    hidden_states (tokens, hidden), weight (vocabulary, hidden), bias (vocabulary,), targets (tokens,). ids
    (n,) and values (n, hidden) are embedding rows that take the place of the weight's own. There may be no
    bias and no such rows (None).

    The logits of one slice of tokens exist at a time: the gradient is computed beside the loss, in the place
    of the logits, so that nothing is computed twice and nothing of the slice is kept.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, targets, ids, values):
        wants_hidden, wants_weight, wants_bias, _, _, wants_values = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        hidden_grad = torch.empty_like(hidden_states) if wants_hidden else None
        weight_grad = torch.empty_like(weight) if wants_weight else None  # the first slice is written to it
        if weight_grad is not None and not len(targets):
            weight_grad.zero_()
        bias_grad = torch.zeros_like(bias) if wants_bias else None
        values_grad = torch.zeros_like(values, dtype=torch.float32) if wants_values else None
        if ids is not None:
            values = values.to(weight.dtype)
        slice_length = tokens_at_once(len(weight))
        for start in range(0, len(targets), slice_length):
            end = start + slice_length
            hidden = hidden_states[start:end]
            logits = F.linear(hidden, weight, bias)
            hidden = hidden.to(logits.dtype)
            if ids is not None:
                logits[:, ids] = F.linear(
                    hidden, values, None if bias is None else bias[ids].to(logits.dtype)
                )
            loss += softmax_into_gradient(logits, targets[start:end])
            gradient = logits
            if bias_grad is not None:
                bias_grad += gradient.sum(dim=0)
            if ids is not None:
                of_values = gradient[:, ids]
                gradient[:, ids] = 0
                if values_grad is not None:
                    values_grad += of_values.T @ hidden
            if hidden_grad is not None:
                hidden_grad[start:end] = gradient @ weight
                if ids is not None:
                    hidden_grad[start:end] += of_values @ values
            if weight_grad is not None:
                _add_product(weight_grad, gradient.T, hidden, is_first=start == 0)
            del logits, gradient  # before the next slice's are computed
        ctx.gradients = hidden_grad, weight_grad, bias_grad, None, None, values_grad
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        gradients = ctx.gradients
        del ctx.gradients  # scaled in place below, so that a second backward has to fail
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_loss.to(gradient.dtype))
        return gradients


def tokens_at_once(vocabulary: int) -> int:
    """The number of tokens in a slice."""
    return max(1, LOGITS_AT_ONCE // vocabulary // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


def softmax_into_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed cross entropy; its gradient takes the place of the logits.

    logits: (tokens, vocabulary); targets: (tokens,). The softmax is computed in float32, on a CPU in blocks
    of a few tokens, without a float32 copy of all logits.
    """
    tokens, vocabulary = logits.shape
    block_length = max(1, LOGITS_IN_CACHE // vocabulary) if logits.device.type == "cpu" else tokens
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    for block, target in zip(logits.split(block_length), targets[:, None].split(block_length), strict=True):
        values = block.float()  # the block itself where it has that type
        largest, of_targets = values.amax(dim=1, keepdim=True), values.gather(1, target)
        total = values.sub_(largest).exp_().sum(dim=1, keepdim=True)
        loss += (total.log() + largest - of_targets).sum()
        values.mul_(1 / total).scatter_add_(1, target, torch.full_like(total, -1.0))
        block.copy_(values)
    return loss


def _add_product(gradient: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, is_first: bool) -> None:
    """Add left @ right to a matrix's gradient, or where it is the first product, write it there.

    Where the gradient has another type, as a float32 weight's has under autocast, the product is computed in
    the type of its factors, and added in the gradient's.
    """
    if gradient.dtype == left.dtype:
        gradient.addmm_(left, right, beta=0 if is_first else 1)  # no second matrix of this size
        return
    for rows, of_rows in zip(gradient.split(ROWS_AT_ONCE), left.split(ROWS_AT_ONCE), strict=True):
        product = of_rows @ right
        rows.copy_(product) if is_first else rows.add_(product)
