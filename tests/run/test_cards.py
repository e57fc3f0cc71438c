"""Cards that PyTorch cannot use, by a stand-in for `torch.cuda`."""

from pathlib import Path

import pytest
import torch

from training.common.errors import UserError
from training.common.options import Options
from training.run import cards
from training.run.arguments import check_options
from training.run.cards import check_bf16, check_card, check_cards, driver_version, runs_on

# What a wheel of PyTorch for CUDA 13 is built for.
BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def unusable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a card, whose driver PyTorch does not take."""
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 2021\nGCC version:\n"
    )
    monkeypatch.setattr(cards, "DRIVER_VERSION", version)
    monkeypatch.setattr(cards, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_pytorch_without_cuda_on_a_machine_with_a_card_is_refused(
    unusable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    said = r'driver 470\.57\.02.*built without CUDA; install .*CUDA_VISIBLE_DEVICES=""'
    with pytest.raises(UserError, match=said):
        check_options(Options())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_cards()


def test_a_driver_that_is_too_old_is_refused(unusable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nMore.")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(UserError, match=r"too old \(found version 11040\)\.\); .* driver of at least 580"):
        check_cards()
    monkeypatch.setattr(cards, "glob", lambda pattern: [])
    check_cards()


def test_a_card_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("Unrecognized key 'pinned' in CUDA allocator config.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "pinned:1")
    with pytest.raises(
        UserError, match=r"Unrecognized key 'pinned'.* PYTORCH_ALLOC_CONF, which is 'pinned:1'"
    ):
        check_cards()


def test_a_card_that_this_pytorch_was_not_built_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT_FOR)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: (7, 0))
    with pytest.raises(UserError, match=r"Tesla V100 has .* sm_70, and .* was built for sm_75 sm_80"):
        check_cards()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: (8, 9))
    check_cards()


@pytest.mark.parametrize(
    ("architecture", "runs", "does_not_run"),
    [
        ("sm_80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("sm_90a", [(9, 0)], [(9, 1), (10, 0)]),
        ("sm_120", [(12, 0), (12, 1)], [(10, 0), (1, 20)]),
        ("compute_120", [(12, 0), (13, 0)], [(9, 0)]),
        ("gfx90a", [], [(9, 0)]),
    ],
)
def test_which_cards_an_architecture_runs_on(architecture: str, runs: list, does_not_run: list) -> None:
    for capability in (*runs, *does_not_run):
        assert runs_on(architecture, capability) == (capability in runs), capability


def test_a_card_without_bf16_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match=r"Tesla T4 has no bfloat16; pass --no-bf16 .*8 TFLOP/s"):
        check_bf16()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    check_bf16()


def test_a_rank_that_does_not_see_its_card_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_card()  # without any card the ranks share the processor
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="local rank 1 sees 1 card"):
        check_card()
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_card()


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build", "580.159.04"),
        ("NVIDIA UNIX Open Kernel Module for aarch64  570.86.15  Release Build", "570.86.15"),
    ],
)
def test_the_driver_says_its_version_in_a_file(
    line: str, version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The line of the open kernel module, which newer cards need, has the processor behind the module."""
    file = tmp_path / "version"
    file.write_text(f"NVRM version: {line}\nGCC version:  gcc version 13.3.0\n")
    monkeypatch.setattr(cards, "DRIVER_VERSION", file)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() == version


def test_a_driver_without_its_file_is_asked_for_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So it was in a virtual machine with an H100."""
    monkeypatch.setattr(cards, "DRIVER_VERSION", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() is None
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 580.159.04\n")
    command.chmod(0o755)
    assert driver_version() == "580.159.04"
