"""The longest micro-batch, tried before step 1 as on a card: the losses do not change by a bit."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, SINGLE_TURN, write_rows
from tests.launching import ZERO2, ZERO3, values
from tests.run.test_sft_trainer import make_trainer
from training.data.encoded import EncodedFile, load_encoded
from training.data.micro_batches import MicroBatches
from training.run import sft_trainer, trial

STEPS = 3


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> EncodedFile:
    return load_encoded(str(SINGLE_TURN), tokenizer, 2048, tmp_path_factory.mktemp("cache"))


def history_of(trainer: sft_trainer.SFTTrainer) -> list[tuple[float, float]]:
    log = trainer.state.log_history
    return [(entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_without_deepspeed_are_bitwise_those_without_the_trial(
    base: str, tokenizer, tmp_path: Path, file: EncodedFile, monkeypatch, accumulation: int
) -> None:
    tried = []

    def train(directory: str, wanted: bool) -> list[tuple[float, float]]:
        monkeypatch.setattr(trial, "is_wanted", lambda device: wanted)
        trainer = make_trainer(
            base, tokenizer, tmp_path / directory, file, 16, max_steps=STEPS, learning_rate=1e-2, seed=1,
            warmup_steps=0, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        for block in trainer.model.transformer.h:
            block.self_attention.attention_dropout.p = 0.1  # so that random numbers are drawn
        trainer.add_callback(trial.LongestBatchTrial(trainer))
        trainer.train()
        return history_of(trainer)

    real = trial.try_longest_batch
    monkeypatch.setattr(trial, "try_longest_batch", lambda trainer: tried.append(real(trainer)) or tried[-1])
    with_trial = train("with", True)
    order = MicroBatches(file.lengths[:16], batch_size=2, rank=0, world_size=1, seed=1)
    assert tried == [max(file.lengths[batch].sum() for batch in order)]
    assert with_trial == train("without", False)
    assert len(with_trial) == STEPS


def test_the_longest_micro_batch_is_that_of_the_rank_in_all_epochs() -> None:
    """Lengths 9 1 1 8; micro-batches of two examples in another order each epoch, for two ranks."""
    lengths = torch.tensor([9, 1, 1, 8]).numpy()
    for rank in range(2):
        batches = MicroBatches(lengths, batch_size=2, rank=rank, world_size=2, seed=0)
        of_rank = [batches.of_all_ranks(epoch, 0, 1)[rank] for epoch in range(20)]
        assert lengths[batches.longest(20, padded=False)].sum() == max(
            lengths[each].sum() for each in of_rank
        )
        assert lengths[batches.longest(20, padded=True)].max() == 9
    alone = MicroBatches(lengths[:1], batch_size=2, rank=1, world_size=2, seed=0)
    assert alone.longest(3, padded=False) == []


CONFIGURATIONS = {
    "two": ZERO2,
    "three": ZERO3.replace(".json", "_no_offload.json"),
    "two-offload": ZERO2.replace("_no_offload", ""),
    "three-offload": ZERO3,
}


@pytest.mark.slow
def test_losses_under_zero_are_bitwise_those_without_the_trial(base: str, forked, tmp_path: Path) -> None:
    rows = [{"instruction": f"问题 {i}", "output": "答" * (1 + 7 * i % 23)} for i in range(12)]
    shared = [
        "--data-path", write_rows(tmp_path / "rows.jsonl", rows), "--input-model", base,
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--test-size", "0",
        "--max-steps", str(STEPS), "--save-steps", str(STEPS), "--logging-steps", "1", "--lr", "1e-2",
        "--warmup-steps", "0", "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "2",
    ]  # fmt: skip
    logs = {}
    for name, path in CONFIGURATIONS.items():
        for module in ("tests.tried_runs", "training.trainer"):
            run_name = name if module == "tests.tried_runs" else f"{name}-untried"
            how = ["--run-name", run_name, "--deepspeed", str(ROOT / path)]
            finished = forked(1, *shared, *how, module=module)
            assert finished.returncode == 0, finished.stderr
            logs[run_name] = finished.stdout
    for name in CONFIGURATIONS:
        assert "tried " in logs[name], logs[name]
        for key in ("loss", "grad_norm"):
            found = values(tmp_path / name, key)
            assert len(found) == STEPS
            assert found == values(tmp_path / f"{name}-untried", key), name
        record = json.loads((tmp_path / name / "run.json").read_text("utf-8"))
        assert record["gradient sums"] == "fp32"
        assert record["deepspeed"]["gradient_accumulation_steps"] == 2  # no "auto": as it was in effect
