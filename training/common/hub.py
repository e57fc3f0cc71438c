"""Check, before any slow work, that a model or data set exists here or on the hub."""

import os
from typing import Literal

import huggingface_hub
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.file_download import repo_folder_name

from training.common.errors import UserError, first_line

# A directory with this file holds an adapter.
ADAPTER_CONFIG = "adapter_config.json"


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


def check_model_path(path: str) -> None:
    """Raise UserError unless `path` is a directory with a model, or the name of a model on the hub."""
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")) and not is_adapter(path):
            raise UserError(f"{path}: a directory without config.json: there is no model in it")
    elif os.path.exists(path) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{path}: no such model directory")
    else:
        check_on_hub(path, "model")


def check_base_model(path: str) -> None:
    """Raise UserError unless `path` is a model (`check_model_path`), and no adapter, which needs its base."""
    check_model_path(path)
    if is_adapter(path):
        raise UserError(
            f"{path}: an adapter; merge it into its base first (python -m training.merge_adapter)"
        )
