import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.conftest import SINGLE_TURN, write_rows
from tests.run.test_checkpoints import one_rank, write, write_checkpoint
from training import trainer
from training.common.errors import UserError
from training.common.options import Options
from training.consts import INTRO
from training.run.record import (
    RECORD,
    check_same_run,
    keep_global_batch,
    keep_recorded,
    read_record,
)
from training.run.resume import LOCK, Run, check_new, hold, is_begun, newest_checkpoint
from training.text.saved_template import default_system
from training.text.tokenizer import load_tokenizer


def test_a_run_directory_that_holds_anything_is_refused(tmp_path: Path) -> None:
    check_new(tmp_path)
    check_new(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"holds something already.*--run-name"):
        check_new(tmp_path)


def test_a_run_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot be written"):
        check_new(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_directory_is_held_by_one_process(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "run"),
        pytest.raises(UserError, match="another process works in it"),
        hold(tmp_path / "run"),
    ):
        pass
    for _ in range(2):  # free again after the block
        with hold(tmp_path / "run"):
            pass
    with FileLock(tmp_path / "run" / LOCK, timeout=0):
        pass
    check_new(tmp_path / "run")  # the lock's file is nothing that a run left
    assert not is_begun(tmp_path / "run")


def test_the_newest_complete_checkpoint_is_continued_and_others_are_named(tmp_path: Path, capsys) -> None:
    def whole(directory: Path) -> None:
        write(directory)
        (directory / "optimizer.pt").write_bytes(b"1")

    assert newest_checkpoint(tmp_path) is None
    assert "no complete checkpoint; starting at step 0" in capsys.readouterr().out
    for step in (9, 10):
        write_checkpoint(tmp_path, step, whole, one_rank())
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / ".incomplete-12").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    out = capsys.readouterr().out
    assert "checkpoint-11: incomplete, passed over" in out
    assert ".incomplete-12: incomplete, passed over" in out


def test_a_checkpoint_without_an_optimizer_is_not_continued(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 9, write, one_rank())
    with pytest.raises(UserError, match="saved with --save-only-model"):
        newest_checkpoint(tmp_path)


RUN = {
    "data": "d",
    "model": "m",
    "seed": 1,
    "global batch": {"rows": 8},
    "optimizer": "ZeRO stage 2, bf16",
    "ranks": 2,
    "options": {"lr": "0.1"},
}


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"data": "e"}, "data"), ({"model": "n"}, "model"), ({"seed": 2}, "seed"),
     ({"global batch": {"rows": 16}}, "global batch"), ({"evaluation data": {"e": "f"}}, "evaluation data"),
     ({"system": "S"}, "system text")],
)  # fmt: skip
def test_another_run_is_refused_unless_anyway(tmp_path: Path, capsys, changed: dict, name: str) -> None:
    with pytest.raises(UserError, match=f"not the same {name} as this run's; pass --resume-anyway"):
        check_same_run(tmp_path, RUN | changed, RUN, anyway=False)
    check_same_run(tmp_path, RUN | changed, RUN, anyway=True)
    assert f"WARNING: {tmp_path}: not the same {name}" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_had_the_intro_for_its_system_text(tmp_path: Path) -> None:
    check_same_run(tmp_path, RUN | {"system": INTRO}, RUN, anyway=False)
    with pytest.raises(UserError, match="not the same system text as"):
        check_same_run(tmp_path, RUN, RUN | {"system": "S"}, anyway=False)


def test_the_same_data_by_another_name_is_the_same(tmp_path: Path) -> None:
    """Earlier versions gave the loss of a pattern such as `e/*.jsonl` the name `_`."""
    now, before = ({"evaluation data": {name: "f"}} for name in ("e", "_"))
    check_same_run(tmp_path, RUN | now, RUN | before, anyway=False)


@pytest.mark.parametrize("anyway", [False, True])
def test_another_optimizer_cannot_be_read(tmp_path: Path, anyway: bool) -> None:
    other = RUN | {"optimizer": "no DeepSpeed, bf16"}
    with pytest.raises(
        UserError, match="began with ZeRO stage 2, bf16, and its optimizer is not one of no DeepS"
    ):
        check_same_run(tmp_path, other, RUN, anyway)


