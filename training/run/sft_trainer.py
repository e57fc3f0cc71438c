"""transformers' Trainer with our batches, learning rate, evaluation loss, speed and checkpoints.

What a step computes (forward, the loss over the supervised tokens of the whole batch, backward, clipping,
AdamW, the schedule) is written out in some forty lines in tests/plain_loop.py; a test compares the losses.
"""

import math
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn

import torch
from accelerate.utils import send_to_device
from torch import distributed as dist
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from training.common.console import bar, evaluation_prefix, log_line, say
from training.common.errors import UserError, first_line
from training.common.options import WarmupShape
from training.consts import NOT_SUPERVISED
from training.data.examples import Examples
from training.data.micro_batches import MicroBatches
from training.model.lora import has_adapter, remove_pefts_card
from training.model.model_card import PICTURE
from training.model.save import write_older_names
from training.run.card_memory import Planned, peak_memory
from training.run.checkpoints import CheckpointWriter, find_checkpoints
from training.run.curves import draw_curves
from training.run.eval_answers import answer_held_out_prompts
from training.run.launch import build_optimizer_operation
from training.run.process_group import control_group, limit_collectives, tells_of_lost_rank
from training.run.reporters import add_reporters
from training.run.schedule import apply_schedule, make_schedule
from training.run.speed import Speed, count_tokens
from training.run.stopping import StopRequest
from training.text.tokenizer import save_tokenizer

# A loss that is SPIKE_FACTOR times the mean of the SPIKE_WINDOW log lines before it is reported.
SPIKE_FACTOR, SPIKE_WINDOW = 2, 10


