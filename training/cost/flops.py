"""FLOPs of a model's matrix products, counted from the shapes of its layers."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel


class Tokens(NamedTuple):
    """What is in some batches."""

    total: int = 0  # without padding
    supervised: int = 0  # those with a loss
    padding: int = 0
    pairs: int = 0  # of a token and one that it looks at: itself, and those before it in its document

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(one + another for one, another in zip(self, other, strict=True)))


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
        frozen, which needs no gradient; the head's weights for supervised tokens only. In attention
        12 * hidden for each layer and pair: a product for the score and one for the value, with two FLOPs
        for each component, three times (https://arxiv.org/abs/2204.02311, appendix B, which does not leave
        out the pairs that causal attention never looks at).
        """
        every = 6 * (self.weights * tokens.total + self.head * tokens.supervised)
        not_needed = 2 * (self.frozen * tokens.total + self.frozen_head * tokens.supervised)
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