def test_an_option_that_has_changed_is_said(tmp_path: Path, capsys) -> None:
    check_same_run(tmp_path, RUN | {"options": {"lr": "0.2"}}, RUN, anyway=False)
    assert capsys.readouterr().out == "--lr is 0.2, and was 0.1\n"


@pytest.mark.parametrize(
    ("batch", "world_size", "rows", "expected"),
    [
        ({"rows": 8}, 2, 2, 1),  # the number of ranks is unchanged, so what the user says holds
        ({"rows": 8}, 1, 4, 2),
        ({"rows": 8}, 4, 2, 1),
        ({"rows": 8}, 3, 2, 1),  # 8 rows are no multiple of 3 ranks x 2 rows
        ({"micro-batches": 4, "tokens": 512}, 1, 8, 4),
    ],
)
def test_accumulation_keeps_the_global_batch(batch: dict, world_size: int, rows: int, expected: int) -> None:
    micro_batch = {"tokens_per_batch": rows} if "tokens" in batch else {"per_device_train_batch_size": rows}
    options = keep_global_batch(Options(**micro_batch), RUN | {"global batch": batch}, world_size)
    assert options.gradient_accumulation_steps == expected


def test_given_accumulation_steps_give_way_to_the_global_batch_on_other_ranks_only() -> None:
    record = RUN | {"global batch": {"rows": 16}, "ranks": 2}
    typed = Options(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert keep_global_batch(typed, record, 1).gradient_accumulation_steps == 2
    assert keep_global_batch(typed, record, 2).gradient_accumulation_steps == 1
    other = replace(typed, gradient_accumulation_steps=3)
    assert keep_global_batch(other, record, 2).gradient_accumulation_steps == 3  # which is refused later
    anyway = replace(other, resume_anyway=True, resume=True, run_name="run")
    assert keep_global_batch(anyway, record, 1).gradient_accumulation_steps == 3
    # Those of a start on one process are not given to the next one on two.
    kept = replace(typed, gradient_accumulation_steps=2, default_names=("gradient_accumulation_steps",))
    assert keep_global_batch(kept, record, 2).gradient_accumulation_steps == 1


def test_the_record_keeps_the_number_of_ranks_that_the_run_began_with(tmp_path: Path) -> None:
    began = {"data": "d", "global batch": {"rows": 16}, "ranks": 2}
    run = Run(Options(), tmp_path, None, began, description=began | {"ranks": 1})
    run.write_record()
    assert json.loads((tmp_path / RECORD).read_text())["ranks"] == 2
    run.description["global batch"] = {"rows": 8}  # by --resume-anyway
    run.write_record()
    assert json.loads((tmp_path / RECORD).read_text())["ranks"] == 1


def test_a_directory_without_a_record_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert is_begun(tmp_path)
    with pytest.raises(UserError, match="there is no run to continue"):
        read_record(tmp_path)


def as_begun_before(tmp_path: Path, **options: str) -> dict:
    """A record of an earlier version, read: it has None for options that were not given."""
    record = RUN | {
        "optimizer": "no DeepSpeed, float32, LoRA of rank 4, alpha None, auto",
        "options": {"lora_rank": "4", "lora_alpha": "None", "tokens_per_batch": "None", "lr": "1e-05"}
        | options,
    }
    (tmp_path / RECORD).write_text(json.dumps(record))
    return read_record(tmp_path)


def test_a_record_of_before_is_read_as_what_it_meant(tmp_path: Path) -> None:
    record = as_begun_before(tmp_path, per_device_train_batch_size="8")
    assert record["optimizer"] == "no DeepSpeed, float32, LoRA of rank 4, alpha 8, auto"
    assert record["options"]["lora_alpha"] == "8"
    given = as_begun_before(tmp_path, lora_alpha="5")
    assert given["options"]["lora_alpha"] == "5"
    by_tokens = as_begun_before(tmp_path, tokens_per_batch="99", per_device_train_batch_size="8")
    assert by_tokens["options"]["per_device_train_batch_size"] == "None"


def test_a_record_from_before_there_were_adapters_is_read(tmp_path: Path, capsys) -> None:
    (tmp_path / RECORD).write_text(json.dumps(RUN))
    record = read_record(tmp_path)
    assert record == RUN
    assert keep_recorded(Options(), record).lr == 0.1
    check_same_run(tmp_path, RUN | {"options": {"lr": "0.1", "lora_rank": "None"}}, record, anyway=False)
    assert capsys.readouterr().out == ""


def test_a_default_that_has_changed_since_stays_what_the_run_began_with(tmp_path: Path) -> None:
    record = as_begun_before(tmp_path)
    kept = keep_recorded(Options(lora_rank=4), record)
    assert (kept.lr, kept.lora_alpha) == (1e-5, 8)
    assert keep_recorded(Options(lora_rank=4, lr=0.1), record).lr == 0.1


@pytest.fixture(scope="module")
def command(base: str, tmp_path_factory: pytest.TempPathFactory):
    """A function that runs the trainer in this process, in a directory of its own."""
    cache = tmp_path_factory.mktemp("cache")
    shared = (
        f"--input-model {base} --cache-dir {cache} --run-name run --no-bf16 "
        "--lr 3e-3 --test-size 4 --warmup-steps 2 --logging-steps 1 --eval-steps 20 --save-steps 4 "
        "--no-gradient-checkpointing --lr-scheduler cosine "
    )

    def run(directory: Path, more: str) -> None:
        batch = "" if "batch" in more else "--per-device-train-batch-size 6"
        data = "" if "--data-path" in more else f"--data-path {SINGLE_TURN}"
        arguments = f"{shared} --local-output-dir {directory} {data} {batch} {more}"
        trainer.main.main(arguments.split(), standalone_mode=False)

    return run


@pytest.fixture(scope="module")
def begun(command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that has taken four steps."""
    directory = tmp_path_factory.mktemp("begun")
    command(directory, "--max-steps 4")
    return directory


def losses(directory: Path, step: int) -> list[tuple[int, float]]:
    state = json.loads((directory / "run" / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]


# 29 rows in micro-batches of 3 are 10 steps an epoch.
@pytest.mark.parametrize(
    "more",
    [
        "--per-device-train-batch-size 3",
        pytest.param("--tokens-per-batch 350", marks=pytest.mark.slow),
        pytest.param(
            "--per-device-train-batch-size 3 --gradient-accumulation-steps 2", marks=pytest.mark.slow
        ),
    ],
)
def test_a_continued_run_gives_the_losses_of_one_that_was_not_interrupted(
    command, tmp_path: Path, capsys, more: str
) -> None:
    first = "".join(SINGLE_TURN.read_text("utf-8").splitlines(keepends=True)[:33])
    (tmp_path / "few.json").write_text(first, encoding="utf-8")
    more = f"--data-path {tmp_path / 'few.json'} --max-steps 14 --eval-steps 9 {more}"
    command(tmp_path / "whole", more)
    command(tmp_path / "parts", f"{more} --resume")
    assert "no run yet; starting at step 0" in capsys.readouterr().out
    expected = losses(tmp_path / "whole", 14)
    assert len(expected) == 14
    assert losses(tmp_path / "parts", 14) == expected
    # What is left is as if the run had been killed in the save after step 12, which is in the second epoch.
    (tmp_path / "parts" / "run" / "checkpoint-14" / "COMPLETE.json").unlink()
    (tmp_path / "parts" / "run" / "model" / "config.json").unlink()
    command(tmp_path / "parts", f"{more} --resume")
    out = capsys.readouterr().out
    assert "checkpoint-14: incomplete, passed over" in out
    assert f"continuing from {tmp_path / 'parts' / 'run' / 'checkpoint-12'}" in out
    assert losses(tmp_path / "parts", 14) == expected
    model, other = (tmp_path / name / "run" / "model" / "model.safetensors" for name in ("whole", "parts"))
    assert model.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_run_that_is_finished_is_only_exported_or_left_or_goes_on(
    command, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path, "--max-steps 6")
    model = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    command(tmp_path, "--max-steps 6 --resume")
    assert "finished already" in capsys.readouterr().out

    for name in ("config.json", "model.safetensors"):  # killed in the export
        (tmp_path / "run" / "model" / name).unlink()
    command(tmp_path, "--max-steps 6 --resume")
    out = capsys.readouterr().out
    assert "step 6/6  trained" in out
    assert "loss" not in out
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == model

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "run" / "report.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_card_of_run", full)
        with pytest.raises(UserError, match=r"run: cannot be written \(No space .*; make room, .*--resume"):
            command(tmp_path, "--max-steps 6 --resume")
    command(tmp_path, "--max-steps 6 --resume")
    assert (tmp_path / "run" / "report.json").exists()

    command(tmp_path, "--max-steps 9 --resume")
    assert "--max-steps is 9, and was 6" in capsys.readouterr().out
    assert [step for step, _ in losses(tmp_path, 9)] == list(range(1, 10))
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() != model


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--seed 1", "not the same data, seed as"),
        ("--per-device-train-batch-size 7", "not the same global batch as"),
        ("--test-size 5", "not the same data as"),
        ("--system 你是一名记者。", "not the same (data, )?system text as"),
        ("--bf16", "began with no DeepSpeed, float32, and its optimizer is not one of no DeepSpeed, bf16"),
    ],
)
def test_a_run_that_would_be_another_is_refused(command, begun: Path, more: str, message: str) -> None:
    record = (begun / "run" / RECORD).read_text()
    with pytest.raises(UserError, match=message):
        command(begun, f"--max-steps 8 --resume {more}")
    assert (begun / "run" / RECORD).read_text() == record


def test_other_data_are_refused(command, base: str, tmp_path: Path) -> None:
    rows = [{"instruction": f"question {i}", "output": "answer"} for i in range(20)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    arguments = (
        f"--data-path {path} --input-model {base} --cache-dir {tmp_path} --run-name run --no-bf16 "
        f"--local-output-dir {tmp_path} --max-steps 2 --save-steps 2"
    ).split()
    trainer.main.main(arguments, standalone_mode=False)
    rows[7]["output"] = "Answer"
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="not the same data as"):
        trainer.main.main([*arguments, "--resume"], standalone_mode=False)


def test_resume_needs_a_name(outcome, base: str, tmp_path: Path) -> None:
    status, _, err = outcome(
        trainer.main, f"--data-path {SINGLE_TURN} --input-model {base} --local-output-dir {tmp_path} --resume"
    )
    assert (status, err) == (2, "error: --resume: which run? Give its --run-name\n")


@pytest.mark.slow
def test_an_adapter_goes_on_with_its_defaults_given_or_not(command, tmp_path: Path, capsys) -> None:
    command(tmp_path, "--lora-rank 2 --max-steps 4")
    capsys.readouterr()
    command(tmp_path, "--lora-rank 2 --max-steps 5 --lora-alpha 4 --resume")
    out = capsys.readouterr().out
    assert "--lora-alpha" not in out
    assert [step for step, _ in losses(tmp_path, 5)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_the_options_of_a_run_make_it_again(command, tmp_path: Path) -> None:
    command(tmp_path, "--max-steps 4")
    config = tmp_path / "run" / "options.yaml"
    trainer.main.main(
        f"--config {config} --local-output-dir {tmp_path / 'again'}".split(), standalone_mode=False
    )
    assert losses(tmp_path / "again", 4) == losses(tmp_path, 4)
    with pytest.raises(UserError, match="holds something already"):
        trainer.main.main(["--config", str(config)], standalone_mode=False)
    trainer.main.main(f"--config {config} --resume --max-steps 6".split(), standalone_mode=False)
    assert [step for step, _ in losses(tmp_path, 6)] == [1, 2, 3, 4, 5, 6]


def test_another_schedule_and_other_intervals_are_heeded_by_a_run_that_goes_on(
    command, tmp_path: Path
) -> None:
    """From its first step on: step 5, which is logged."""
    command(tmp_path, "--max-steps 4 --lr-scheduler constant")
    schedule = "--max-steps 10 --lr-scheduler linear --lr 1e-3 --warmup-steps 6 --warmup-shape log"
    command(tmp_path, f"{schedule} --save-steps 3 --logging-steps 5 --resume")
    state = json.loads((tmp_path / "run" / "checkpoint-10" / "trainer_state.json").read_text())
    rates = [(entry["step"], entry["learning_rate"]) for entry in state["log_history"] if "loss" in entry]
    assert rates[:4] == [(1, 1.5e-3), (2, 3e-3), (3, 3e-3), (4, 3e-3)]
    assert rates[4:] == [
        (5, pytest.approx(1e-3 * math.log(4) / math.log(6))),
        (10, pytest.approx(1e-3 / 4)),
    ]
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


def test_a_start_that_gives_no_options_has_those_of_the_start_before(
    command, base: str, tmp_path: Path, capsys
) -> None:
    system = "你是一名记者。"
    command(
        tmp_path,
        f"--max-steps 4 --lr-scheduler constant --weight-decay 0.1 --system {system} --cache-dir {tmp_path}",
    )
    (encoded,) = tmp_path.glob("*/input_ids.bin")
    text = load_tokenizer(base).decode(np.fromfile(encoded, "<i4"))
    assert text.count(f"<|System|>:\n{system}\n\n<|Human|>") == text.count("<|System|>") > 0
    command(tmp_path, "--max-steps 6 --lr-scheduler constant --lr 1e-3 --max-grad-norm 0.5 --resume")
    capsys.readouterr()
    few = f"--data-path {SINGLE_TURN} --input-model {base} --local-output-dir {tmp_path} --run-name run"
    trainer.main.main(f"{few} --resume --max-steps 7".split(), standalone_mode=False)
    assert "--max-steps is 7, and was 6" in capsys.readouterr().out
    checkpoint = tmp_path / "run" / "checkpoint-7"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["log_history"][-2]["learning_rate"] == 1e-3
    assert torch.load(checkpoint / "training_args.bin", weights_only=False).max_grad_norm == 0.5
    groups = torch.load(checkpoint / "optimizer.pt")["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    # What a checkpoint has brought does not stand against what is given now.
    trainer.main.main(f"{few} --resume --max-steps 8 --weight-decay 0.2".split(), standalone_mode=False)
    groups = torch.load(tmp_path / "run" / "checkpoint-8" / "optimizer.pt")["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    for saved in (tmp_path / "run" / "model", tmp_path / "run" / "checkpoint-8"):
        assert default_system(load_tokenizer(str(saved))) == system


@pytest.mark.slow
def test_a_model_of_fewer_steps_is_not_taken_for_that_of_a_longer_run(command, tmp_path: Path) -> None:
    """As if a run that was made longer had been killed before its model replaced the shorter one's."""
    command(tmp_path, "--max-steps 4")
    names = ("model/model.safetensors", "model/config.json", "report.json")
    shorter = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    command(tmp_path, "--max-steps 6 --resume")
    longer = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    for name in names:
        (tmp_path / "run" / name).write_bytes(shorter[name])
    command(tmp_path, "--max-steps 6 --resume")
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == longer

    # An earlier version had the model at the root of the run directory, where it stays.
    for name in names:
        (tmp_path / "run" / Path(name).name).write_bytes(shorter[name])
    shutil.rmtree(tmp_path / "run" / "model")
    command(tmp_path, "--max-steps 6 --resume")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == longer
    assert not (tmp_path / "run" / "model").exists()


def test_what_is_there_is_looked_at_under_the_lock(command, begun: Path) -> None:
    with hold(begun / "run"), pytest.raises(UserError, match="another process works in it"):
        command(begun, "--max-steps 8 --resume")


def test_a_kill_before_the_record_leaves_nothing_begun(tmp_path: Path) -> None:
    for name in (LOCK, f".{RECORD}.partial"):
        (tmp_path / name).write_text("{")
    assert not is_begun(tmp_path)
    check_new(tmp_path)
