import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from tests.conftest import SINGLE_TURN
from training.batching import collate, collate_padded
from training.dataset import load_encoded
from training.model import load_model
from training.sft_trainer import SFTTrainer, rate_factor


def make_trainer(base: str, tokenizer, directory: Path, rows: list, **arguments) -> SFTTrainer:
    args = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        remove_unused_columns=False,
        **{"lr_scheduler_type": "constant", **arguments},
    )
    model = load_model(base, tokenizer, dtype=torch.float32)
    return SFTTrainer(
        model=model, args=args, data_collator=collate, train_dataset=rows, eval_dataset=rows[:7]
    )


@pytest.fixture(scope="module")
def rows(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list:
    return list(load_encoded(str(SINGLE_TURN), tokenizer, 2048, tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, *((1 + math.cos(math.pi * i / 4)) / 2 for i in range(4))]),
    ],
)
def test_the_schedules_as_drawn(schedule: str, expected: list[float]) -> None:
    factors = [rate_factor(step, schedule, warmup_steps=4, total_steps=8) for step in range(8)]
    assert factors == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert rate_factor(0, "cosine", warmup_steps=0, total_steps=8) == 1


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_logged_rate_is_the_one_that_was_applied(base, tokenizer, tmp_path, rows, accumulation) -> None:
    trainer = make_trainer(
        base, tokenizer, tmp_path, rows[:16], max_steps=6, warmup_steps=3, learning_rate=1e-3,
        lr_scheduler_type="linear", per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    applied = []
    trainer.create_optimizer().register_step_pre_hook(
        lambda optimizer, args, kwargs: applied.append(optimizer.param_groups[0]["lr"])
    )
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(applied) == 6
    assert logged == pytest.approx(applied)
    assert applied == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])


def test_accumulated_micro_batches_weigh_tokens_as_one_batch_does(base, tokenizer, tmp_path, rows) -> None:
    def first_step(batch_size: int, accumulation: int) -> tuple[float, float]:
        trainer = make_trainer(
            base, tokenizer, tmp_path, rows[:8], max_steps=1, warmup_steps=0,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    lengths = {int((row["labels"] >= 0).sum()) for row in rows[:8]}
    assert len(lengths) > 4  # equal lengths would hide a mean of means
    whole = first_step(8, 1)
    assert first_step(2, 4) == pytest.approx(whole, rel=1e-4)
    assert first_step(1, 8) == pytest.approx(whole, rel=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base)
    fitted = load_model(base, tokenizer, dtype=torch.float32)
    plain.load_state_dict(fitted.state_dict())
    assert plain(**collate_padded(rows[:8])).loss.item() == pytest.approx(whole[0], rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_evaluation_loss_is_the_mean_over_held_out_tokens(
    base, tokenizer, tmp_path, rows, batch_size
) -> None:
    trainer = make_trainer(base, tokenizer, tmp_path, rows, per_device_eval_batch_size=batch_size)
    model = load_model(base, tokenizer, dtype=torch.float32)
    total, tokens = 0.0, 0
    for row in rows[:7]:
        learnt = int(np.sum(row["labels"] >= 0))
        total += model(**collate([row])).loss.item() * learnt
        tokens += learnt
    metrics = trainer.evaluate()
    assert metrics["eval_tokens"] == tokens
    assert metrics["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_a_warm_up_longer_than_the_run_is_said(base, tokenizer, tmp_path, rows, capsys) -> None:
    make_trainer(base, tokenizer, tmp_path, rows[:2], max_steps=2, warmup_steps=8, learning_rate=1e-3).train()
    assert "WARNING: the warm-up takes 8 steps and the run only 2" in capsys.readouterr().out
