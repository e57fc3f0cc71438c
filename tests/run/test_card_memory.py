"""What is said of a card's memory, by a stand-in for `torch.cuda`."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import SINGLE_TURN
from training import trainer
from training.common.console import log_line
from training.common.errors import UserError
from training.common.options import Options
from training.cost.memory import Memory
from training.run import card_memory
from training.run.card_memory import (
    Planned,
    opening_advice,
    out_of_memory_refused,
    peak_memory,
    place_of_loading,
    planned_memory,
    say_trial,
)
from training.run.resume import Run

GB = 10**9
MEMORY = Memory(
    weights=14 * GB, optimizer=6 * GB, activations=9 * GB, head=2 * GB, exchanged=1 * GB, gradients=4 * GB,
    step=0, offloaded=0, loading=0,
)  # fmt: skip


def a_run(planned: Planned | None, stage: int = 2, **options) -> Run:
    config = {"zero_optimization": {"stage": stage}}
    return Run(Options(**options), Path("run"), config, planned=planned)


def test_memory_that_runs_out_is_one_line_with_the_plan_the_step_and_a_remedy() -> None:
    run = a_run(Planned(MEMORY, 4 * GB), tokens_per_batch=9000, gradient_checkpointing=False)
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
        "1.20 GiB is free. Including non-PyTorch memory, this process has 77.9 GiB memory in use."
    )
    with pytest.raises(UserError) as refused, out_of_memory_refused(run):
        raise error
    assert str(refused.value).startswith(
        "out of memory before step 1: CUDA out of memory. Tried to allocate 2"
    )
    run.steps_taken = lambda: 41
    with pytest.raises(UserError) as refused, out_of_memory_refused(run):
        raise error
    text = str(refused.value)
    assert "at step 42: CUDA" in text
    assert "1.20 GiB is free; the plan is 36.0 GB; lower --tokens-per-batch or --max-length" in text
    assert "pass --gradient-checkpointing" in text


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 80 GB, of which 30 GB are free, and 14 GB are held by this process."""
    for name, value in {
        "is_available": True,
        "mem_get_info": (30 * GB, 80 * GB),
        "memory_reserved": 14 * GB,
        "memory_allocated": 25 * GB,
        "max_memory_allocated": 38 * GB,
        "max_memory_reserved": 41 * GB,
        "get_device_properties": SimpleNamespace(total_memory=40 * GB),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)


def test_a_plan_that_is_larger_than_what_is_free_is_said_at_the_start(card: None) -> None:
    assert opening_advice(a_run(Planned(MEMORY, 4 * GB))) == []
    (line,) = opening_advice(a_run(Planned(MEMORY._replace(activations=20 * GB), 4 * GB)))
    assert line.startswith(
        "WARNING: the plan is 47.0 GB of a card, of which 44.0 GB are free; if it runs out"
    )
    assert opening_advice(a_run(None)) == []


def test_a_run_that_fits_without_offload_is_told_so(card: None) -> None:
    offloaded = Planned(MEMORY._replace(optimizer=0), 0, without_offload=MEMORY)
    (line,) = opening_advice(a_run(offloaded))
    assert line.endswith("36.0 GB of a card's 40.0 GB (computed); take --deepspeed "
                         "config/deepspeed_zero2_bf16_no_offload.json")  # fmt: skip
    larger = MEMORY._replace(weights=18 * GB)
    assert opening_advice(a_run(offloaded._replace(without_offload=larger))) == []


def test_weights_are_loaded_straight_to_the_card_where_there_is_room_for_them_twice(
    card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, planned = torch.device("cuda:3"), Planned(MEMORY, 0)
    assert place_of_loading(a_run(planned), device) == {"device_map": {"": "cuda:3"}}  # 28 of 30 GB
    assert place_of_loading(a_run(planned, stage=3), device) == {}
    assert place_of_loading(a_run(planned), torch.device("cpu")) == {}
    larger = Planned(MEMORY._replace(weights=16 * GB), 0)
    assert place_of_loading(a_run(larger), device) == {}

    asked = {}
    monkeypatch.setattr(trainer, "read_config", lambda path: None)
    monkeypatch.setattr(trainer, "why_padded", lambda config, longest_row: "a reason")
    monkeypatch.setattr(trainer, "load_model", lambda path, tokenizer, **how: asked.update(how) or 1 / 0)
    data = SimpleNamespace(tokenizer=None, new_tokens={})
    with pytest.raises(ZeroDivisionError):
        trainer.load_trainable(a_run(planned), data, device)
    assert asked["device_map"] == {"": "cuda:3"}


def stand_in(device: str, state: dict | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        args=SimpleNamespace(device=torch.device(device)),
        accelerator=SimpleNamespace(gather=lambda tensor: torch.cat([tensor, tensor + GB])),
        is_deepspeed_enabled=False,
        optimizer=SimpleNamespace(state=state or {}),
    )


def test_log_lines_have_the_peak_of_the_card_beside_the_plan(
    card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_processor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, device, **kwargs: on_processor(*args, **kwargs))
    planned = Planned(MEMORY, 4 * GB)
    entry = peak_memory(stand_in("cuda:0"), planned)
    assert entry == {"card_allocated": 39 * GB, "card_reserved": 42 * GB, "card_planned": 36 * GB}
    assert peak_memory(stand_in("cpu"), planned) == {}
    logs = {"eval_loss": 1.0, "eval_tokens": 7, "eval_ended_share": 1.0, "eval_length_share": 1.0}
    said = "a card had at most 39.0 GB allocated, planned 36.0 GB, and 42.0 GB reserved"
    assert log_line(logs | {"eval_repeated_share": 0.0} | entry).endswith(said)


def test_what_the_first_step_adds_to_the_longest_micro_batch_is_said(
    card: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    on_processor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, device, **kwargs: on_processor(*args, **kwargs))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 12 * GB)
    say_trial(stand_in("cuda:0"), 9000, Planned(MEMORY, 4 * GB))
    first, second = capsys.readouterr().out.splitlines()
    assert (
        "9,000 tokens, took 39.0 GB of the 42.0 GB that this run can have; the first step adds 4.0 GB"
        in first
    )
    assert second == "WARNING: that is 43.0 GB together, more than the card has for it"
    say_trial(stand_in("cuda:0", {"of a checkpoint": 1}), 9000, Planned(MEMORY, 4 * GB))
    (line,) = capsys.readouterr().out.splitlines()
    assert "the first step" not in line


def test_the_plan_of_a_run_is_that_of_its_own_configuration(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(card_memory, "memory_of", lambda shapes, **how: seen.append(how) or MEMORY)
    command = (
        f"--data-path {SINGLE_TURN} --input-model {base} --local-output-dir {tmp_path} --cache-dir {tmp_path}"
    )
    more = "--deepspeed config/deepspeed_zero2_bf16.json --per-device-train-batch-size 2"
    values = trainer.main.make_context("", f"{command} {more}".split()).params
    run = trainer.open_run(Options(**values))
    data = trainer.prepare_data(run)
    planned = planned_memory(run, data.tokenizer, data.new_tokens, data.training)
    assert (planned.moments, planned.without_offload) == (0, MEMORY)
    assert [(how["stage"], how["offload"], how["sum_width"]) for how in seen] == [(2, True, 4), (2, False, 4)]
    run.deepspeed_config = None
    assert planned_memory(run, data.tokenizer, data.new_tokens, data.training).without_offload is None
    assert (seen[-1]["stage"], seen[-1]["sum_width"]) == (0, 2)
