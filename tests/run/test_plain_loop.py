"""The trainer's losses and gradient norms equal the plain loop's on transformers' model with padding."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.lr_schedules import WarmupLR
from torch.optim.lr_scheduler import LambdaLR
from transformers import BloomForCausalLM

from tests.conftest import SINGLE_TURN
from tests.launching import ZERO2, values
from tests.plain_loop import Step, train
from tests.run.test_sft_trainer import make_trainer
from training.data.collate import collate_padded
from training.data.encoded import EncodedFile, load_encoded
from training.data.micro_batches import MicroBatches
from training.model.load import load_model
from training.run.schedule import rate_factor

STEPS, WARMUP, RATE, SEED = 6, 2, 3e-3, 515


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> EncodedFile:
    return load_encoded(str(SINGLE_TURN), tokenizer, 2048, tmp_path_factory.mktemp("cache"))


def linear_schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
    factor = partial(rate_factor, schedule="linear", warmup_steps=WARMUP, total_steps=STEPS)
    return LambdaLR(optimizer, factor)


def plain_steps(
    base: str,
    tokenizer,
    file: EncodedFile,
    ranks: int,
    accumulation: int,
    seed_of_rows: int = 0,
    schedule_of: Callable[[torch.optim.Optimizer], Any] = linear_schedule,
) -> list[Step]:
    """The plain loop's steps of the first epoch, with two examples a micro-batch in the trainer's order."""
    ours = load_model(base, tokenizer, dtype=torch.float32, seed=seed_of_rows)
    model = BloomForCausalLM(ours.config)
    model.load_state_dict(ours.state_dict())
    order = MicroBatches(file.lengths, batch_size=2, rank=0, world_size=ranks, seed=SEED)
    steps = [
        [
            [file[i] for i in batch]
            for batch in order.of_all_ranks(0, accumulation * step, accumulation * (step + 1))
        ]
        for step in range(STEPS)
    ]
    assert {len(step) for step in steps} == {ranks * accumulation}
    return train(model, steps, collate_padded, RATE, schedule_of)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_losses_and_norms_with_accumulation(
    base: str, tokenizer, tmp_path: Path, file: EncodedFile, accumulation: int
) -> None:
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, len(file), max_steps=STEPS, warmup_steps=WARMUP, learning_rate=RATE,
        lr_scheduler_type="linear", per_device_train_batch_size=2, seed=SEED,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.train()
    expected = plain_steps(base, tokenizer, file, 1, accumulation)
    assert max(step.grad_norm for step in expected) > 1  # so that they are clipped
    assert expected[0].loss - expected[-1].loss > 0.5
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in history] == pytest.approx([step.loss for step in expected], rel=1e-4)
    norms = [step.grad_norm for step in expected]
    assert [entry["grad_norm"] for entry in history] == pytest.approx(norms, rel=1e-3)


def test_losses_with_a_log_warm_up_are_those_that_deepspeeds_own_schedule_gives(
    base: str, tokenizer, tmp_path: Path, file: EncodedFile
) -> None:
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, len(file), max_steps=STEPS, warmup_steps=4, warmup_shape="log",
        learning_rate=RATE, per_device_train_batch_size=2, seed=SEED,
    )  # fmt: skip
    trainer.train()
    expected = plain_steps(
        base, tokenizer, file, 1, 1, schedule_of=lambda optimizer: WarmupLR(optimizer, 0.0, RATE, 4)
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([step.loss for step in expected], rel=1e-6)


# What the rate of each step is multiplied by in a run that goes on after step 3 with another schedule.
CHANGED_RATES = [0.5, 1, 1, 0.5 * math.log(3) / math.log(4), 0.5, 0.25]


def changed_schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: [*CHANGED_RATES, 0][step])


@pytest.mark.slow
def test_losses_and_norms_of_two_ranks_with_accumulation_and_a_changed_schedule_under_zero_2(
    base: str, tokenizer, forked, tmp_path: Path, file
) -> None:
    arguments = [
        "--deepspeed", ZERO2, "--no-bf16", "--data-path", str(SINGLE_TURN), "--input-model", base,
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--run-name", "run",
        "--test-size", "0", "--per-device-train-batch-size", "2", "--seed", str(SEED), "--save-steps", "3",
        "--gradient-accumulation-steps", "2", "--logging-steps", "1", "--no-gradient-checkpointing",
    ]  # fmt: skip
    first = ["--max-steps", "3", "--lr", str(RATE), "--warmup-steps", "2"]
    second = ["--max-steps", str(STEPS), "--lr", str(RATE / 2), "--warmup-steps", "4"]
    second += ["--warmup-shape", "log", "--lr-scheduler", "linear", "--resume"]
    for schedule in (first, second):
        launched = forked(2, *arguments, *schedule)
        assert launched.returncode == 0, launched.stderr
    expected = plain_steps(base, tokenizer, file, 2, 2, SEED, changed_schedule)
    rates = [RATE * factor for factor in CHANGED_RATES]
    assert values(tmp_path / "run", "learning_rate") == pytest.approx(rates)
    assert values(tmp_path / "run", "loss") == pytest.approx([step.loss for step in expected], rel=1e-4)
    norms = [step.grad_norm for step in expected]
    assert values(tmp_path / "run", "grad_norm") == pytest.approx(norms, rel=1e-3)
