"""The ways to make a run: what each takes of a card, the host, the disk and time, and which of them fit."""

import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from training.common.console import bytes_text, duration
from training.common.options import Options
from training.cost.flops import Tokens
from training.cost.memory import (
    DEEPSPEED_ADAM_BYTES,
    Adapter,
    Memory,
    MicroBatch,
    Shapes,
    empty_model,
    memory_of,
    shapes_of,
)
from training.data.examples import Examples
from training.data.micro_batches import MicroBatches
from training.model.load import fitted_rows, read_config
from training.model.packing_trial import why_padded

# The peak of an A100 in bf16, without sparsity (NVIDIA's data sheet), and the share of it that a run is
# assumed to reach.
TFLOPS, UTILIZATION = 312.0, 0.4

# Bytes of a card that a run cannot use: some CUDA takes, some the allocator wastes; where several cards
# exchange gradients, NCCL takes as much again for its buffers. Assumed, not measured.
SET_ASIDE, FOR_EXCHANGE = 1_000_000_000, 1_000_000_000

# `reduce_bucket_size` of our ZeRO-2 configurations; "auto" in those of ZeRO-3 is the hidden size squared.
ZERO2_BUCKET = 200_000_000

# The rank of the adapter in a plan without --lora-rank.
LORA_RANK = 16

# How many tokens the time is computed for where there is no data.
ASSUMED_TOKENS = 1_000_000

# Our configurations by ZeRO stage and offload of the optimizer, the quickest first.
CONFIGS = {
    (2, False): "config/deepspeed_zero2_bf16_no_offload.json",
    (3, False): "config/deepspeed_zero3_bf16_no_offload.json",
    (2, True): "config/deepspeed_zero2_bf16.json",
    (3, True): "config/deepspeed_zero3_bf16.json",
}


class Machine(NamedTuple):
    """The cards of a box, or the processes of a machine without cards."""

    cards: int
    memory: int  # bytes of each card
    tflops: float = TFLOPS
    utilization: float = UTILIZATION

    @property
    def set_aside(self) -> int:
        """Bytes of each card that the run cannot use."""
        return SET_ASIDE + (FOR_EXCHANGE if self.cards > 1 else 0)


