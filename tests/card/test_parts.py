"""The parts of `training.card_check`: that a planted fault is found, and that figures are what they say."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import ROOT
from training import card_check
from training.card import exactness, kernels, machine, several_cards
from training.card.page import DONE, FAILS, HOLDS, NOT_POSSIBLE, Check
from training.card.profiled import attention_operations
from training.card.scale import CPU, QUICK_CARD, QUICK_CPU, Batch, Scale, Sizes, bloom_of
from training.model.bloom import BloomForCausalLM

TINY = CPU._replace(
    exact=Sizes(32, 2, 1, 64), rows=(1, 2, 9), prompt=9, long=Sizes(16, 1, 1, 32), long_row=40,
    kernels=Sizes(32, 2, 1, 64), new_lengths=2, longest=9, training=Sizes(32, 2, 1, 64),
    batches=(Batch(2, 6),), steps=1,
)  # fmt: skip


def run(measure, directory: Path, scale: Scale = TINY) -> Check:
    check = Check(directory, torch.device("cpu"), scale, is_quick=True)
    with check.part(0, "The part"):
        measure(check)
    assert check.parts[0].reason == ""
    return check


def test_our_bloom_is_as_exact_as_it_should_be(tmp_path: Path) -> None:
    check = run(exactness.compare_with_library, tmp_path)
    in_float32 = [row for row in check.parts[0].rows if "float32" in row.what]
    assert (
        len(in_float32) == 3 + 3 + 1 + 1 + 3
    )  # logits of the rows; loss and gradients; tokens; the long row
    assert {row.verdict for row in in_float32} == {HOLDS}


def test_a_planted_fault_fails_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In packed batches the first block's input is wrong by one part in a hundred; generation is right."""
    run_blocks = BloomForCausalLM._run_blocks

    def run_wrongly(self, hidden_states, alibi):
        return run_blocks(self, hidden_states + 0.01 * hidden_states.roll(1, -1), alibi)

    monkeypatch.setattr(BloomForCausalLM, "_run_blocks", run_wrongly)
    check = run(lambda check: exactness._compare(check, TINY.exact, TINY.rows), tmp_path)
    failed = {row.what for row in check.parts[0].rows if row.verdict == FAILS}
    assert {f"logits of {length} token(s), float32" for length in TINY.rows} <= failed
    assert any(what.startswith("worst gradient") and what.endswith("float32") for what in failed)


def test_attention_is_named_by_its_kernel_and_counted() -> None:
    query = torch.randn(1, 2, 4, 8)

    def work() -> None:
        for _ in range(3):
            F.scaled_dot_product_attention(query, query, query, is_causal=True)
        query @ query.mT

    found = attention_operations(work, on_card=False)
    assert found["aten::_scaled_dot_product_flash_attention_for_cpu"] == 3
    assert not any("matmul" in name or "bmm" in name for name in found)


def test_every_case_gets_lengths_of_its_own(tmp_path: Path) -> None:
    for scale in (CPU, QUICK_CARD):
        lengths = kernels._unseen_lengths(Check(tmp_path, torch.device("cpu"), scale, is_quick=True))
        assert len(set(lengths)) == len(lengths) == 4 * scale.new_lengths
        assert max(lengths) < scale.longest


def test_what_a_new_length_costs_is_found(tmp_path: Path) -> None:
    """A pass that does much more work for a length that it has not had."""
    check = Check(tmp_path, torch.device("cpu"), TINY, is_quick=True)
    seen = {TINY.longest}

    def attend(length: int) -> None:
        if length not in seen:
            seen.add(length)
            torch.randn(300, 300) @ torch.randn(300, 300)

    with check.part(0, "The part"):
        kernels._measure(check, "a pass", lambda length: None, attend, iter([5, 6, 7, 8, 9]))
    attention, whole = (row for row in check.parts[0].rows if "new lengths" in row.what)
    assert "attention alone, the worst of 2" in attention.what
    assert isinstance(attention.value, float)
    assert whole.bound == ""
    assert attention.value > 0.05  # ms; without new work it is some microseconds


def test_attention_alone_is_that_of_the_passes(tmp_path: Path) -> None:
    """The same operations as often, in a model of one layer."""
    check = Check(tmp_path, torch.device("cpu"), TINY, is_quick=True)
    model = bloom_of(TINY.kernels._replace(layers=1), BloomForCausalLM, torch.bfloat16, check.device)
    for run, alone in (
        (kernels._train, kernels._attend_to_documents),
        (kernels._answer, kernels._attend_to_prompt),
    ):
        of_pass = attention_operations(partial(run, model, 9), on_card=False)
        assert attention_operations(partial(alone, check, 9), on_card=False) == of_pass


def test_a_card_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another program has half filled."""
    card = SimpleNamespace(name="NVIDIA A100", multi_processor_count=108, total_memory=80 * 10**9)
    monkeypatch.setattr(machine, "driver_version", lambda: "580.65.06")
    for name, answer in {
        "device_count": 1,
        "get_device_properties": card,
        "mem_get_info": (40 * 10**9, 80 * 10**9),
        "get_device_capability": (8, 0),
        "get_arch_list": ["sm_80", "sm_90"],
        "is_bf16_supported": True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    check = Check(tmp_path, torch.device("cuda:0"), QUICK_CARD, is_quick=True)
    with check.part(0, "The machine"):
        machine._add_cards(check)
    assert check.parts[0].reason == ""
    rows = {row.what: row for row in check.parts[0].rows}
    assert rows["card 0"].value == "NVIDIA A100"
    assert rows["free memory of card 0"].verdict == FAILS
    assert "another program" in rows["free memory of card 0"].note
    assert rows["architectures that torch is built for"].value == "sm_80, sm_90"
    assert rows["architectures that torch is built for"].note == "the card's is sm_80"
    assert rows["bfloat16 in hardware"].verdict == HOLDS
    assert rows["driver"].value == "580.65.06"


def test_one_of_several_cards_measures_exchange_and_steps(tmp_path: Path) -> None:
    several_cards.measure_rank(0, 1, "cpu", TINY, str(tmp_path))
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert found["bytes"] == 0  # one process sends nothing
    assert found["alone"] > 0
    assert found["together"] > 0


# What the parts must do without: all that is neither torch nor transformers nor needed by one of them.
WITHOUT = (
    "deepspeed",
    "accelerate",
    "datasets",
    "peft",
    "bitsandbytes",
    "psutil",
    "tensorboard",
    "matplotlib",
)
ALONE = f"""
import sys
for name in {WITHOUT}:
    sys.modules[name] = None
from training import card_check
sys.exit(card_check.main(["--quick", "--output-dir", sys.argv[1]], standalone_mode=False))
"""


@pytest.mark.slow
def test_the_command_runs_on_a_cpu(tmp_path: Path) -> None:
    """As a process without the trainer's libraries; then the part that needs them."""
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    page = (tmp_path / "card.md").read_text("utf-8")
    for number, title in enumerate(card_check.PARTS):
        assert f"## {number}. {title}" in page
    parts = json.loads((tmp_path / "card.json").read_text("utf-8"))["parts"]
    assert [part["outcome"] for part in parts] == [DONE] * 5 + [NOT_POSSIBLE] * 2
    assert any(name in parts[5]["reason"] for name in WITHOUT)

    from training.card.short_runs import measure_runs

    check = run(measure_runs, tmp_path, QUICK_CPU)
    status = next(row for row in check.parts[0].rows if row.what == "ZeRO-2: exit status")
    assert status.verdict == HOLDS, status.note