class Batches(DataLoader):
    """A loader of micro-batches; transformers tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class StepCallback(TrainerCallback):
    """What is done at the beginning of training, after each optimizer step, and after each save.

    transformers calls `on_step_end` before it logs, evaluates and saves, and `on_save` after it has saved.
    """

    def __init__(self, trainer: "SFTTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        limit_collectives(timedelta(seconds=args.ddp_timeout), but=self._trainer.checkpoints.waiting_group)
        self._trainer.keep_to_arguments(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.check_step(control)
        control.should_log |= control.should_training_stop  # the last step is always logged
        if control.should_save:  # what transformers writes is not yet a checkpoint of this run
            args.output_dir = str(self._trainer.checkpoints.place(state.global_step))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.complete_checkpoint()
        args.output_dir = str(self._trainer.run_dir)


class SFTTrainer(Trainer):
    """Normalises the loss by the supervised tokens of the whole global batch, in training and in evaluation.

    In training that is transformers' own doing (`num_items_in_batch`, summed over accumulation and ranks).

    args.output_dir: the run directory, `run_dir` from then on; while a checkpoint is saved, args.output_dir
    is a directory in it.
    eval_dataset: what to evaluate on, by name: each gets a log entry of its own. The name of held-out rows is
    "", which one set of examples without a name has as well.
    tokenizer: saved into each checkpoint, so that one can talk to it.
    tokens_per_batch: fill micro-batches by tokens, instead of args.per_device_train_batch_size examples each.
    stop_request: looked at after each step; where a rank has one, all save and stop there, and `stopped_by`
    says why.
    save_total_limit: how many complete checkpoints to keep, or None for all; args must have none.
    warmup_shape: how the learning rate rises over args.warmup_steps.
    planned: what the run is computed to take of a card.
    """

    def __init__(
        self,
        *,
        train_dataset: Examples,
        eval_dataset: Examples | Mapping[str, Examples] | None,
        tokenizer: PreTrainedTokenizerFast,
        tokens_per_batch: int | None = None,
        stop_request: StopRequest | None = None,
        save_total_limit: int | None = None,
        warmup_shape: WarmupShape = "linear",
        planned: Planned | None = None,
        **kwargs: Any,
    ) -> None:
        self.evaluated = (
            {"": eval_dataset} if isinstance(eval_dataset, Examples) else dict(eval_dataset or {})
        )
        super().__init__(train_dataset=train_dataset, eval_dataset=self.evaluated or None, **kwargs)
        # Not transformers' processing_class, for which it would set the model's padding and bos tokens.
        self.tokenizer = tokenizer
        self.remove_callback(PrinterCallback)
        self.add_callback(StepCallback(self))  # after transformers' own, which decides what follows a step
        self.run_dir = Path(self.args.output_dir)
        self.save_total_limit, self.warmup_shape, self.planned = save_total_limit, warmup_shape, planned
        self._peak_is_said = False
        self.checkpoints = CheckpointWriter(self.run_dir, self)
        self.tokens_per_batch = tokens_per_batch
        self.stop_request = stop_request or StopRequest()
        self.stopped_by: str | None = None
        self.speed = Speed(self)
        add_reporters(self)
        self._step_loss, self._gradient_norm = torch.tensor(0.0), 0.0

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def get_batch_samples(self, *args: Any) -> tuple[list, torch.Tensor | None]:
        """No batches once all steps are taken: transformers would take one more in a continued run."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args)

    def get_train_dataloader(self) -> DataLoader:
        batch_limit = (
            {"tokens_per_batch": self.tokens_per_batch}
            if self.tokens_per_batch
            else {"batch_size": self.args.per_device_train_batch_size}
        )
        return self._batches(self.train_dataset, seed=self.args.seed, **batch_limit)

    def get_eval_dataloader(self, eval_dataset: Examples) -> DataLoader:
        return self._batches(eval_dataset, batch_size=self.args.per_device_eval_batch_size)

    def _batches(self, examples: Examples, **settings: int) -> Batches:
        sampler = MicroBatches(
            examples.lengths, rank=self.args.process_index, world_size=self.args.world_size, **settings
        )
        return Batches(examples, batch_sampler=sampler, collate_fn=self.data_collator)

    def train(self, *args: Any, **kwargs: Any):
        """Train as transformers does, after measuring how fast the machine multiplies."""
        self.lr_scheduler = None  # made again, for the steps of this call
        with bar() as self._bar:
            try:
                self.speed.start()
                if self.is_deepspeed_enabled:
                    build_optimizer_operation(self.args.hf_deepspeed_config.config)
                self._control_group = control_group(self.args.ddp_timeout)
                with self.checkpoints:
                    return super().train(*args, **kwargs)
            except RuntimeError as error:
                if not tells_of_lost_rank(error):
                    raise
                raise UserError(
                    f"another rank ended, or did not answer within --ddp-timeout {self.args.ddp_timeout} "
                    f"seconds ({first_line(error)}); look for its error, and continue by --resume"
                ) from None

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = make_schedule(
                self.args, optimizer or self.optimizer, num_training_steps, self.warmup_shape
            )
        return self.lr_scheduler

    def keep_to_arguments(self, state: TrainerState) -> None:
        """Have the learning rate and the intervals of this start, where a checkpoint has brought others."""
        args = self.args
        state.logging_steps, state.eval_steps, state.save_steps = (
            args.logging_steps, args.eval_steps, args.save_steps
        )  # fmt: skip
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # DeepSpeed's wrapper has ours
        apply_schedule(scheduler, self.optimizer, args.learning_rate)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args) -> torch.Tensor:
        self.speed.throughput.tokens += count_tokens(inputs)
        # Read before the step: DeepSpeed takes it, and moves the schedule on, inside its backward call.
        self._applied_rate = self.optimizer.param_groups[0]["lr"]
        loss = super().training_step(model, inputs, *args)
        self._step_loss = self._step_loss + loss  # of all micro-batches of the optimizer step
        if self.accelerator.sync_gradients and not self.is_deepspeed_enabled:  # before they are clipped
            gradients = (weight.grad for weight in model.parameters() if weight.grad is not None)
            self._gradient_norm = float(get_total_norm(gradients))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {"learning_rate": self._applied_rate} | self.speed.entry()
            if not self._peak_is_said:
                logs |= peak_memory(self, self.planned)
                self._peak_is_said = True
            before = [entry["loss"] for entry in self.state.log_history if "loss" in entry][-SPIKE_WINDOW:]
            if len(before) == SPIKE_WINDOW and logs["loss"] > SPIKE_FACTOR * mean(before):
                say(
                    f"WARNING: step {self.state.global_step}: the loss is {logs['loss'] / mean(before):.1f} "
                    f"times the mean of the {SPIKE_WINDOW} log lines before"
                )
        super().log(logs, start_time)
        say(f"step {self.state.global_step}/{self.state.max_steps}  {log_line(logs)}")

    def sum_over_ranks(self, *values: float) -> list[float]:
        """Each value's sum over the ranks."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(sums, reduction="sum").tolist()

    def evaluate(self, ignore_keys: list[str] | None = None) -> dict[str, float]:
        """Evaluate the model on all that is in `evaluated`, one after another, and draw the curves."""
        metrics: dict[str, float] = {}
        with self.speed.throughput.paused():
            for name, examples in self.evaluated.items():
                metrics |= super().evaluate(examples, ignore_keys, evaluation_prefix(name))
            is_last = self.state.global_step >= self.state.max_steps  # then the report draws them
            if self.is_world_process_zero() and not is_last:
                draw_curves(self.state.log_history, self.run_dir / PICTURE)
            return metrics

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, which begins each checkpoint with this call, on all ranks."""
        is_checkpoint = self.args.output_dir != str(self.run_dir)
        if is_checkpoint:
            self.speed.throughput.pause()
            self.checkpoints.begin(self.state.global_step)
        super().save_model(*args, **kwargs)
        if is_checkpoint:  # DeepSpeed's own save comes next, in which all ranks meet within --ddp-timeout
            self.checkpoints.wait_for_all()

    def complete_checkpoint(self) -> None:
        """Make a checkpoint of what transformers has saved, and start the speed's clock again."""
        if self.args.should_save:
            save_tokenizer(self.tokenizer, self.checkpoints.directory)
            if has_adapter(self.model):
                remove_pefts_card(self.checkpoints.directory)
            else:
                write_older_names(self.checkpoints.directory)
        self.checkpoints.complete()
        self.stop_request.goes_on_from = self.state.global_step
        self.speed.throughput.go_on()

    def check_step(self, control: TrainerControl) -> None:
        """Look on all ranks whether to go on, before the step counts for anything.

        Raises UserError where the loss or the gradient's norm is NaN or infinite. Where a rank is asked to
        stop, has all of them save and stop.
        """
        if self.is_deepspeed_enabled:
            self._gradient_norm = float(self.deepspeed.get_global_grad_norm() or 0)
        is_broken = not math.isfinite(float(self._step_loss)) or not math.isfinite(self._gradient_norm)
        any_broken, any_stop = self._on_any_rank(is_broken, self.stop_request.reason is not None)
        if any_broken:
            self._refuse_step()
        self._step_loss = torch.tensor(0.0)
        if any_stop and not self.stopped_by and self.state.global_step < self.state.max_steps:
            self.stopped_by = self.stop_request.reason or "another rank's signal"
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # whoever asked may not wait for that
        self._bar.total, self._bar.n = self.state.max_steps, self.state.global_step
        self._bar.refresh()

    def _on_any_rank(self, *flags: bool) -> list[bool]:
        together = torch.tensor(flags, dtype=torch.int32)
        if self._control_group:
            dist.all_reduce(together, dist.ReduceOp.MAX, group=self._control_group)
        return together.bool().tolist()

    def _refuse_step(self) -> NoReturn:
        # As in the log, the mean over the ranks, each of which scales its loss by their number.
        loss = self.sum_over_ranks(float(self._step_loss))[0] / self.args.world_size
        step = self.state.global_step
        newest = find_checkpoints(self.run_dir)[0][-1:]
        good = f"{newest[0].name} is the last good one" if newest else "there is no checkpoint yet"
        raise UserError(
            f"step {step}: the loss is {loss:g} and the gradient's norm {self._gradient_norm:g}, on the rows "
            f"above; {good}; look at the rows, or take a lower --lr",
            details=[f"in the batch of step {step}: {place}" for place in self._places_of_step(step)],
        )

    def _places_of_step(self, step: int) -> list[str]:
        """`FILE:LINE` of all ranks' examples in optimizer step `step`, 1 being the first."""
        accumulation = self.args.gradient_accumulation_steps
        batches = self.callback_handler.train_dataloader.batch_sampler
        steps_an_epoch = -(-len(batches) // accumulation)
        epoch, in_epoch = divmod(step - 1, steps_an_epoch)
        first = in_epoch * accumulation
        of_step = batches.of_all_ranks(epoch, first, first + accumulation)
        return [self.train_dataset.place(example) for batch in of_step for example in batch]

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        """Compute the mean loss over all supervised tokens, and have the model answer a few of the prompts.

        The loss is summed over tokens and ranks before it is divided, so that it does not depend on their
        batches.
        """
        model = self.model_wrapped
        model.eval()
        loss_and_tokens = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in dataloader:
            batch = send_to_device(batch, self.args.device)
            tokens = (batch["labels"] != NOT_SUPERVISED).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                batch_loss = model(**batch).loss
            # The mean over no supervised tokens may be NaN.
            loss = torch.where(tokens > 0, batch_loss.double() * tokens, 0.0)
            loss_and_tokens += torch.stack([loss, tokens.double()])
        loss, tokens = self.accelerator.reduce(loss_and_tokens, reduction="sum").tolist()
        with self.compute_loss_context_manager():
            answers = answer_held_out_prompts(
                self.accelerator.unwrap_model(model), self.tokenizer, dataloader.dataset
            )
        say(f"for example: {answers.text}")
        metrics = {
            f"{metric_key_prefix}_loss": loss / tokens,
            f"{metric_key_prefix}_tokens": int(tokens),
            f"{metric_key_prefix}_ended_share": answers.ended,
            f"{metric_key_prefix}_length_share": answers.length,
            f"{metric_key_prefix}_repeated_share": answers.repeated,
            **peak_memory(self, self.planned),
        }
        return EvalLoopOutput(
            predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset)
        )
