"""What a run takes of memory, computed from the configuration of a model: no weight is loaded."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from training.cost.flops import MatrixProducts, matrix_products
from training.model.bloom import LOGITS_AT_ONCE, BloomForCausalLM, Documents, alibi_columns
from training.model.lora import add_adapter

# In float32: the weights that the optimizer changes, and Adam's two moments.
OPTIMIZER_BYTES = 12

# What DeepSpeed's estimators multiply an offloaded optimizer by, 1.5 unless told otherwise; this is what runs
# on a CPU took (tests/benchmarks/plan.py).
HOST_BUFFERS = 1.3

# Weights that ZeRO-3 leaves together for their next use, unless told otherwise (stage3_max_live_parameters).
MAX_LIVE = 1_000_000_000

# A weight in 4 bits, and its share of the float32 that each 64 weights have in common
# (https://arxiv.org/abs/2305.14314, section 3, without double quantization).
BYTES_IN_4_BITS = 1 / 2 + 4 / 64


# Bytes a weight: of Adam's two moments in float32, and with the float32 copy that DeepSpeed keeps.
ADAM_BYTES, DEEPSPEED_ADAM_BYTES = 8, 12


class Adapter(NamedTuple):
    """What `training.model.lora.add_adapter` takes of the options."""

    rank: int
    alpha: int
    dropout: float
    target: str


class Shapes(NamedTuple):
    """A model's weights by their number, and what its blocks keep for the backward pass, in bytes."""

    trained: int
    frozen: int
    frozen_linear: int  # of these, what 4 bits apply to
    largest: int  # of the matrices: ZeRO-3 puts together one at a time
    is_bloom: bool
    vocabulary: int
    hidden_size: int
    layers: int
    products: MatrixProducts
    embedded: int  # bytes of the hidden states of the micro-batch
    of_block: int  # bytes that one block keeps
    around_blocks: int


class MicroBatch(NamedTuple):
    """A micro-batch of examples of one length. Laid end to end, only the number of tokens matters."""

    rows: int  # examples
    length: int  # tokens in each

    @property
    def tokens(self) -> int:
        return self.rows * self.length


class Memory(NamedTuple):
    """Bytes of a card, or of a process without one; the last two are of the host, for all ranks."""

    weights: int
    optimizer: int
    activations: int
    head: int
    exchanged: int  # gradients on their way between ranks
    gradients: int
    step: int  # what the optimizer's step takes beside the gradients
    offloaded: int
    loading: int

    @property
    def peak(self) -> int:
        """A backward pass begins with all activations and no gradients; a step has it the other way round."""
        passes = self.activations + self.head + self.exchanged
        return self.weights + self.optimizer + max(passes, self.gradients + self.step)

    @property
    def host(self) -> int:
        return max(self.offloaded, self.loading)


def empty_model(
    config: PretrainedConfig,
    dtype: torch.dtype,
    adapter: Adapter | None = None,
    new_tokens: Sequence[int] = (),
) -> PreTrainedModel:
    """The model of a configuration, on the meta device: shapes without values."""
    with torch.device("meta"):
        if config.model_type == "bloom":
            model = BloomForCausalLM(config).to(dtype)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return add_adapter(model, new_tokens, **adapter._asdict()) if adapter else model


def _move_to_processor(model: PreTrainedModel) -> None:
    """In a FakeTensorMode: away from the meta device, for which torch has no fused attention."""
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
    adapter: Adapter | None = None,
    new_tokens: Sequence[int] = (),
) -> Shapes:
    """What a model of `config`, its vocabulary fitted already, has and keeps for a micro-batch."""
    model = empty_model(config, dtype, adapter, new_tokens)
    weights = list(model.parameters())
    frozen = [weight for weight in weights if not weight.requires_grad]
    products = matrix_products(model)
    one, two = (_kept(config, batch, dtype, adapter, new_tokens, layers) for layers in (1, 2))
    return Shapes(
        trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        frozen=sum(weight.numel() for weight in frozen),
        frozen_linear=products.frozen,
        largest=max(weight.numel() for weight in weights),
        is_bloom=config.model_type == "bloom",
        vocabulary=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        products=products,
        embedded=batch.tokens * config.hidden_size * dtype.itemsize,
        of_block=two - one,
        around_blocks=2 * one - two,
    )


