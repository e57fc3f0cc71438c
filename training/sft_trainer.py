"""transformers' Trainer with our learning rate schedule and an evaluation loss that is a mean over tokens."""

import math

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import ConcatDataset, DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from training.consts import NOT_LEARNT
from training.reporting import say

SCHEDULES = ("constant", "linear", "cosine")


def rate_factor(step: int, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """What the learning rate of optimizer step `step` (0 is the first) is multiplied by.

    It rises as (step + 1) / warmup_steps, so the first step learns something; then it stays at 1, or falls
    to 0 at `total_steps` along a line or half a cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    passed = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - passed if schedule == "linear" else (1.0 + math.cos(math.pi * passed)) / 2


class SFTTrainer(Trainer):
    """Normalises the loss by the learnt tokens of the whole global batch, in training and in evaluation.

    In training that is transformers' own doing (`num_items_in_batch`, summed over accumulation and ranks).
    """

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            schedule, warmup_steps = self.args.lr_scheduler_type.value, int(self.args.warmup_steps)
            if warmup_steps > num_training_steps:
                reached = self.args.learning_rate * num_training_steps / warmup_steps
                say(
                    f"WARNING: the warm-up takes {warmup_steps} steps and the run only {num_training_steps}: "
                    f"the learning rate ends at {reached:.3g} instead of {self.args.learning_rate:.3g}"
                )
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,
                lambda step: rate_factor(step, schedule, warmup_steps, num_training_steps),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        # Read before the step: DeepSpeed takes it, and moves the schedule on, inside its backward call.
        self._applied_rate = self.optimizer.param_groups[0]["lr"]
        return super().training_step(*args, **kwargs)

    def _get_learning_rate(self) -> float:
        """The rate of the latest step, which is what transformers logs."""
        return self._applied_rate

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Held-out batches, as many on every rank: rows without a learnt token fill up the last ones.

        accelerate would fill up with repeated rows, and count them twice.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        filler = {**rows[0], "labels": np.full_like(rows[0]["labels"], NOT_LEARNT)}
        missing = -len(rows) % (self.args.world_size * self.args.eval_batch_size)
        return super().get_eval_dataloader(ConcatDataset([rows, [filler] * missing]) if missing else rows)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        """The summed loss of all held-out tokens over their number, the same for any number of ranks."""
        model = self.model_wrapped
        model.eval()
        loss_and_tokens = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            tokens = (batch["labels"] != NOT_LEARNT).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                mean = model(**batch).loss
            # A batch of filler rows only has no mean.
            loss = torch.where(tokens > 0, mean.double() * tokens, 0.0)
            loss_and_tokens += torch.stack([loss, tokens.double()])
        loss, tokens = self.accelerator.reduce(loss_and_tokens, reduction="sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / tokens, f"{metric_key_prefix}_tokens": int(tokens)}
        return EvalLoopOutput(
            predictions=None, label_ids=None, metrics=metrics, num_samples=len(self.eval_dataset)
        )
