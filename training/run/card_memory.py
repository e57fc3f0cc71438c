"""What a run takes of its card: as planned, as measured, and what is said where there is no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast, Trainer

from training.common.console import bytes_text, say
from training.common.errors import UserError
from training.common.options import Options
from training.common.ranks import world_size
from training.cost.memory import ADAM_BYTES, Adapter, Memory, memory_of, shapes_of
from training.cost.ways import CONFIGS, ZERO2_BUCKET, fitted_config, this_machine, work_of
from training.data.examples import Examples
from training.model.packing_trial import why_padded
from training.run.deepspeed_values import offload_device, sum_width
from training.run.resume import Run
from training.text.tokenizer import NewTokens


class Planned(NamedTuple):
    """The bytes of a card that this run is planned to take.

    moments: those of Adam's two moments, which the optimizer makes room for in its first step.
    without_offload: where the optimizer is offloaded, what the run would take without that.
    """

    memory: Memory
    moments: int
    without_offload: Memory | None = None


def planned_memory(
    run: Run, tokenizer: PreTrainedTokenizerFast, new_tokens: NewTokens, training: Examples
) -> Planned:
    """What the plan (`training.plan`) computes for this run's own configuration."""
    options, config = run.options, run.deepspeed_config or {}
    zero = config.get("zero_optimization", {})
    # The plan knows stages 2 and 3; under stage 1 each card has all gradients, and takes somewhat more.
    stage = max(2, zero.get("stage", 0)) if run.deepspeed_config else 0
    is_offloaded = offload_device(config) != "none"
    ranks = world_size()
    model_config = fitted_config(options.input_model, tokenizer)
    packed = why_padded(model_config, options.max_length) is None
    work = work_of(options, training, ranks, packed)
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    adapter = None
    if options.lora_rank:
        adapter = Adapter(options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_target)
    shapes = shapes_of(model_config, work.longest, dtype, packed, adapter, new_tokens)
    bucket = zero.get("reduce_bucket_size", ZERO2_BUCKET)

    def memory(offload: bool) -> Memory:
        return memory_of(
            shapes,
            stage=stage,
            offload=offload,
            ranks=ranks,
            dtype=dtype,
            checkpointing=options.gradient_checkpointing,
            supervised=work.supervised,
            bucket=shapes.hidden_size**2 if bucket == "auto" else bucket,
            in_4_bits=options.load_in_4bit,
            sum_width=sum_width(config, dtype),
        )

    moments = 0 if is_offloaded else ADAM_BYTES * shapes.trainable // (ranks if stage else 1)
    return Planned(memory(is_offloaded), moments, memory(False) if is_offloaded else None)


def place_of_loading(run: Run, device: torch.device) -> dict[str, Any]:
    """Arguments by which transformers loads the weights straight to this rank's own card, not to the host.

    Empty where the card has no room for them twice, which DeepSpeed needs to lay them end to end, and under
    ZeRO-3, which hands out shares of them.
    """
    stage = (run.deepspeed_config or {}).get("zero_optimization", {}).get("stage", 0)
    if device.type != "cuda" or run.planned is None or stage == 3:
        return {}
    free, _ = torch.cuda.mem_get_info(device)
    return {"device_map": {"": str(device)}} if free >= 2 * run.planned.memory.weights else {}


def opening_advice(run: Run) -> list[str]:
    """Lines for the start of a run on a card: that its plan is too large, or that it needs no offload."""
    planned = run.planned
    if planned is None:
        return []
    free = free_memory()
    lines = []
    if planned.memory.peak > free:
        lines.append(
            f"WARNING: the plan is {bytes_text(planned.memory.peak)} of a card, of which {bytes_text(free)} "
            f"are free; if it runs out, {remedy(run.options)}"
        )
    machine = this_machine(world_size())
    stage = (run.deepspeed_config or {}).get("zero_optimization", {}).get("stage")
    without = planned.without_offload
    if without is not None and stage in (2, 3) and without.peak + machine.set_aside <= machine.memory:
        lines.append(
            f"this fits without offload, which is faster: {bytes_text(without.peak)} of a card's "
            f"{bytes_text(machine.memory)} (computed); take --deepspeed {CONFIGS[stage, False]}"
        )
    return lines


def free_memory() -> int:
    """The bytes of this rank's card that its process has or can have."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved()


def remedy(options: Options) -> str:
    """What a user can do about a card that is too small."""
    if options.tokens_per_batch:
        batch = "--tokens-per-batch"
    else:
        batch = "--per-device-train-batch-size (with more --gradient-accumulation-steps the losses stay)"
    checkpointing = "" if options.gradient_checkpointing else ", pass --gradient-checkpointing"
    return (
        f"lower {batch} or --max-length{checkpointing}, or take what fits by `python -m training.plan`: "
        "ZeRO-3, offload, or an adapter (--lora-rank)"
    )


@contextmanager
def out_of_memory_refused(run: Run) -> Iterator[None]:
    """A block of a run. Raises UserError where its card has no memory left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = " ".join(str(error).split()).split(" Including ")[0].rstrip(".")
        planned = f"; the plan is {bytes_text(run.planned.memory.peak)}" if run.planned else ""
        place = f"at step {run.steps_taken() + 1}" if run.steps_taken else "before step 1"
        raise UserError(f"out of memory {place}: {asked}{planned}; {remedy(run.options)}") from None


def peak_memory(trainer: Trainer, planned: Planned | None) -> dict[str, float]:
    """For a log entry: the most bytes that a card had allocated and reserved so far, and the plan's figure.

    Of all ranks' cards it is the one with the most. Empty without a card. For all ranks together.
    """
    device = trainer.args.device
    if device.type != "cuda":
        return {}
    here = [torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
    of_all = trainer.accelerator.gather(torch.tensor([here], dtype=torch.float64, device=device))
    allocated, reserved = of_all.max(dim=0).values.tolist()
    entry = {"card_allocated": allocated, "card_reserved": reserved}
    return entry | ({"card_planned": float(planned.memory.peak)} if planned else {})


def say_trial(trainer: Trainer, tokens: int, planned: Planned | None) -> None:
    """Say what the longest micro-batch took, and what the first step will add. For all ranks together.

    tokens: of this rank's longest micro-batch.
    """
    measured = peak_memory(trainer, planned)
    if not measured:
        return
    optimizer = trainer.deepspeed.basic_optimizer if trainer.is_deepspeed_enabled else trainer.optimizer
    moments = planned.moments if planned and not optimizer.state else 0
    step = torch.cuda.memory_allocated() + (planned.memory.step if planned else 0)
    needed = moments + max(measured["card_allocated"], step)
    free = free_memory()
    adds = f"; the first step adds {bytes_text(moments)} for Adam's moments (computed)" if moments else ""
    say(
        f"memory    the longest micro-batch, {tokens:,} tokens, took "
        f"{bytes_text(measured['card_allocated'])} of the {bytes_text(free)} that this run can have{adds}"
    )
    if needed > free:
        say(f"WARNING: that is {bytes_text(needed)} together, more than the card has for it")
