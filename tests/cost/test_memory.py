"""The plan before a run: held to real models, to torch's counters and to DeepSpeed's estimators."""

from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from transformers import BloomConfig

from tests.tiny_models import make_llama, make_qwen
from training import ALLOCATOR
from training.cost.memory import (
    Adapter,
    MicroBatch,
    Shapes,
    States,
    memory_of,
    model_states,
    pinned_bytes,
    shapes_of,
)
from training.cost.ways import fitted_config
from training.data.collate import collate
from training.model.load import load_model
from training.model.lora import add_adapter
from training.text.tokenizer import load_tokenizer, new_tokens

ADAPTER = Adapter(rank=4, alpha=8, dropout=0.0, target="auto")

# bloomz-7b1-mt
BLOOMZ = BloomConfig(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32)


def kept_by(model: torch.nn.Module, **batch) -> int:
    """Bytes that a real forward pass keeps for the backward pass, without the weights and the head's part."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("adapter", [None, ADAPTER])
@pytest.mark.parametrize(
    ("architecture", "packed"), [("bloom", True), ("llama", True), ("qwen", True), ("llama", False)]
)
def test_what_is_counted_without_weights_is_what_a_real_model_has_and_keeps(
    base: str, tmp_path: Path, architecture: str, packed: bool, adapter: Adapter | None
) -> None:
    make = {"bloom": lambda _: base, "llama": make_llama, "qwen": make_qwen}[architecture]
    path = make(tmp_path / "tiny")
    tokenizer = load_tokenizer(path)
    new = new_tokens(path, tokenizer)
    model = load_model(path, tokenizer, dtype=torch.float32, packed=packed)
    if adapter:
        model = add_adapter(model, new, **adapter._asdict())
    batch = MicroBatch(examples=3, length=40)
    shapes = shapes_of(fitted_config(path, tokenizer), batch, torch.float32, packed, adapter, new)
    weights = list(model.parameters())
    assert shapes.trainable == sum(weight.numel() for weight in weights if weight.requires_grad)
    assert shapes.frozen == sum(weight.numel() for weight in weights if not weight.requires_grad)
    assert shapes.largest == max(weight.numel() for weight in weights)

    computed = shapes.outer_bytes + shapes.layers * shapes.block_bytes
    if packed:
        examples = [{"input_ids": [7] * batch.length, "labels": [7] * batch.length}] * batch.examples
        bare = model.get_base_model() if adapter else model
        bare.lm_head = torch.nn.Identity()
        bare.lm_head.forward = lambda hidden, *_, **__: hidden
        kept = kept_by(bare, **{name: value for name, value in collate(examples).items() if name != "labels"})
    else:
        bare = (model.get_base_model() if adapter else model).base_model
        ids = torch.full((batch.examples, batch.length), 7)
        padding = torch.ones_like(ids)
        padding[0, -1] = 0  # without any, the library passes no mask
        kept = kept_by(bare, input_ids=ids, attention_mask=padding, use_cache=False)
    assert computed == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("ranks", [1, 8])
def test_the_states_of_a_full_run_are_those_of_deepspeed_s_estimators(ranks: int) -> None:
    trained, largest = 7_069_016_064, 250_880 * 4_096
    size = {"ranks": ranks, "width": 2, "sum_width": 2}
    plain, offloaded = (
        model_states(trained, 0, largest, stage=2, offload=offload, **size) for offload in (False, True)
    )
    copied = 2 * trained // ranks  # what a step copies, which the estimators leave out
    _, card = estimate_zero2_model_states_mem_needs(trained, ranks, cpu_offload=False)
    assert plain.of_rank - copied == pytest.approx(card, rel=1e-6)
    _, card = estimate_zero2_model_states_mem_needs(trained, ranks, cpu_offload=True)
    assert offloaded.of_rank - 2 * largest == card  # which leave out the largest gradient's buffer

    plain, offloaded = (
        model_states(trained, 0, largest, stage=3, offload=offload, **size) for offload in (False, True)
    )
    _, card, _ = estimate_zero3_model_states_mem_needs(
        trained, largest, ranks, cpu_offload=False, cpu_offload_params=False
    )
    # The estimator has 18 bytes a weight, and so not the 2 of either the weights or their gradients.
    assert plain.of_rank - 2 * copied == pytest.approx(card, rel=1e-6)
    host, card, _ = estimate_zero3_model_states_mem_needs(
        trained, largest, ranks, cpu_offload=True, cpu_offload_params=False, additional_buffer_factor=1.3
    )
    assert (offloaded.of_rank, offloaded.offloaded) == pytest.approx((card, host), rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 8])
def test_gradients_that_are_added_up_in_float32_are_counted(ranks: int) -> None:
    trained, largest = 7_069_016_064, 250_880 * 4_096
    share = trained // ranks

    def states(stage: int, offload: bool, sum_width: int = 4) -> States:
        return model_states(
            trained, 0, largest, stage=stage, offload=offload, ranks=ranks, width=2, sum_width=sum_width
        )

    # Weights in bf16; the float32 weights, two moments and sums of this rank's share. A step copies nothing.
    assert states(2, offload=False).of_rank == 2 * trained + (3 * 4 + 4) * share
    # Sums in bf16 would be copied by a step, end to end and to float32.
    assert states(2, offload=False, sum_width=2).of_rank == 2 * trained + (3 * 4 + 2 + 2 + 4) * share
    # With offload, ZeRO-2 adds up on the card, and ZeRO-3 on the host.
    two, three = (states(stage, offload=True) for stage in (2, 3))
    assert two.of_rank == 2 * trained + 4 * share + 2 * largest
    assert three.of_rank == states(3, offload=True, sum_width=2).of_rank
    assert three.offloaded - states(3, offload=True, sum_width=2).offloaded == ranks * 4 * share


def test_pinned_memory_is_rounded_up_to_a_power_of_two_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", ALLOCATOR)
    assert pinned_bytes(2**26 - 5) == 2**26  # 64 MiB
    assert pinned_bytes(2**26 + 5) == 2**26 + 5
    size = {"stage": 2, "offload": True, "ranks": 8, "width": 2}
    as_asked = model_states(7_069_016_064, 0, 10**9, **size).offloaded
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert pinned_bytes(2**26 + 5) == 2**27
    share = 7_069_016_064 // 8
    # Of 2, 4 and 4 bytes a weight 1.77, 3.53 and 3.53 GB become 2 GiB and 4 GiB; of 2 GB, 2 GiB.
    more = 2 * (2**32 - 4 * share) + (2**31 - 2 * share) + (2**31 - 2 * 10**9)
    assert model_states(7_069_016_064, 0, 10**9, **size).offloaded - as_asked == 8 * more


@pytest.fixture(scope="module")
def bloomz() -> Shapes:
    return shapes_of(BLOOMZ, MicroBatch(8, 2048), torch.bfloat16, packed=True)


HOW = {
    "stage": 2,
    "offload": False,
    "ranks": 8,
    "dtype": torch.bfloat16,
    "supervised": 16384,
    "bucket": 2 * 10**8,
}


def test_bloomz_is_counted_from_its_configuration_alone(bloomz: Shapes) -> None:
    assert (bloomz.trainable, bloomz.frozen) == (7_069_016_064, 0)
    assert bloomz.hidden_states == 16384 * 4096 * 2


def test_what_makes_a_run_smaller_makes_its_plan_smaller(bloomz: Shapes) -> None:
    def peak(**other) -> int:
        return memory_of(bloomz, checkpointing=True, **(HOW | other)).peak

    assert peak() < memory_of(bloomz, checkpointing=False, **HOW).peak
    assert peak(ranks=16) < peak()
    assert peak(offload=True) < peak()
    assert peak(stage=3) < peak()
    assert peak(dtype=torch.float32) > peak()
