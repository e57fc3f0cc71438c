"""What a run needs of the machine and of its launcher."""

import os
import shutil
import socket
import sysconfig
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from training.common.console import say
from training.common.errors import UserError
from training.common.files import hold_lock, home_cache_dir, user_cache_dir
from training.common.ranks import ranks_of_node
from training.run.deepspeed_values import is_adam, offload_device


def share_cores(offloads: bool) -> None:
    """The ranks of a node share its cores, instead of each starting a thread on every core.

    They do where the processor computes: without a card, and where the optimizer is offloaded to it.
    """
    ranks = ranks_of_node() or 1
    computes = offloads or not torch.accelerator.is_available()
    if ranks == 1 or not computes or "OMP_NUM_THREADS" in os.environ:
        return
    threads = max(1, torch.get_num_threads() // ranks)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate would set its own number otherwise


def build_operation(builder_name: str) -> None:
    """Build one of DeepSpeed's operations, or load it where it is built; DeepSpeed finds it loaded.

    One process builds at a time. torch's own lock is a file, which a killed process leaves behind; later
    processes would wait for it for ever. Our lock ends with its process, so whoever holds it knows that
    torch's file is a leftover. For an operation that cannot be built here, DeepSpeed prints its own message.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension

    builder = get_accelerator().create_op_builder(builder_name)
    if builder is None or not builder.is_compatible(verbose=False):
        return
    directory = Path(cpp_extension._get_build_directory(builder.name, verbose=False))
    with hold_lock(
        directory / "lock.held", f"waiting for another process that builds {builder.name}", wait=True
    ):
        (directory / "lock").unlink(missing_ok=True)
        if not (directory / f"{builder.name}.so").exists():
            say(f"building DeepSpeed's {builder.name}, which takes about a minute")
        builder.load(verbose=False)


def build_optimizer_operation(config: Mapping[str, Any]) -> None:
    """Build the operation of this configuration's Adam before DeepSpeed itself does."""
    name = optimizer_operation(config)
    if name:
        build_operation(name)


def optimizer_operation(config: Mapping[str, Any]) -> str | None:
    """The name of the builder of the operation that this configuration's Adam needs, or None."""
    is_offloaded = offload_device(config) != "none"
    if not config.get("optimizer"):  # accelerate then takes DeepSpeed's for transformers' AdamW
        return "CPUAdamBuilder" if is_offloaded else None
    if not is_adam(config) or config["optimizer"].get("params", {}).get("torch_adam"):
        return None
    return "CPUAdamBuilder" if is_offloaded else "FusedAdamBuilder"


def check_build_tools(config: Mapping[str, Any]) -> None:
    """Raise UserError where an operation has to be built for this configuration, and a tool is missing.

    Built is DeepSpeed's Adam: the one on the processor, which offload needs, or its fused one. Ninja is
    needed for one that is built, too.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops
    from torch.utils import cpp_extension

    settle_build_directories()
    name = optimizer_operation(config)
    builder = get_accelerator().create_op_builder(name) if name else None
    if builder is None or installed_ops.get(builder.name) or not builder.is_compatible(verbose=False):
        return
    is_fused = name == "FusedAdamBuilder"
    built = Path(cpp_extension._get_build_directory(builder.name, verbose=False), f"{builder.name}.so")
    missing = [] if cpp_extension.is_ninja_available() else ["ninja (pip install ninja)"]
    if not built.exists():
        missing += _missing_for_building(needs_cuda=torch.accelerator.is_available() and is_fused)
    if missing:
        remedy = '; or take "torch_adam": true in "optimizer.params"' if is_fused else ""
        raise UserError(
            f"DeepSpeed builds its {builder.name} on this machine, which takes about a minute, and "
            f"{' and '.join(missing)} is missing; install it{remedy}"
        )


def _missing_for_building(needs_cuda: bool) -> list[str]:
    from torch.utils import cpp_extension

    missing = []
    compiler = os.environ.get("CXX", "c++").split()
    if not compiler or shutil.which(compiler[0]) is None:
        missing.append("a C++ compiler (apt install g++)")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if not headers.exists():
        missing.append(f"Python.h (apt install python3-dev; {headers} is not there)")
    if needs_cuda and cpp_extension.CUDA_HOME is None:
        missing.append("the CUDA toolkit (nvcc)")
    return missing


def settle_build_directories() -> None:
    """Have DeepSpeed's operations built elsewhere, where the user's cache directory cannot be written."""
    directory = user_cache_dir()
    if directory == home_cache_dir():
        return
    for name, subdirectory in (("TORCH_EXTENSIONS_DIR", "torch_extensions"), ("TRITON_CACHE_DIR", "triton")):
        if name not in os.environ:
            os.environ[name] = str(directory / subdirectory)
            say(f"{home_cache_dir()}: cannot be written; {name} is {os.environ[name]}")


def start_deepspeed(timeout: timedelta) -> None:
    """Start the process group, of one process where there is no launcher.

    timeout: how long a collective waits for a rank.

    On a CPU transformers would start it without DeepSpeed's knowledge, and ZeRO-3 would see one rank only.
    """
    settle_build_directories()
    import deepspeed

    if not torch.accelerator.is_available():
        _leave_out_shared_memory()
    if "RANK" not in os.environ:
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            free = port.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free)
        )
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timeout)


def _leave_out_shared_memory() -> None:
    """Have DeepSpeed do without the operation by which ranks on one CPU add up tensors in shared memory.

    Only its inference with divided layers uses it; training goes by gloo. It would take a C++ compiler and
    about a minute at the first start, and 69 MB of /dev/shm a rank, which stay there when a run has ended.
    Where there is less, as the 64 MB of a container, the ranks would crash.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