def this_machine(ranks: int) -> Machine:
    """The machine that this runs on. Without cards, each of `ranks` processes has its share of the memory."""
    if torch.cuda.is_available():
        return Machine(ranks, torch.cuda.get_device_properties(0).total_memory)
    return Machine(ranks, psutil.virtual_memory().total // ranks)


class Work(NamedTuple):
    """What a run computes: its longest micro-batch, and all its tokens."""

    longest: MicroBatch
    supervised: int  # supervised tokens of the longest micro-batch
    tokens: Tokens  # of the whole run
    assumption: str = ""  # what the plan says of the micro-batch where there is no data


class Way(NamedTuple):
    """One way of making the run."""

    name: str
    options: str  # what the trainer's command line needs for it
    memory: Memory
    checkpoint: int  # bytes of one checkpoint
    flops: int  # of the whole run


def plan(
    options: Options,
    tokenizer: PreTrainedTokenizerFast,
    new_tokens: Collection[int],
    examples: Examples | None,
    machine: Machine,
) -> Iterator[str]:
    """The plan as lines of text.

    options: the trainer's. new_tokens: ids that the input model's own tokenizer does not have.
    examples: the ones to train on; None stands for examples of --max-length. Raises UserError for an
    --lora-target that no layer has.
    """
    config = fitted_config(options.input_model, tokenizer)
    packed = why_padded(config, options.max_length) is None
    work = work_of(options, examples, machine.cards, packed)
    ways = list(ways_of(options, config, new_tokens, work, machine.cards, packed))
    parameters = empty_model(config, torch.float32, packed).num_parameters()
    yield (
        f"{options.input_model}: {parameters / 1e6:,.1f} M parameters, vocabulary {config.vocab_size:,}; "
        f"{machine.cards} x {bytes_text(machine.memory)}"
    )
    longest = work.longest
    note = work.assumption
    yield f"longest micro-batch: {longest.tokens:,} tokens in {longest.examples:,} example(s){note}"
    yield f"GB, computed; {bytes_text(machine.set_aside)} of each card is set aside"
    yield from _table(ways, machine)
    yield "peak: weights, optimizer, gradients, and the larger of activations, head and exchanged, or step"

    best = next((way for way in ways if does_fit(way, machine)), None)
    if best is None:
        yield "none fits: more cards, or a lower --per-device-train-batch-size or --max-length, would help"
        return
    yield f"take: {best.options} ({best.name}; {bytes_text(best.memory.host)} of host memory)"
    seconds = best.flops / (machine.cards * machine.tflops * 1e12 * machine.utilization)
    yield (
        f"time: {duration(seconds)} for {work.tokens.total:,} tokens, {best.flops:.2e} FLOPs, at "
        f"{machine.utilization:.0%} of {machine.tflops:g} TFLOP/s a card"
    )


def _table(ways: list[Way], machine: Machine) -> Iterator[str]:
    name_width = max(len(way.name) for way in ways)
    columns = [name for name in Memory._fields if name not in ("offloaded", "loading")]
    yield " ".join(
        [" " * name_width, *(f"{name:>11}" for name in [*columns, "peak", "", "host", "checkpoint"])]
    )
    for way in ways:
        of_card = [f"{getattr(way.memory, name) / 1e9:11.1f}" for name in [*columns, "peak"]]
        fits = f"{'fits' if does_fit(way, machine) else '-':>11}"
        rest = [f"{count / 1e9:11.1f}" for count in (way.memory.host, way.checkpoint)]
        yield " ".join([f"{way.name:{name_width}}", *of_card, fits, *rest])


def fitted_config(path: str, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """A model's configuration with an embedding row for every token."""
    config = read_config(path)
    config.vocab_size = fitted_rows(config.vocab_size, tokenizer)
    return config


def does_fit(way: Way, machine: Machine) -> bool:
    return way.memory.peak + machine.set_aside <= machine.memory


def work_of(options: Options, examples: Examples | None, cards: int, packed: bool) -> Work:
    """What the longest micro-batch of the run holds, and all micro-batches together."""
    if examples is None:
        if options.tokens_per_batch:
            count = max(1, options.tokens_per_batch // options.max_length)
        else:
            count = options.micro_batch["batch_size"]
        longest = MicroBatch(count, options.max_length)
        pairs = ASSUMED_TOKENS * (options.max_length + 1) // 2
        tokens = Tokens(ASSUMED_TOKENS, ASSUMED_TOKENS, 0, pairs)
        assumption = " of --max-length, all supervised: there is no --data-path"
        return Work(longest, longest.tokens, tokens, assumption)
    sampler = MicroBatches(
        examples.lengths, rank=0, world_size=cards, seed=options.seed, **options.micro_batch
    )
    steps = -(-len(sampler) // options.gradient_accumulation_steps)
    epochs = options.max_steps / steps if options.max_steps else options.epochs
    longest = MicroBatch(1, 1)
    for epoch in range(math.ceil(epochs)):
        for batch in sampler.of_all_ranks(epoch, 0, len(sampler)):
            lengths = examples.lengths[batch]
            length = int(-(-lengths.sum() // len(batch)) if packed else lengths.max())
            longest = max(longest, MicroBatch(len(batch), length), key=lambda batch: batch.tokens)
    kept = [file.summary["kept"] for file in examples.files]
    supervised_share = sum(file["learnt"] for file in kept) / sum(file["tokens"] for file in kept)
    total = int(examples.lengths.sum() * epochs)
    pairs = int((examples.lengths * (examples.lengths + 1) // 2).sum() * epochs)
    supervised = int(longest.tokens * supervised_share) if packed else longest.tokens
    return Work(longest, supervised, Tokens(total, int(total * supervised_share), 0, pairs))


def ways_of(
    options: Options, config: PretrainedConfig, new: Collection[int], work: Work, cards: int, packed: bool
) -> Iterator[Way]:
    """The ways: all weights, unless the options ask for an adapter, then an adapter; the quickest first."""
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    rank = options.lora_rank or LORA_RANK
    adapter = Adapter(rank, 2 * rank, options.lora_dropout, options.lora_target)  # alpha costs nothing
    of_adapter = shapes_of(config, work.longest, dtype, packed, adapter, new)
    if not options.lora_rank:
        of_all = shapes_of(config, work.longest, dtype, packed)
        for stage, offload in CONFIGS:
            yield _way("all weights", "", of_all, options, work, cards, stage, offload)
    lora = f"--lora-rank {rank} "
    if not options.load_in_4bit:
        for stage, offload in CONFIGS:
            yield _way(f"LoRA {rank}", lora, of_adapter, options, work, cards, stage, offload)
    lora += "--load-in-4bit "
    yield _way(f"LoRA {rank}, 4 bits", lora, of_adapter, options, work, cards, 2, False, in_4_bits=True)


def _way(
    name: str,
    adapter: str,
    shapes: Shapes,
    options: Options,
    work: Work,
    cards: int,
    stage: int,
    offload: bool,
    in_4_bits: bool = False,
) -> Way:
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    memory = memory_of(
        shapes,
        stage=stage,
        offload=offload,
        ranks=cards,
        dtype=dtype,
        checkpointing=options.gradient_checkpointing,
        supervised=work.supervised,
        bucket=ZERO2_BUCKET if stage == 2 else shapes.hidden_size**2,
        in_4_bits=in_4_bits,
    )
    flops = shapes.products.flops(work.tokens)
    if options.gradient_checkpointing:
        flops += shapes.products.flops_of_checkpointing(work.tokens)
    weights = shapes.trainable * dtype.itemsize
    return Way(
        name=f"{name}, ZeRO-{stage}{', offload' if offload else ''}",
        options=f"{adapter}--deepspeed {CONFIGS[stage, offload]}",
        memory=memory,
        checkpoint=weights
        if options.save_only_model
        else 2 * weights + DEEPSPEED_ADAM_BYTES * shapes.trainable,
        flops=flops,
    )
