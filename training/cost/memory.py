"""What a run takes of memory, computed from the configuration of a model: no weight is loaded."""

import copy
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from training import allocator_settings
from training.cost.flops import MatrixProducts, matrix_products
from training.model.attention import documents_of
from training.model.bloom import BloomForCausalLM, is_bloom, packed_documents
from training.model.lora import add_adapter
from training.model.loss import tokens_at_once
from training.model.packed import PACKED_ATTENTION, PackedModel, library_class, packed_class

if TYPE_CHECKING:
    from training.model.adapted import AdaptedModel

# Bytes of a trainable weight in the optimizer: the weight and Adam's two moments, all in float32.
OPTIMIZER_BYTES = 12

# The factor by which DeepSpeed's estimators multiply an offloaded optimizer. Theirs is 1.5 unless told
# otherwise; 1.3 is what runs on a CPU took (tests/benchmarks/plan.py).
HOST_BUFFERS = 1.3

# Weights that ZeRO-3 keeps gathered for their next use, unless told otherwise (stage3_max_live_parameters).
MAX_LIVE = 1_000_000_000

# Bytes of a weight in 4 bits: its half byte, and its share of the float32 that 64 weights have in common
# (https://arxiv.org/abs/2305.14314, section 3, without double quantization).
BYTES_IN_4_BITS = 1 / 2 + 4 / 64

# Bytes of a gradient's sum over micro-batches in our configurations ("grad_accum_dtype": "fp32").
SUM_BYTES = 4

# Bytes of a trainable weight on a rank without DeepSpeed beside the weight: its gradient and Adam's two
# moments, all in float32.
PLAIN_ADAM_BYTES, PLAIN_GRADIENT_BYTES = 8, 4

# Bytes of a trainable weight in a checkpoint: Adam's two moments in float32, and DeepSpeed's float32 copy
# too.
ADAM_BYTES, DEEPSPEED_ADAM_BYTES = 8, 12


class Adapter(NamedTuple):
    """The options of an adapter, as `training.model.lora.add_adapter` takes them."""

    rank: int
    alpha: int
    dropout: float
    target: str


class Shapes(NamedTuple):
    """How many weights a model has, and how many bytes its blocks keep for the backward pass."""

    trainable: int
    frozen: int
    frozen_linear: int  # how many of `frozen` can be kept in 4 bits
    largest: int  # weights of the largest matrix: ZeRO-3 gathers one matrix at a time
    is_packed: bool
    vocabulary: int
    hidden_size: int
    layers: int
    products: MatrixProducts
    hidden_states: int  # bytes of the hidden states of the micro-batch
    block_bytes: int  # bytes that one block keeps for the backward pass
    outer_bytes: int  # bytes kept outside the blocks, without the head


class MicroBatch(NamedTuple):
    """Examples of one length. In a packed batch, only the number of tokens matters."""

    examples: int
    length: int  # tokens of each example

    @property
    def tokens(self) -> int:
        return self.examples * self.length


class Memory(NamedTuple):
    """Bytes that a run takes of each card, or of each process where there is no card, and of the host."""

    weights: int
    optimizer: int
    activations: int
    head: int
    exchanged: int  # gradients on their way between ranks
    gradients: int
    step: int  # what the optimizer's step takes beside the gradients
    offloaded: int  # of the host, for all ranks: the offloaded optimizer
    loading: int  # of the host, for all ranks: the weights while they are loaded

    @property
    def peak(self) -> int:
        """The larger of two moments, a backward pass with its activations and an optimizer step without.

        The sums of the gradients are there in both: DeepSpeed makes room for all of them at the first one.
        """
        passes = self.activations + self.head + self.exchanged
        return self.weights + self.optimizer + self.gradients + max(passes, self.step)

    @property
    def host(self) -> int:
        return max(self.offloaded, self.loading)


def empty_model(
    config: PretrainedConfig,
    dtype: torch.dtype,
    packed: bool,
    adapter: Adapter | None = None,
    new_tokens: Collection[int] = (),
) -> "PreTrainedModel | AdaptedModel":
    """The model of a configuration, on the meta device: shapes without values.

    packed: whether it is to take packed batches, as a Bloom always does.
    """
    with torch.device("meta"):
        if is_bloom(config) or packed:
            model = (
                BloomForCausalLM(config) if is_bloom(config) else packed_class(library_class(config))(config)
            )
            model.to(dtype)  # pyright: ignore[reportArgumentType]  # transformers' type of `to` still takes self
            if not is_bloom(config):
                model.set_attn_implementation(PACKED_ATTENTION)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return add_adapter(model, new_tokens, **adapter._asdict()) if adapter else model


