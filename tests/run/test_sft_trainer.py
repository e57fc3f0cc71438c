import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from tests.conftest import SINGLE_TURN
from training.common.errors import UserError
from training.data.collate import collate, collate_padded
from training.data.encoded import EncodedFile, load_encoded
from training.data.examples import Examples
from training.model.load import load_model
from training.run import speed
from training.run.sft_trainer import SFTTrainer


def make_trainer(
    base: str,
    tokenizer,
    directory: Path,
    file: EncodedFile,
    count: int,
    tokens_per_batch=None,
    keep=None,
    warmup_shape="linear",
    **arguments,
) -> SFTTrainer:
    args = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        **{
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            **arguments,
        },
    )
    model = load_model(base, tokenizer, dtype=torch.float32)
    return SFTTrainer(
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=Examples([file], range(count)),
        eval_dataset=Examples([file], range(7)),
        tokenizer=tokenizer,
        tokens_per_batch=tokens_per_batch,
        save_total_limit=keep,
        warmup_shape=warmup_shape,
    )


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> EncodedFile:
    return load_encoded(str(SINGLE_TURN), tokenizer, 2048, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_logged_rate_is_the_one_that_was_applied(base, tokenizer, tmp_path, file, accumulation) -> None:
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, 16, max_steps=6, warmup_steps=3, learning_rate=1e-3,
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


def test_accumulated_micro_batches_weigh_tokens_as_one_batch_does(base, tokenizer, tmp_path, file) -> None:
    def first_step(batch_size: int, accumulation: int) -> tuple[float, float]:
        trainer = make_trainer(
            base, tokenizer, tmp_path, file, 8, max_steps=1, warmup_steps=0,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    first = [file[i] for i in range(8)]
    lengths = {int((row["labels"] >= 0).sum()) for row in first}
    assert len(lengths) > 4  # equal lengths would hide a mean of means
    whole = first_step(8, 1)
    assert first_step(2, 4) == pytest.approx(whole, rel=1e-4)
    assert first_step(1, 8) == pytest.approx(whole, rel=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base)
    fitted = load_model(base, tokenizer, dtype=torch.float32)
    plain.load_state_dict(fitted.state_dict())
    assert plain(**collate_padded(first)).loss.item() == pytest.approx(whole[0], rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_evaluation_loss_is_the_mean_over_held_out_tokens(
    base, tokenizer, tmp_path, file, batch_size
) -> None:
    trainer = make_trainer(base, tokenizer, tmp_path, file, len(file), per_device_eval_batch_size=batch_size)
    model = load_model(base, tokenizer, dtype=torch.float32)
    total, tokens = 0.0, 0
    for row in (file[i] for i in range(7)):
        supervised = int(np.sum(row["labels"] >= 0))
        total += model(**collate([row])).loss.item() * supervised
        tokens += supervised
    metrics = trainer.evaluate()
    assert metrics["eval_tokens"] == tokens
    assert metrics["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_a_warm_up_longer_than_the_run_is_said(base, tokenizer, tmp_path, file, capsys) -> None:
    make_trainer(base, tokenizer, tmp_path, file, 2, max_steps=2, warmup_steps=8, learning_rate=1e-3).train()
    assert "WARNING: the warm-up takes 8 steps and the run only 2" in capsys.readouterr().out


@pytest.mark.parametrize(("warm_up", "rates"), [(0.5, [1, 2, 3, 3, 3]), (2, [1.5, 3, 3, 3, 3]), (1, [3] * 5)])
def test_a_warm_up_below_one_is_a_share_of_the_run(
    base, tokenizer, tmp_path, file, warm_up: float, rates: list[float]
) -> None:
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, 10, max_steps=5, warmup_steps=warm_up, learning_rate=3e-3
    )
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([rate * 1e-3 for rate in rates])


def test_a_log_entry_has_the_speed_of_the_steps_since_the_last(
    base, tokenizer, tmp_path, file, monkeypatch
) -> None:
    monkeypatch.setattr(speed, "product_flops_per_second", lambda *args: 1e15)
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, 16, max_steps=6, logging_steps=3, per_device_train_batch_size=4,
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.train()
    spent = time.perf_counter() - start
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    # 6 steps of 4 rows: all 16 rows, and then 8 of the next epoch
    assert first["tokens_per_second"] > first["learnt_tokens_per_second"] > 0
    assert first["padding_share"] == second["padding_share"] == 0
    assert 0 < second["matrix_product_share"] < 1e-3
    assert "seconds_left" not in first
    assert second["seconds_left"] == 0
    at_least = int(trainer.train_dataset.lengths.sum()) / spent
    assert max(first["tokens_per_second"], second["tokens_per_second"]) > at_least


@pytest.mark.parametrize("bound", [None, 1.0])
def test_a_share_that_cannot_be_right_is_left_out(
    base, tokenizer, tmp_path, file, monkeypatch, capsys, bound: float | None
) -> None:
    monkeypatch.setattr(speed, "product_flops_per_second", lambda *args: bound)
    trainer = make_trainer(base, tokenizer, tmp_path, file, 2, max_steps=1)
    trainer.train()
    assert "matrix_product_share" not in trainer.state.log_history[0]
    out = capsys.readouterr().out
    assert "GEMM" not in out
    assert ("TFLOP/s together" in out) == (bound is not None)


def test_the_last_step_is_logged_and_the_time_left_from_the_second_entry_on(
    base, tokenizer, tmp_path, file
) -> None:
    trainer = make_trainer(base, tokenizer, tmp_path, file, 16, max_steps=7, logging_steps=3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [3, 6, 7]
    assert ["seconds_left" in entry for entry in entries] == [False, True, True]
    assert entries[1]["seconds_left"] > entries[2]["seconds_left"] == 0


def test_padding_is_reported(base, tokenizer, tmp_path, file) -> None:
    trainer = make_trainer(base, tokenizer, tmp_path, file, 8, max_steps=1, per_device_train_batch_size=8)
    trainer.data_collator = collate_padded
    trainer.train()
    lengths = trainer.train_dataset.lengths
    expected = 1 - lengths.sum() / (8 * lengths.max())
    assert trainer.state.log_history[0]["padding_share"] == pytest.approx(expected)


def test_micro_batches_by_tokens_hold_every_row_and_no_more_tokens(base, tokenizer, tmp_path, file) -> None:
    trainer = make_trainer(base, tokenizer, tmp_path, file, 40, num_train_epochs=2, tokens_per_batch=300)
    seen, step = [], trainer.training_step
    trainer.training_step = lambda model, inputs, *args: seen.append(inputs) or step(model, inputs, *args)
    trainer.train()
    assert all(inputs["input_ids"].numel() <= 300 for inputs in seen)
    assert len({len(inputs["document_lengths"]) for inputs in seen}) > 1
    rows = [document.tolist() for inputs in seen
            for document in inputs["input_ids"][0].split(inputs["document_lengths"])]  # fmt: skip
    expected = [file[i]["input_ids"].tolist() for i in range(40)]
    assert sorted(rows) == sorted(expected * 2)
    first_epoch = rows[:40]
    assert sorted(first_epoch) == sorted(expected)
    assert first_epoch != rows[40:]


def test_a_loss_spike_is_reported(base, tokenizer, tmp_path, file, capsys) -> None:
    trainer = make_trainer(base, tokenizer, tmp_path, file, 4, max_steps=13, learning_rate=1e-9)
    step = trainer.training_step
    calls = []

    def spiking(*args) -> torch.Tensor:
        calls.append(None)
        return step(*args) * (2.5 if len(calls) == 12 else 1)

    trainer.training_step = spiking
    trainer.train()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "log lines before" in line]
    assert warnings == ["WARNING: step 12: the loss is 2.5 times the mean of the 10 log lines before"]


def test_a_loss_that_is_no_number_names_the_rows_of_its_batch(base, tokenizer, tmp_path, file) -> None:
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, 10, max_steps=8, learning_rate=1e-9, save_strategy="steps",
        save_steps=1, keep=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    compute, seen = trainer.compute_loss, []

    def poisoned(model, inputs, **kwargs) -> torch.Tensor:
        seen.append(inputs["input_ids"][0].tolist())
        return compute(model, inputs, **kwargs) * (float("nan") if len(seen) == 7 else 1)

    trainer.compute_loss = poisoned
    with pytest.raises(
        UserError, match=r"step 4: the loss is nan .*checkpoint-3 is the last good one"
    ) as error:
        trainer.train()
    # 10 rows in micro-batches of 2, two of them a step: 4, 4 and 2 rows an epoch; step 4 begins the next one
    named = [int(detail.rsplit(":", 1)[1]) for detail in error.value.details]
    lines = file.rows["line"].tolist()
    ids = [file[lines.index(line)]["input_ids"].tolist() for line in named]
    assert [ids[0] + ids[1], ids[2] + ids[3]] == seen[5:7]
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-3"]


def test_the_refusal_says_the_loss_and_the_norm_of_its_own_step(base, tokenizer, tmp_path, file) -> None:
    """The loss is not the sum since the last log line, three steps ago; the norm is that before clipping."""
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, 16, max_steps=8, learning_rate=1e-9, logging_steps=5,
        per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    step, losses = trainer.training_step, []

    def recorded(model, inputs, *args) -> torch.Tensor:
        losses.append(step(model, inputs, *args))
        return losses[-1]

    def spoil(weight: torch.Tensor) -> None:
        if len(losses) == 5:  # in the sixth micro-batch, which ends step 3
            weight.grad.fill_(float("inf"))

    trainer.training_step = recorded
    next(trainer.model.parameters()).register_post_accumulate_grad_hook(spoil)
    with pytest.raises(UserError, match=r"step 3: .* norm inf, on the rows above") as error:
        trainer.train()
    said = float(str(error.value).split("the loss is ")[1].split(" ")[0])
    assert said == pytest.approx(float(losses[4] + losses[5]), rel=1e-4)
    assert said < 0.5 * float(sum(losses))


@pytest.mark.parametrize("step", [4, 6])
def test_a_request_to_stop_saves_at_once_unless_all_is_done(
    base, tokenizer, tmp_path, file, step: int
) -> None:
    trainer = make_trainer(
        base, tokenizer, tmp_path, file, 10, max_steps=6, per_device_train_batch_size=2,
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=100, keep=2,
    )  # fmt: skip
    train_step = trainer.training_step

    def interrupted(*args) -> torch.Tensor:
        if trainer.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*args)

    trainer.training_step = interrupted
    with trainer.stop_request:
        trainer.train()
    assert trainer.state.global_step == step
    assert trainer.stopped_by == ("SIGTERM" if step < 6 else None)
    assert (tmp_path / f"checkpoint-{step}" / "COMPLETE.json").exists()
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == ([2] if step == 4 else [2, 4, 6])
