"""How large the models and batches of `training.card_check` are: on a card, there with --quick, and on a CPU.

The card's are those of bloomz-7b1: a hidden size of 4096, 32 heads of width 128, 250,880 tokens, 30 blocks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import BloomConfig
from transformers import BloomForCausalLM as LibraryBloom

from training.consts import NOT_SUPERVISED

Model = TypeVar("Model", bound=LibraryBloom)


class Sizes(NamedTuple):
    """The sizes of a Bloom."""

    hidden: int
    heads: int
    layers: int
    vocabulary: int

    def __str__(self) -> str:
        return (
            f"hidden {self.hidden:,}, {self.heads} heads, {self.layers} layer(s), vocabulary "
            f"{self.vocabulary:,}"
        )


class Batch(NamedTuple):
    """A micro-batch of examples of one length."""

    examples: int
    length: int  # tokens of each example

    def __str__(self) -> str:
        return f"{self.examples} x {self.length:,} tokens"


class Scale(NamedTuple):
    """What the parts measure."""

    name: str
    exact: Sizes  # part 1
    rows: tuple[int, ...]  # tokens of its rows
    prompt: int  # tokens of the prompt of its greedy answers
    long: Sizes
    long_row: int
    kernels: Sizes  # part 2
    new_lengths: int  # how many lengths that no kernel has seen
    longest: int  # tokens; below it these lengths are
    training: Sizes  # part 3, and 6
    batches: tuple[Batch, ...]
    steps: int
    decoding: Sizes  # part 4
    contexts: tuple[int, ...]  # tokens before the first new one
    answers: tuple[int, ...]  # how many are generated at a time
    new_tokens: int
    quantized_layers: int
    run: Sizes  # part 5
    run_batch: Batch
    ways: tuple[str, ...] = ("ZeRO-2", "ZeRO-2, offload", "ZeRO-3", "LoRA", "QLoRA")
    processes: int = 2  # part 6, without a card


CARD = Scale(
    name="a card",
    exact=Sizes(1024, 8, 2, 65_536),
    rows=(1, 7, 129, 700, 2048),
    prompt=129,
    long=Sizes(256, 2, 1, 4096),
    long_row=16_384,
    kernels=Sizes(4096, 32, 2, 4096),
    new_lengths=20,
    longest=2048,
    training=Sizes(4096, 32, 4, 250_880),
    batches=(Batch(8, 2048), Batch(8, 700), Batch(200, 80)),
    steps=5,
    decoding=Sizes(4096, 32, 30, 250_880),
    contexts=(64, 512, 2048),
    answers=(1, 8),
    new_tokens=64,
    quantized_layers=30,
    run=Sizes(2048, 16, 8, 100_352),
    run_batch=Batch(8, 1024),
)
QUICK_CARD = CARD._replace(
    name="a card, --quick", steps=3, contexts=(64, 2048), new_tokens=24, quantized_layers=6
)
CPU = Scale(
    name="a CPU",
    exact=Sizes(64, 2, 2, 512),
    rows=(1, 7, 33, 65, 129),
    prompt=33,
    long=Sizes(32, 2, 1, 128),
    long_row=512,
    kernels=Sizes(32, 2, 1, 128),
    new_lengths=5,
    longest=64,
    training=Sizes(64, 2, 2, 512),
    batches=(Batch(2, 64), Batch(4, 20), Batch(20, 4)),
    steps=2,
    decoding=Sizes(64, 2, 2, 512),
    contexts=(16, 64),
    answers=(1, 2),
    new_tokens=4,
    quantized_layers=1,
    run=Sizes(64, 2, 2, 512),
    run_batch=Batch(2, 64),
)
QUICK_CPU = CPU._replace(name="a CPU, --quick", ways=("ZeRO-2",), processes=1)


def scale_for(device: torch.device, is_quick: bool) -> Scale:
    if device.type == "cpu":
        return QUICK_CPU if is_quick else CPU
    return QUICK_CARD if is_quick else CARD


def bloom_of(sizes: Sizes, model_class: type[Model], dtype: torch.dtype, device: torch.device) -> Model:
    """A random Bloom, made where it is to be, whose weights are the same for each class and type.

    The standard deviation makes attention and logits as decided as a trained model's are; biases are not 0.
    """
    config = BloomConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    with torch.device("meta"):
        model = model_class(config)
    model.to(torch.bfloat16).to_empty(device=device)  # pyright: ignore[reportArgumentType]
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, sizes.hidden**-0.5, generator=generator)
            else:
                weight.normal_(0, 0.1, generator=generator)
        for layer in model.modules():
            if isinstance(layer, torch.nn.LayerNorm):
                layer.weight.add_(1)
    return model.to(dtype)  # pyright: ignore[reportArgumentType]


def random_rows(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Examples of random tokens; the second half of each example is supervised."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        input_ids = torch.randint(vocabulary, (length,), generator=random).tolist()
        prompt = length // 2
        rows.append({"input_ids": input_ids, "labels": [NOT_SUPERVISED] * prompt + input_ids[prompt:]})
    return rows


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch whose tensors are on the device."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