def _move_to_processor(model: nn.Module) -> None:
    """Move a model, in a FakeTensorMode, off the meta device, for which torch has no fused attention."""
    moved: dict[torch.Tensor, torch.Tensor] = {}  # a tied weight stays one
    for module in model.modules():
        own = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            if tensor not in moved:
                values = torch.empty(tensor.shape, dtype=tensor.dtype)
                is_weight = isinstance(tensor, nn.Parameter)
                moved[tensor] = nn.Parameter(values, tensor.requires_grad) if is_weight else values
            setattr(module, name, moved[tensor])


def shapes_of(
    config: PretrainedConfig,
    batch: MicroBatch,
    dtype: torch.dtype,
    packed: bool,
    adapter: Adapter | None = None,
    new_tokens: Collection[int] = (),
) -> Shapes:
    """The weights of a model, and what it keeps for a micro-batch; `config` has the fitted vocabulary."""
    model = empty_model(config, dtype, packed, adapter, new_tokens)
    weights = list(model.parameters())
    frozen = [weight for weight in weights if not weight.requires_grad]
    products = matrix_products(model)
    one, two = (_kept_bytes(config, batch, dtype, packed, adapter, new_tokens, layers) for layers in (1, 2))
    return Shapes(
        trainable=sum(weight.numel() for weight in weights if weight.requires_grad),
        frozen=sum(weight.numel() for weight in frozen),
        frozen_linear=products.frozen,
        largest=max(weight.numel() for weight in weights),
        is_packed=packed,
        vocabulary=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        products=products,
        hidden_states=batch.tokens * config.hidden_size * dtype.itemsize,
        block_bytes=two - one,
        outer_bytes=2 * one - two,
    )


def _kept_bytes(
    config: PretrainedConfig,
    batch: MicroBatch,
    dtype: torch.dtype,
    packed: bool,
    adapter: Adapter | None,
    new_tokens: Collection[int],
    layers: int,
) -> int:
    """Bytes that a model with `layers` blocks keeps for the backward pass, without weights and head."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    kept_storages: dict[int, torch.UntypedStorage] = {}
    lengths = [batch.length] * batch.examples
    if is_bloom(config):  # before the mode: tensors made in it would stay in a cache
        documents = packed_documents(lengths, config, dtype, torch.device("cpu"))
    model = empty_model(config, dtype, packed, adapter, new_tokens).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _move_to_processor(model)
        weights = [weight.untyped_storage() for weight in model.parameters()]
        weight_ids = {id(storage) for storage in weights}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()  # the same object as long as one is alive
            if id(storage) not in weight_ids:
                kept_storages[id(storage)] = storage
            return tensor

        # With an adapter, this is the model inside it.
        causal_model = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            if isinstance(causal_model, BloomForCausalLM):
                input_ids = torch.zeros(1, batch.tokens, dtype=torch.int64)
                causal_model._run_blocks(causal_model._embed(input_ids), documents)
            elif isinstance(causal_model, PackedModel):
                input_ids = torch.zeros(1, batch.tokens, dtype=torch.int64)
                causal_model.hidden_states(input_ids, documents_of(lengths, input_ids.device))
            else:
                input_ids = torch.zeros(batch.examples, batch.length, dtype=torch.int64)
                causal_model.base_model(input_ids=input_ids, use_cache=False)
        return sum(storage.nbytes() for storage in kept_storages.values())


class States(NamedTuple):
    """Bytes of weights, optimizer and gradients, for each rank and for the host."""

    weights: int
    optimizer: int
    gradients: int
    step: int
    offloaded: int  # of the host, for all ranks
    loading: int  # of the host, for all ranks

    @property
    def of_rank(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.step


def model_states(
    trainable: int,
    frozen_bytes: int,
    largest: int,
    *,
    stage: int,
    offload: bool,
    ranks: int,
    width: int,
    sum_width: int | None = None,
) -> States:
    """The bytes that weights, gradients and AdamW take under ZeRO stage 2 or 3; stage 0 is no DeepSpeed.

    trainable: the number of trainable weights. largest: the number of weights of the largest matrix. offload:
    whether the optimizer is offloaded. width: bytes of a weight. sum_width: bytes of the sum of a gradient
    over micro-batches; None stands for SUM_BYTES.

    Where gradients are added up in bf16, the sum for a card is what DeepSpeed's own estimators give
    (stage_1_and_2.py and stage3.py in deepspeed/runtime/zero); this adds the copy of the gradients that a
    step makes, ZeRO-3's gradients, and the buffer for the gradient of the largest matrix that ZeRO-2 has on
    the card and on the host where it offloads. An offloaded optimizer takes what they give with HOST_BUFFERS,
    and what pinned memory is rounded up by.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    if sum_width is None:
        sum_width = SUM_BYTES
    share = trainable // ranks
    weights = width * trainable + frozen_bytes
    loading = ranks * weights
    if stage == 0:  # the trainable weights are float32, and every rank has all
        in_float32 = PLAIN_GRADIENT_BYTES * trainable
        return States(
            in_float32 + frozen_bytes, PLAIN_ADAM_BYTES * trainable, in_float32, 0, 0, ranks * 4 * trainable
        )
    if stage == 3:  # rank 0 reads them and hands out shares; those in use, and one gradient, are gathered
        loading = weights
        in_use = max(width * largest, min(weights, width * MAX_LIVE))
        weights = weights // ranks + in_use + width * largest
    if offload:
        # The estimate for one rank: for more, it adds the float32 weights that each would load.
        offloaded, _ = estimate_zero2_model_states_mem_needs(trainable, additional_buffer_factor=HOST_BUFFERS)
        buffer = width * min(largest, trainable) if stage == 2 else 0
        pinned = [4 * share, 4 * share, width * share if stage == 2 else sum_width * share, buffer]
        offloaded += ranks * (buffer + sum(pinned_bytes(count) - count for count in pinned))
        in_float32 = sum_width * share if sum_width > width else 0  # ZeRO-2 has these sums on the card
        if stage == 3:
            return States(weights, 0, 0, 0, offloaded + ranks * in_float32, loading)
        return States(weights, 0, in_float32 + buffer, 0, offloaded, loading)
    if sum_width == width:
        copied = width * share + 4 * share  # laid end to end, and that in float32
    elif stage == 3:
        copied = sum_width * share  # laid end to end
    else:
        copied = 0  # they are so already
    return States(weights, OPTIMIZER_BYTES * share, max(width, sum_width) * share, copied, 0, loading)


