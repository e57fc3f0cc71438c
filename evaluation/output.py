"""Where an evaluation may write: anywhere but in the directory of a model or of a run."""

import json
from pathlib import Path

from training.common.errors import UserError

# The files by which a model's directory and a run's directory are known.
MODEL_FILE, RUN_FILE = "config.json", "run.json"


def check_no_model(directory: Path) -> None:
    """Raise UserError where a directory is that of a model or a run, or lies directly in one."""
    for name in (MODEL_FILE, RUN_FILE):
        if (directory / name).exists():
            raise _refusal(directory, directory, name)
    above = directory.absolute().parent
    if (above / RUN_FILE).exists():
        raise _refusal(directory, above, RUN_FILE)
    try:
        is_model = "model_type" in json.loads((above / MODEL_FILE).read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return  # none is there, or it is another program's
    if is_model:
        raise _refusal(directory, above, MODEL_FILE)


def _refusal(directory: Path, model: Path, name: str) -> UserError:
    return UserError(
        f"{directory}: {model} is the directory of a model or a run ({name} is in it), where an evaluation "
        "does not write; give a directory of its own, such as checkpoints/evaluation"
    )
