"""FLOPs of a model's matrix products, counted from the shapes of its layers."""

from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from training.model.adapted import AdaptedModel


class Tokens(NamedTuple):
    """How many tokens some batches have."""

    total: int = 0  # without padding
    supervised: int = 0
    padding: int = 0
    pairs: int = 0  # pairs of a token and one that it attends to: itself, or one before it in its document

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(one + another for one, another in zip(self, other, strict=True)))


class MatrixProducts(NamedTuple):
    """The sizes that the FLOPs of a model's matrix products depend on."""

    weights: int  # all weights of the linear layers, without the head
    head: int  # vocabulary * hidden
    attention: int  # layers * hidden
    frozen: int = 0  # how many of `weights` are frozen
    frozen_head: int = 0  # `head` if it is frozen, or 0

    def flops(self, tokens: Tokens) -> int:
        """FLOPs of one forward and backward pass over these tokens. Recomputation is not counted.

        There are 6 for each weight and token (https://arxiv.org/abs/2001.08361, section 2.1), and 4 where the
        weight is frozen and needs no gradient. The head's weights count for supervised tokens only. Attention
        has 12 * hidden for each layer and pair: a product for the score and one for the value, with two FLOPs
        for each component, once forward and twice backward (https://arxiv.org/abs/2204.02311, appendix B,
        which also counts the pairs that causal attention leaves out).
        """
        all_trainable = 6 * (self.weights * tokens.total + self.head * tokens.supervised)
        frozen_gradients = 2 * (self.frozen * tokens.total + self.frozen_head * tokens.supervised)
        return all_trainable - frozen_gradients + 12 * self.attention * tokens.pairs

    def flops_of_checkpointing(self, tokens: Tokens) -> int:
        """FLOPs, at most, of the second forward pass through the blocks under activation checkpointing.

        torch stops that pass at the last tensor that is kept, and so leaves out a block's last product.
        """
        return 2 * self.weights * tokens.total + 4 * self.attention * tokens.pairs


def matrix_products(model: "PreTrainedModel | AdaptedModel") -> MatrixProducts:
    """The matrix products of a model, with an adapter or without."""
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has one"
    head = getattr(head, "original_module", head)  # an adapter wraps it
    head_layers = (head, getattr(head, "base_layer", None))  # a LoRA layer has its matrix in its base layer
    linear = [
        module for module in model.modules() if isinstance(module, nn.Linear) and module not in head_layers
    ]
    config = model.config.get_text_config()
    return MatrixProducts(
        weights=sum(_size(module) for module in linear),
        head=_size(head),
        attention=config.num_hidden_layers * config.hidden_size,
        frozen=sum(_size(module) for module in linear if not module.weight.requires_grad),
        frozen_head=0 if head.weight.requires_grad else _size(head),
    )


def _size(layer: nn.Linear) -> int:
    """The number of weights in a layer's matrix, also where it is quantized."""
    return layer.in_features * layer.out_features
