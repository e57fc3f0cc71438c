"""Whether PyTorch can use the cards of this machine, found out before anything slow is done."""

import os
import re
import subprocess
from glob import glob
from pathlib import Path
from typing import NoReturn

import torch

from training import allocator_settings
from training.common.errors import UserError, first_line

# The oldest driver for each major version of CUDA on Linux (NVIDIA's release notes of the CUDA toolkit, the
# table of minor version compatibility).
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}

# Where NVIDIA's driver says its version.
DRIVER_VERSION = Path("/proc/driver/nvidia/version")

ON_PROCESSOR = 'to train on the processor all the same, set CUDA_VISIBLE_DEVICES=""'


def driver_version() -> str | None:
    """The version of NVIDIA's driver, such as 535.104.05; None where there is none.

    NVIDIA's own command is asked where the driver's file is missing or says something else. The version is
    the first number with dots in the file; the name of its kernel module may hold another number, as in
    "x86_64".
    """
    try:
        text = DRIVER_VERSION.read_text("utf-8")
    except OSError:
        text = ""
    found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)", text, re.MULTILINE)
    return found[1] if found else _driver_of_command()


def _driver_of_command() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        finished = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"\d+(?:\.\d+)+", finished.stdout)
    return found and found[0]


def has_nvidia_card() -> bool:
    """Whether the driver shows a card of NVIDIA's to this process, whatever PyTorch can do with it."""
    return bool(glob("/dev/nvidia[0-9]*"))


def check_cards() -> None:
    """Raise UserError for a card that PyTorch cannot use, unless CUDA_VISIBLE_DEVICES hides all cards."""
    if torch.cuda.is_available():
        _start_card()
        check_architecture()
    elif has_nvidia_card() and not _cards_are_hidden():
        _refuse_unusable()


def _start_card() -> None:
    try:
        torch.cuda.init()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"PyTorch {torch.__version__} cannot start the card: {first_line(error)}; if that is about its "
            f"allocator, correct PYTORCH_ALLOC_CONF, which is {allocator_settings()!r}; otherwise look at "
            "nvidia-smi"
        ) from None


def _cards_are_hidden() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1")


def _refuse_unusable() -> NoReturn:
    driver = f" (driver {driver_version() or 'unknown'})"
    what = f"this machine has a card of NVIDIA's{driver}, and PyTorch {torch.__version__} cannot use it"
    cuda = torch.version.cuda
    if cuda is None:
        raise UserError(
            f"{what}: it was built without CUDA; install one that was built for a CUDA that the driver has "
            f"(https://pytorch.org/get-started/locally/), or, {ON_PROCESSOR}"
        )
    try:
        torch.cuda.init()
        reason = "it finds no card"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    oldest = OLDEST_DRIVER.get(cuda.split(".")[0])
    needed = f" of at least {oldest}" if oldest else ""
    raise UserError(
        f"{what} ({reason}); install a driver{needed}, which CUDA {cuda} needs, or a PyTorch that was built "
        f"for an older CUDA; look whether CUDA_VISIBLE_DEVICES names cards that are there; {ON_PROCESSOR}"
    )


def check_architecture() -> None:
    """Raise UserError for a card of NVIDIA's whose architecture this PyTorch was not built for."""
    if torch.version.hip:
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    card = min(local_rank, torch.cuda.device_count() - 1)  # `check_card` refuses a rank without a card
    capability = torch.cuda.get_device_capability(card)
    built_for = torch.cuda.get_arch_list()
    if built_for and not any(runs_on(architecture, capability) for architecture in built_for):
        raise UserError(
            f"{torch.cuda.get_device_name(card)} has the architecture sm_{capability[0]}{capability[1]}, and "
            f"PyTorch {torch.__version__} was built for {' '.join(built_for)}; install one that was built "
            f"for this card (for an old card an older PyTorch, or one for an older CUDA), or, {ON_PROCESSOR}"
        )


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture of `torch.cuda.get_arch_list` runs on a card of this capability.

    Machine code (sm_86) runs on cards of the same major version and a minor version that is no lower; with
    an "a" at its end (sm_90a) on cards of exactly that version. Intermediate code (compute_80) is compiled
    for any later card (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if not found:
        return False  # ROCm's names, gfx90a, say nothing of NVIDIA's cards
    version = int(found[2]), int(found[3])
    if found[4] == "a":
        return version == capability
    if found[1] == "compute":
        return version <= capability
    return version[0] == capability[0] and version <= capability


def check_bf16() -> None:
    """Raise UserError for a card that has no bfloat16, such as a V100 or T4."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name()} has no bfloat16; pass --no-bf16 for float32, which takes twice "
            "the memory and is slow (a T4 reaches 8 TFLOP/s in it, where an A100 reaches 312 in bfloat16)"
        )


def check_card() -> None:
    """Raise UserError where this rank of plain `srun` does not see the card of its local rank."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if cards and local_rank >= cards:
        raise UserError(
            f"local rank {local_rank} sees {cards} card(s), and needs card {local_rank}; start no more "
            "ranks than cards on a node, each of which sees them all (srun --gpu-bind=none)"
        )
