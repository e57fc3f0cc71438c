"""Where an evaluation may write: anywhere but in the directory of a model or of a run."""

import json
from pathlib import Path

from training.common.errors import UserError
from training.common.hub import ADAPTER_CONFIG, MODEL_CONFIG, RECORD

# The files by which the directory of a model, an adapter or a run is known.
KNOWN_BY = (MODEL_CONFIG, ADAPTER_CONFIG, RECORD)


def check_no_model(directory: Path) -> None:
    """Raise UserError where a directory is that of a model, an adapter or a run, or lies directly in one."""
    for name in KNOWN_BY:
        if (directory / name).exists():
            raise _refusal(directory, directory, name)
    above = directory.absolute().parent
    for name in (ADAPTER_CONFIG, RECORD):
        if (above / name).exists():
            raise _refusal(directory, above, name)
    try:
        is_model = "model_type" in json.loads((above / MODEL_CONFIG).read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return  # none is there, or it is another program's
    if is_model:
        raise _refusal(directory, above, MODEL_CONFIG)


def _refusal(directory: Path, model: Path, name: str) -> UserError:
    return UserError(
        f"{directory}: {model} is the directory of a model or a run ({name} is in it), where an evaluation "
        "does not write; give a directory of its own, such as checkpoints/evaluation"
    )
