"""PyTorch's allocator is set before PyTorch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import ROOT
from training import ALLOCATOR, allocator_for

ASK = "import os, sys, training; print('torch' in sys.modules, os.environ.get('PYTORCH_ALLOC_CONF'))"


def told(**variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTORCH_")}
    asked = [sys.executable, "-c", ASK]
    return subprocess.check_output(asked, cwd=ROOT, env=environment | variables, text=True).strip()


def test_the_allocator_is_set_before_torch_is_imported_unless_the_user_has() -> None:
    assert told() == f"False {ALLOCATOR}"
    assert told(PYTORCH_ALLOC_CONF="backend:native") == "False backend:native"
    assert told(PYTORCH_CUDA_ALLOC_CONF="backend:native") == "False None"


def test_torch_knows_each_setting() -> None:
    """A torch for the processor takes any setting without a word; the names are in its library."""
    library = (Path(torch.__file__).parent / "lib" / "libc10.so").read_bytes()
    for setting in ALLOCATOR.split(","):
        assert setting.split(":")[0].encode() in library, setting


def test_an_older_torch_is_told_only_what_it_knows() -> None:
    """On an H100, torch 2.11 ended with "Unrecognized key 'pinned_max_round_threshold_mb'"."""
    assert allocator_for("2.11.0+cu130") == "expandable_segments:True"
    assert allocator_for("2.13.0") == allocator_for("3.0.1") == ALLOCATOR
