"""One pass over the longest micro-batch before step 1, so that memory that will not do is found at once."""

import math
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.consts import NOT_SUPERVISED
from training.data.micro_batches import MicroBatches
from training.model.load import takes_packed_batches
from training.run.card_memory import say_trial


class LongestBatchTrial(TrainerCallback):
    """Tries the longest micro-batch when training begins. It comes after all that prepares the first step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_wanted(args.device):
            say_trial(self._trainer, try_longest_batch(self._trainer), self._trainer.planned)


def is_wanted(device: torch.device) -> bool:
    """Whether to try the longest micro-batch: on a card, whose memory has a hard end."""
    return device.type == "cuda"


def try_longest_batch(trainer: Trainer) -> int:
    """Take each rank's longest micro-batch of the run once forward and backward. For all ranks together.

    Returns how many tokens this rank's has. The trainer's model is prepared for training. The loss counts 0
    times, no optimizer step is taken, and random states and gradients are afterwards what they were: the
    run's losses do not change by a bit.
    """
    device = trainer.args.device
    batch = longest_batch(trainer)
    inputs = send_to_device(trainer.data_collator([trainer.train_dataset[i] for i in batch]), device)
    supervised = (inputs["labels"] != NOT_SUPERVISED).sum()
    model = trainer.model_wrapped
    model.train()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        trainer.accelerator.no_sync(model),  # so that the ranks' first exchange is that of the first step
    ):
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, inputs, num_items_in_batch=supervised)
        if trainer.is_deepspeed_enabled:
            # Not the end of an accumulation, so that DeepSpeed makes nothing ready for a step.
            trainer.deepspeed.set_gradient_accumulation_boundary(False)
            trainer.deepspeed.backward(0 * loss, scale_wrt_gas=False)
        else:
            (0 * loss).backward()
    forget_gradients(trainer)
    return int(trainer.train_dataset.lengths[batch].sum())


def longest_batch(trainer: Trainer) -> list[int]:
    """The longest micro-batch that this rank gets in the run, as indices of examples."""
    batches = trainer.get_train_dataloader().batch_sampler
    assert isinstance(batches, MicroBatches)
    steps_an_epoch = -(-len(batches) // trainer.args.gradient_accumulation_steps)
    epochs = math.ceil(trainer.state.max_steps / steps_an_epoch)
    longest = batches.longest(epochs, padded=not takes_packed_batches(trainer.model))
    return longest or [int(trainer.train_dataset.lengths.argmin())]  # a rank without a share of the data


def forget_gradients(trainer: Trainer) -> None:
    """Drop all gradients, those that DeepSpeed's optimizers keep beside the weights' too."""
    trainer.model.zero_grad(set_to_none=True)
    if not trainer.is_deepspeed_enabled:
        return
    from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID, DeepSpeedZeroOptimizer

    optimizer = trainer.deepspeed.optimizer
    optimizer.zero_grad()  # ZeRO-3's next backward pass then writes over what it keeps
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        optimizer.all_grad_tensors.clear()
        optimizer.averaged_gradients.clear()
        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID  # so that what is offloaded is written over, too