def pinned_bytes(count: int) -> int:
    """The bytes that PyTorch takes for pinned memory of `count` bytes: the next power of two.

    Above the size that PYTORCH_ALLOC_CONF names (see training/__init__.py) it does not round.
    """
    settings = allocator_settings() or ""
    limit = re.search(r"pinned_max_round_threshold_mb:(\d+)", settings)
    if count == 0 or (limit and count > int(limit[1]) * 2**20):
        return count
    return 2 ** (count - 1).bit_length()


def memory_of(
    shapes: Shapes,
    *,
    stage: int,
    offload: bool,
    ranks: int,
    dtype: torch.dtype,
    checkpointing: bool,
    supervised: int,
    bucket: int,
    in_4_bits: bool = False,
    sum_width: int | None = None,
) -> Memory:
    """The bytes that a rank takes for the micro-batch of `shapes`.

    stage, sum_width: as for `model_states`. supervised: how many tokens of the micro-batch get logits.
    bucket: how many gradients the ranks exchange at a time.
    """
    width = dtype.itemsize
    frozen = width * shapes.frozen
    if in_4_bits:
        frozen += int((BYTES_IN_4_BITS - width) * shapes.frozen_linear)
    states = model_states(
        shapes.trainable,
        frozen,
        shapes.largest,
        stage=stage,
        offload=offload,
        ranks=ranks,
        width=width,
        sum_width=sum_width,
    )
    # The blocks go backward one at a time, and that one also has the gradients of what it kept.
    if checkpointing:
        activations = shapes.layers * shapes.hidden_states + 2 * shapes.block_bytes + shapes.outer_bytes
    else:
        activations = (shapes.layers + 1) * shapes.block_bytes + shapes.outer_bytes
    return Memory(
        weights=states.weights,
        optimizer=states.optimizer,
        activations=activations,
        head=_head_bytes(shapes, width, supervised),
        exchanged=2 * width * min(bucket, shapes.trainable),  # one bucket fills while another is on its way
        gradients=states.gradients,
        step=states.step,
        offloaded=states.offloaded,
        loading=states.loading,
    )


def _head_bytes(shapes: Shapes, width: int, supervised: int) -> int:
    """Bytes of the logits and of what is computed from them.

    For a packed batch, these include the gradients of the head, which are computed beside the loss, and of
    the embedding.
    """
    if not shapes.is_packed:
        # transformers' loss has logits, their gradient, and two float32 tensors of the same shape.
        return supervised * shapes.vocabulary * (2 * width + 8)
    logits = min(tokens_at_once(shapes.vocabulary), supervised) * shapes.vocabulary
    of_slice = logits * (width if width == 4 else width + 4)  # on a card with a copy in float32
    return of_slice + 2 * width * (shapes.products.head - shapes.products.frozen_head)


def numel(weight: nn.Parameter) -> int:
    """The number of weights in a parameter, also where it is divided or quantized.

    Under ZeRO-3 a rank holds no element of it, and `ds_numel` is what all ranks hold together. In 4 bits,
    each element that torch sees holds two weights.
    """
    return _elements(weight) * (2 if getattr(weight, "bnb_quantized", False) else 1)


def stored_bytes(weight: nn.Parameter) -> int:
    """The bytes that a parameter takes, on all ranks together under ZeRO-3."""
    return _elements(weight) * weight.element_size()


def _elements(weight: nn.Parameter) -> int:
    return getattr(weight, "ds_numel", weight.numel())


def trainable_weights(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The parameters that the optimizer changes."""
    return [weight for weight in model.parameters() if weight.requires_grad]
