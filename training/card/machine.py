"""Part 0: the card, the libraries and the host; how fast matrices multiply and memory is copied."""

import os
import platform
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from training.card.page import Check
from training.card.timing import median_seconds
from training.run.cards import driver_version
from training.run.speed import product_flops_per_second

LIBRARIES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "bitsandbytes", "triton")

# Seconds for which products are measured, and the bytes of the copies.
PRODUCT_SECONDS = 2.0
COPIED = {"cuda": 2**31, "cpu": 2**26}


def measure_machine(check: Check) -> None:
    if check.on_card:
        _add_cards(check)
    else:
        check.add("card", "none that torch can use", note="the CPU is measured, with tiny shapes")
    for name in LIBRARIES:
        check.add(name, _version(name))
    check.add("Python", platform.python_version())
    check.add("host", f"{platform.node()}, {platform.platform()}")
    check.add("cores", os.cpu_count() or 0, note=f"{torch.get_num_threads()} threads")
    check.add("memory of the host", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, "GB")
    for name, found in _build_tools().items():
        check.add(name, found or "not found", note="" if found else "offloading the optimizer needs it")
    _add_speeds(check)


def _add_cards(check: Check) -> None:
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        check.add(
            f"card {index}", properties.name, note=f"{properties.multi_processor_count} multiprocessors"
        )
        check.add(f"memory of card {index}", properties.total_memory / 1e9, "GB")
    free, total = torch.cuda.mem_get_info(check.device)
    check.add("free memory of card 0", free / 1e9, "GB", at_least=0.9 * total / 1e9, note=_users(free, total))
    major, minor = torch.cuda.get_device_capability(check.device)
    built_for = ", ".join(torch.cuda.get_arch_list())
    check.add("architectures that torch is built for", built_for, note=f"the card's is sm_{major}{minor}")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    check.add("bfloat16 in hardware", int(has_bf16), at_least=1, note="" if has_bf16 else "pass --no-bf16")
    check.add("driver", driver_version() or "unknown")
    check.add("CUDA that torch is built for", torch.version.cuda or "none")
    check.add("cuDNN", str(torch.backends.cudnn.version()))
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else ()
    check.add("NCCL", ".".join(map(str, nccl)) or "none")


def _users(free: int, total: int) -> str:
    return "" if free >= 0.9 * total else "another program holds memory of the card: the figures below suffer"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _build_tools() -> dict[str, str | None]:
    """Where the things are that DeepSpeed builds its operations with; None for one that is missing."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return {
        "C++ compiler": shutil.which(os.environ.get("CXX", "c++")),
        "ninja": shutil.which("ninja"),
        "Python.h": str(header) if header.is_file() else None,
        "nvcc": shutil.which("nvcc") or (str(nvcc) if nvcc.is_file() else None),
    }


def _add_speeds(check: Check) -> None:
    """The speeds that later parts are held to."""
    device = check.device
    seconds = PRODUCT_SECONDS if check.on_card else PRODUCT_SECONDS / 4
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        rate = product_flops_per_second(dtype, device, seconds)
        if rate is None:
            check.add(f"matrix products, {name}", "unknown", note="no two of them took about the same time")
            continue
        check.add(f"matrix products, {name}", rate / 1e12, "TFLOP/s")
        if dtype == torch.bfloat16:
            check.flops_per_second = rate
    size = COPIED[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device, 5)
    check.bytes_per_second = 2 * size / seconds
    check.add("copying within the memory", check.bytes_per_second / 1e9, "GB/s", note="read and written")
    if check.on_card:
        host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=True)
        part = source[: size // 4]
        for name, to, of in (("to the card", part, host), ("from the card", host, part)):
            seconds = median_seconds(lambda to=to, of=of: to.copy_(of, non_blocking=True), device, 5)
            check.add(f"copying {name}", size / 4 / seconds / 1e9, "GB/s", note="pinned memory")
