"""Whether the hub has what a command line names, asked once and before any long wait."""

import os
from typing import Literal

import huggingface_hub
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.file_download import repo_folder_name

from training.common.errors import UserError, first_line


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
