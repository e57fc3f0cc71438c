"""Models and data sets on ModelScope, the usual mirror in China, by the name `modelscope:OWNER/NAME`."""

import functools
import re
from pathlib import Path
from typing import Literal

from training.common.console import say
from training.common.errors import UserError, first_line

# How such a name begins.
MODELSCOPE = "modelscope:"

NAME = re.compile(MODELSCOPE + r"([\w-][\w.-]*/[\w-][\w.-]*)")

# Weights in formats that nothing here reads. Those of PyTorch are read where there are none in safetensors.
NEVER_READ = ["*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]
SELDOM_READ = ["*.bin", "*.pt"]


@functools.cache  # so that a process asks for each name once
def local_path(path: str, kind: Literal["model", "dataset"] = "model") -> str:
    """The directory to which `modelscope:OWNER/NAME` is downloaded; any other path as it is.

    ModelScope's own package keeps the files in its cache; its locks let several processes ask at once. Raises
    UserError where that package is missing, and where it cannot download.
    """
    if not path.startswith(MODELSCOPE):
        return path
    match = NAME.fullmatch(path)
    if match is None:
        raise UserError(f"{path}: not of the form modelscope:OWNER/NAME; check the name")
    try:
        from modelscope import dataset_snapshot_download, snapshot_download
        from modelscope.hub.errors import HubError
    except ImportError:
        raise UserError(
            f"{path}: needs ModelScope's package, as it is pinned: pip install -r requirements-modelscope.txt"
        ) from None
    name = match[1]
    try:
        if kind == "dataset":
            directory = dataset_snapshot_download(name)
        else:
            directory = snapshot_download(name, ignore_patterns=[*NEVER_READ, *SELDOM_READ])
            if not any(Path(directory).glob("*.safetensors")):
                directory = snapshot_download(name, ignore_patterns=NEVER_READ)
    except (HubError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: ModelScope has no such {kind}, or cannot be asked ({first_line(error)}); check the "
            "name and the network"
        ) from None
    say(f"{path}: in {directory}", on_stderr=True)
    return directory
