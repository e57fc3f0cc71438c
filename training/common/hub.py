"""Check, before any slow work, that a model or data set exists here or on the hub."""

import os
import zipfile
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open

from training.common.errors import UserError, first_line

# A directory with one of these files holds a model or an adapter.
MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"

# The directory of the model in a run directory; those of earlier versions have it at their root.
MODEL = "model"

# The files that loading a model, an adapter or a tokenizer reads. transformers reads weights in PyTorch's own
# format only where there are none in safetensors.
FILES_READ = ("*.json", "tokenizer.model", "model*.safetensors", "adapter_model.safetensors")
FILES_READ_INSTEAD = "pytorch_model*.bin"

# How a file begins that stands for a large one which git has not fetched
# (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
POINTER_START = b"version https://git-lfs.github.com/spec/"


def check_on_hub(name: str, kind: Literal["model", "dataset"]) -> None:
    """Raise UserError unless the hub, or what was downloaded from it before, has `name`.

    The libraries that download retry for half a minute and say so in many lines; this asks once.
    """
    if HF_HUB_OFFLINE or os.path.isdir(
        os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    ):
        return
    try:
        exists = huggingface_hub.repo_exists(name, repo_type=kind)
    except Exception as error:  # the HTTP library's own kinds, which change with huggingface_hub
        raise UserError(
            f"{name}: not a local path, and {ENDPOINT} cannot be asked for it ({first_line(error)}); "
            "check the path or the network, or set HF_ENDPOINT to a mirror"
        ) from None
    if not exists:
        raise UserError(f"{name}: neither a local path nor a {kind} on {ENDPOINT}; check the name")


def is_adapter(path: str) -> bool:
    """Whether a directory holds an adapter, for a model that is elsewhere."""
    return os.path.isfile(os.path.join(path, ADAPTER_CONFIG))


def holds_model(path: str) -> bool:
    """Whether a directory holds a model or an adapter."""
    return os.path.isfile(os.path.join(path, MODEL_CONFIG)) or is_adapter(path)


def model_directory(path: str) -> str:
    """The directory of the model where `path` is a run directory; `path` itself where it is anything else."""
    inner = os.path.join(path, MODEL)
    return inner if holds_model(inner) and not holds_model(path) else path


def check_model_path(path: str) -> None:
    """Raise UserError unless `path` is a directory with a model, or the name of a model on the hub."""
    if os.path.isdir(path):
        if not holds_model(path):
            raise UserError(f"{path}: a directory without config.json: there is no model in it")
        check_files(Path(path))
    elif os.path.exists(path) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{path}: no such model directory")
    else:
        check_on_hub(path, "model")


def check_files(directory: Path) -> None:
    """Raise UserError for a file of a model directory that is a git-lfs pointer, incomplete, or unreadable.

    Of the weights only the beginning and the size are looked at, so that this takes no time.
    """
    files = [file for pattern in FILES_READ for file in directory.glob(pattern)]
    if not any(file.suffix == ".safetensors" for file in files):
        files += directory.glob(FILES_READ_INSTEAD)
    for file in sorted(files):
        try:
            with file.open("rb") as opened:
                start = opened.read(len(POINTER_START))
        except OSError as error:  # among others a link to a file that is gone
            raise UserError(f"{file}: {error.strerror}") from None
        if start == POINTER_START:
            raise UserError(
                f"{file}: a git-lfs pointer, and not the file that it stands for; run `git lfs pull` in "
                f"{directory}"
            )
        if file.suffix == ".bin" and start.startswith(b"PK") and not zipfile.is_zipfile(file):
            raise UserError(f"{file}: incomplete weights; fetch the file again")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="np"):
                    pass
            except SafetensorError as error:
                raise UserError(
                    f"{file}: broken or incomplete weights ({first_line(error)}); fetch the file again"
                ) from None


def check_base_model(path: str) -> None:
    """Raise UserError unless `path` is a model (`check_model_path`), and no adapter, which needs its base."""
    check_model_path(path)
    if is_adapter(path):
        raise UserError(
            f"{path}: an adapter; merge it into its base first (python -m training.merge_adapter)"
        )