def _kept(
    config: PretrainedConfig,
    batch: MicroBatch,
    dtype: torch.dtype,
    adapter: Adapter | None,
    new_tokens: Sequence[int],
    layers: int,
) -> int:
    """Bytes that a model of `layers` layers keeps for the backward pass, without its weights and its head."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    kept: dict[int, torch.UntypedStorage] = {}
    is_bloom = config.model_type == "bloom"
    if is_bloom:  # outside of the mode, whose tensors would stay in a cache
        positions = torch.arange(batch.length).repeat(batch.rows)
        documents = Documents([batch.length] * batch.rows, alibi_columns(positions, config, dtype))
    model = empty_model(config, dtype, adapter, new_tokens).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _move_to_processor(model)
        weights = [weight.untyped_storage() for weight in model.parameters()]
        of_weights = {id(storage) for storage in weights}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()  # the same object as long as one is alive
            if id(storage) not in of_weights:
                kept[id(storage)] = storage
            return tensor

        bare = model.get_base_model() if adapter else model
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            if is_bloom:
                input_ids = torch.zeros(1, batch.tokens, dtype=torch.int64)
                bare._through_blocks(bare._embedded(input_ids), documents)
            else:
                input_ids = torch.zeros(batch.rows, batch.length, dtype=torch.int64)
                bare.base_model(input_ids=input_ids, use_cache=False)
        return sum(storage.nbytes() for storage in kept.values())


class States(NamedTuple):
    """Bytes of a rank; the last two are of the host, for all ranks."""

    weights: int
    optimizer: int
    gradients: int
    step: int
    offloaded: int
    loading: int

    @property
    def of_rank(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.step


def model_states(
    trainable: int, frozen_bytes: int, largest: int, *, stage: int, offload: bool, ranks: int, width: int
) -> States:
    """What weights, gradients and AdamW take under ZeRO stage 2 or 3, offload being that of the optimizer.

    trainable, largest: the number of trainable weights, and of those in the largest matrix. width: bytes of a
    weight.

    In bf16 the sum for a card is what DeepSpeed's own estimators give (stage_1_and_2.py and stage3.py in
    deepspeed/runtime/zero), but for a copy of the gradients that a step makes, and ZeRO-3's gradients. An
    offloaded optimizer takes what they give with HOST_BUFFERS.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    share = trainable // ranks
    weights = width * trainable + frozen_bytes
    loading = ranks * weights
    if stage == 3:  # rank 0 reads them and hands out shares; those in use, and a gradient, are put together
        loading = weights
        in_use = max(width * largest, min(weights, width * MAX_LIVE))
        weights = weights // ranks + in_use + width * largest
    if offload:
        # As for one rank: for more, the estimator has each load float32.
        offloaded, _ = estimate_zero2_model_states_mem_needs(trainable, additional_buffer_factor=HOST_BUFFERS)
        return States(weights, 0, 0, 0, offloaded, loading)
    in_float32 = 4 * share  # the gradients, as the optimizer takes them
    return States(weights, OPTIMIZER_BYTES * share, width * share, in_float32 + width * share, 0, loading)


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
) -> Memory:
    """What a rank takes for the micro-batch of `shapes`.

    supervised: how many of its tokens have logits. bucket: how many gradients ranks exchange at a time.
    """
    width = dtype.itemsize
    frozen = width * shapes.frozen
    if in_4_bits:
        frozen += int((BYTES_IN_4_BITS - width) * shapes.frozen_linear)
    states = model_states(
        shapes.trained, frozen, shapes.largest, stage=stage, offload=offload, ranks=ranks, width=width
    )
    # The block whose turn it is has gradients of what it kept.
    if checkpointing:
        activations = shapes.layers * shapes.embedded + 2 * shapes.of_block + shapes.around_blocks
    else:
        activations = (shapes.layers + 1) * shapes.of_block + shapes.around_blocks
    return Memory(
        weights=states.weights,
        optimizer=states.optimizer,
        activations=activations,
        head=_head_bytes(shapes, width, supervised),
        exchanged=2 * width * min(bucket, shapes.trained),  # one bucket fills while another is on its way
        gradients=states.gradients,
        step=states.step,
        offloaded=states.offloaded,
        loading=states.loading,
    )


def _head_bytes(shapes: Shapes, width: int, supervised: int) -> int:
    """Logits and what is computed of them; of a Bloom, also the gradients of the head, which ours computes
    beside its loss, and of the embedding.
    """
    if not shapes.is_bloom:
        # transformers' loss: logits and their gradient, and two float32 tensors of the same shape.
        return supervised * shapes.vocabulary * (2 * width + 8)
    of_slice = 8 * min(LOGITS_AT_ONCE, supervised * shapes.vocabulary)
    return of_slice + 2 * width * (shapes.products.head - shapes.products.frozen_head)


def numel(weight: nn.Parameter) -> int:
    """The number of elements of a weight on all ranks together, whatever form it is kept in.

    Under ZeRO-3 a rank holds none of them, and `ds_numel` is their number. In 4 bits each element that torch
    sees holds two.
    """
    return _elements(weight) * (2 if getattr(weight, "bnb_quantized", False) else 1)


def stored_bytes(weight: nn.Parameter) -> int:
    return _elements(weight) * weight.element_size()


def _elements(weight: nn.Parameter) -> int:
    return getattr(weight, "ds_numel", weight.numel())


def trainable_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]
