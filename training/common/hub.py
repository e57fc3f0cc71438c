"""Check, before any slow work, that a model or data set exists here or on the hub."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import huggingface_hub
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open

from training.common.errors import UserError, first_line
from training.common.modelscope import local_path

Answer = TypeVar("Answer")

# A directory with one of these files holds a model or an adapter.
MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"

# The directory of the model in a run directory; those of earlier versions have it at their root. And what the
# run goes by, there (see `training.run.record`).
MODEL = "model"
RECORD = "run.json"

# The files that loading a model, an adapter or a tokenizer reads. transformers reads weights in PyTorch's own
# format only where there are none in safetensors.
FILES_READ = ("*.json", "tokenizer.model", "model*.safetensors", "adapter_model.safetensors")
FILES_READ_INSTEAD = "pytorch_model*.bin"

# How a file begins that stands for a large one which git has not fetched
# (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
POINTER_START = b"version https://git-lfs.github.com/spec/"


def check_on_hub(name: str, kind: Literal["model", "dataset"]) -> None:
    """Raise UserError unless the hub, or what was downloaded from it before, has `name`.

    A name whose first part is a directory here is a path, and the hub is not asked. The libraries that
    download retry for half a minute and say so in many lines; this asks once.
    """
    first, slash, _ = name.partition("/")
    if slash and os.path.isdir(first):
        command = f"hf download {name}{' --repo-type dataset' * (kind == 'dataset')} --local-dir DIRECTORY"
        raise UserError(
            f"{name}: no such path, and {first} is a directory here; to have a {kind} of that name from the "
            f"hub, run `{command}` and give the directory"
        )
    if HF_HUB_OFFLINE or os.path.isdir(
        os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    ):
        return
    try:
        exists = ask_hub(huggingface_hub.repo_exists, name, repo_type=kind)
    except ConnectionError as error:
        raise UserError(
            f"{name}: not a local path, and {ENDPOINT} cannot be asked for it ({error}); "
            "check the path or the network, or set HF_ENDPOINT to a mirror"
        ) from None
    if not exists:
        raise UserError(f"{name}: neither a local path nor a {kind} on {ENDPOINT}; check the name")


def ask_hub(question: Callable[..., Answer], *arguments: Any, **settings: Any) -> Answer:
    """What a function of huggingface_hub returns that asks once. Raises ConnectionError where it fails."""
    try:
        return question(*arguments, **settings)
    except Exception as error:  # the HTTP library's own kinds, which change with huggingface_hub
        raise ConnectionError(first_line(error)) from None


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


def model_name(path: str) -> str:
    """The name of a model's directory; a model that a run has made is named after the run."""
    model = Path(path).absolute()
    return model.parent.name if model.name == MODEL and (model.parent / RECORD).exists() else model.name


def check_model_path(path: str) -> None:
    """Raise UserError unless `path` is a directory with a model, or the name of a model on a hub."""
    path = local_path(path)
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
    if is_adapter(local_path(path)):
        raise UserError(
            f"{path}: an adapter; merge it into its base first (python -m training.merge_adapter)"
        )
