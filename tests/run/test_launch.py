import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from training.common.errors import UserError
from training.common.options import default_cache_dir
from training.run import launch
from training.run.launch import (
    build_optimizer_operation,
    check_build_tools,
    settle_build_directories,
    share_cores,
)


@pytest.mark.parametrize(("ranks", "expected"), [("2", 2), ("3", 1), ("16", 1)])
def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch, ranks: str, expected: int) -> None:
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "environ", {"LOCAL_SIZE": ranks})
    share_cores(offloads=False)
    assert threads == [expected]
    assert os.environ.pop("OMP_NUM_THREADS") == str(expected)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    share_cores(offloads=False)  # the cards compute
    assert threads == [expected]
    share_cores(offloads=True)
    assert threads == [expected, expected]


def test_operations_are_built_elsewhere_where_the_home_directory_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {"HOME": "/proc/nobody"}  # which not even root can make
    monkeypatch.setattr(os, "environ", environment)
    settle_build_directories()
    [place] = tmp_path.iterdir()
    assert environment["TORCH_EXTENSIONS_DIR"] == f"{place}/torch_extensions"
    assert place.stat().st_mode & 0o777 == 0o700
    assert "/proc/nobody/.cache: cannot be written; TORCH_EXTENSIONS_DIR is" in capsys.readouterr().out
    assert default_cache_dir() == place / "yayi"  # the same one for all
    place.chmod(0o777)  # somebody else may have put a library there
    assert default_cache_dir().parent != place
    environment.clear()
    environment["HOME"] = str(tmp_path)
    settle_build_directories()
    assert environment == {"HOME": str(tmp_path)}


BUILDER = """
import sys
from types import SimpleNamespace
from deepspeed.accelerator import get_accelerator
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton
from training.run.launch import build_operation

def load(verbose):
    lock = FileBaton(cpp_extension._get_build_directory("an_operation", verbose=False) + "/lock")
    assert lock.try_acquire(), "it would wait for ever"
    print("building", flush=True)
    input()
    lock.release()

builder = SimpleNamespace(name="an_operation", is_compatible=lambda verbose: True, load=load)
get_accelerator().create_op_builder = lambda name: builder
build_operation("AnOperationBuilder")
"""


@pytest.mark.slow
def test_a_build_that_was_killed_does_not_stop_the_next_one(tmp_path: Path) -> None:
    """The first builder is killed and leaves torch's lock; the second has waited for it, and builds."""

    def start() -> subprocess.Popen:
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path), "DS_ACCELERATOR": "cpu"}
        return subprocess.Popen(
            [sys.executable, "-c", BUILDER], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    first = start()
    said = "building DeepSpeed's an_operation, which takes about a minute\n"
    assert [first.stdout.readline(), first.stdout.readline()] == [said, "building\n"]
    second = start()
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=2)
    first.kill()
    first.communicate()
    assert (tmp_path / "an_operation" / "lock").exists()
    out, err = second.communicate("\n", timeout=120)
    assert (second.returncode, out) == (0, f"{said}building\n"), err
    assert not (tmp_path / "an_operation" / "lock").exists()


@pytest.mark.parametrize(
    ("optimizer", "zero", "expected"),
    [
        ({"type": "AdamW", "params": {"lr": "auto"}}, {}, ["FusedAdamBuilder"]),
        ({"type": "Adam"}, {"offload_optimizer": {"device": "cpu"}}, ["CPUAdamBuilder"]),
        ({"type": "AdamW", "params": {"torch_adam": True}}, {}, []),
        ({"type": "Lion"}, {}, []),
        ({}, {}, []),
        ({}, {"offload_optimizer": {"device": "cpu"}}, ["CPUAdamBuilder"]),
    ],
)
def test_what_is_built_is_what_the_configuration_uses(monkeypatch, optimizer, zero, expected) -> None:
    built = []
    monkeypatch.setattr(launch, "build_operation", built.append)
    build_optimizer_operation({"optimizer": optimizer, "zero_optimization": zero})
    assert built == expected


OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("CXX", "no-such-compiler", "cpu_adam .*about a minute, and a C.. compiler .*is missing"),
        ("include", "/nowhere", r"Python.h .*/nowhere/Python.h is not there\) is missing"),
        ("PATH", "/nowhere", r"ninja \(pip install ninja\)"),
    ],
)
def test_a_tool_that_a_build_would_miss_is_named_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, value: str, said: str
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))  # where nothing is built yet
    check_build_tools(OFFLOAD)
    if setting == "include":
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": value})
    else:
        monkeypatch.setenv(setting, value)
    with pytest.raises(UserError, match=said):
        check_build_tools(OFFLOAD)
    check_build_tools({"zero_optimization": {"stage": 2}})  # without offload nothing is built
    if setting != "PATH":  # what is built already needs no compiler
        (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
        check_build_tools(OFFLOAD)
