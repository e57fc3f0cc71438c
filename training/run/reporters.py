"""Who is sent the log entries of a run: metrics.jsonl, and the services of --report-to.

The services are reached by transformers' own integrations, which their own environment variables set up, such
as WANDB_MODE=offline, SWANLAB_MODE=offline and MLFLOW_TRACKING_URI.
"""

import json
import os
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import (
    get_reporting_integration_callbacks,
    is_mlflow_available,
    is_swanlab_available,
    is_tensorboard_available,
    is_wandb_available,
)

from training.common.console import say
from training.common.errors import UserError, first_line
from training.common.files import write_atomic

METRICS = "metrics.jsonl"

# For each service, whether its package is here, and what is given to pip to install it.
PACKAGES = {
    "tensorboard": (is_tensorboard_available, "tensorboard"),
    "wandb": (is_wandb_available, "wandb"),
    "swanlab": (is_swanlab_available, "'swanlab<0.8'"),
    "mlflow": (is_mlflow_available, "mlflow"),
}

# From this version on, swanlab.get_run() raises where transformers 5.23 expects None.
UNFIT_SWANLAB = Version("0.8")


def check_reporters(names: Sequence[str]) -> None:
    """Raise UserError where the package of a service is not installed or does not fit, and for SwanLab where
    nobody is logged in: it would ask on a terminal, and wait for ever.
    """
    for name in names:
        if name == "none":
            continue
        is_available, package = PACKAGES[name]
        if not is_available():
            raise UserError(
                f"--report-to {name}: its package is not installed here; pip install {package}, or leave "
                "it out"
            )
        if name == "swanlab" and (found := Version(version("swanlab"))) >= UNFIT_SWANLAB:
            raise UserError(
                f"--report-to swanlab: version {found} does not fit transformers' integration; pip install "
                f"{package}, or leave it out"
            )
        if name == "swanlab" and waits_for_login():
            raise UserError(
                "--report-to swanlab: nobody is logged in; run `swanlab login`, or set SWANLAB_MODE=offline"
            )


def waits_for_login() -> bool:
    """Whether SwanLab, in rank 0, would send the run to an account and has no key of one."""
    if os.environ.get("RANK", "0") != "0" or os.environ.get("SWANLAB_MODE", "cloud") != "cloud":
        return False
    keys = Path(os.environ.get("SWANLAB_SAVE_DIR", "~/.swanlab")).expanduser() / ".netrc"
    return "SWANLAB_API_KEY" not in os.environ and not keys.exists()


def add_reporters(trainer: Trainer) -> None:
    """Have the log entries written to metrics.jsonl in the trainer's `run_dir`, and sent to its services.

    None of them ends the run where it fails.
    """
    trainer.args.run_name = trainer.run_dir.name
    reporters: dict[str, TrainerCallback] = {METRICS: MetricsFile(trainer.run_dir / METRICS)}
    names = trainer.args.report_to
    if trainer.is_world_process_zero():
        keep_in(trainer.run_dir, names)
    for name, integration in zip(names, get_reporting_integration_callbacks(names), strict=True):
        reporters[name] = trainer.pop_callback(integration)
    trainer.add_callback(Reporters(reporters))


def keep_in(run_dir: Path, names: Sequence[str]) -> None:
    """Have services keep their files in the run directory, go on with a run there, and not wait for answers.

    What the user has set in the environment stays as it is.
    """
    directory = run_dir.absolute()
    defaults = {
        "WANDB_DIR": str(directory),
        "WANDB_LOGIN_TIMEOUT": "30",  # seconds for which it waits on a terminal for an account's key
        "SWANLAB_LOG_DIR": os.environ.get("SWANLAB_LOGDIR", str(directory / "swanlog")),
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory / 'mlflow.db'}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # of mlflow's own 7, the last waits for two minutes
    }
    for service, place in (("WANDB", directory / "wandb"), ("SWANLAB", directory / "swanlog")):
        newest = newest_id(place)
        if newest:
            defaults |= {f"{service}_RUN_ID": newest, f"{service}_RESUME": "allow"}
    for variable, value in defaults.items():
        if variable.split("_")[0].lower() in names:
            os.environ.setdefault(variable, value)


def newest_id(directory: Path) -> str | None:
    """The id of the newest run of wandb or swanlab in a directory: `x` of `run-TIME-x`, or None."""
    found = [re.fullmatch(r"(?:offline-)?run-(\d{8}_\d{6})-(\w+)", path.name) for path in directory.glob("*")]
    return max(((match[1], match[2]) for match in found if match), default=(None, None))[1]


class Reporters(TrainerCallback):
    """Callbacks by their names, each of which may fail: one line says so, and the run goes on without it."""

    def __init__(self, callbacks: dict[str, TrainerCallback]) -> None:
        self._callbacks = callbacks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tell("on_train_begin", args, state, control, **kwargs)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tell("on_log", args, state, control, **kwargs)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tell("on_save", args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tell("on_train_end", args, state, control, **kwargs)

    def _tell(
        self,
        event: str,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        for name, callback in list(self._callbacks.items()):
            try:
                getattr(callback, event)(args, state, control, **kwargs)
            except Exception as error:  # a network's, an account's, a disk's: each has classes of its own
                say(
                    f"WARNING: step {state.global_step}: {name} failed ({first_line(error)}); the run goes "
                    "on without it"
                )
                del self._callbacks[name]


class MetricsFile(TrainerCallback):
    """Writes each log entry as a line of JSON, with the keys that it has in trainer_state.json.

        {"loss": 2.3, "grad_norm": 0.5, "learning_rate": 1e-05, ..., "epoch": 0.5, "step": 10}
        {"eval_loss": 2.2, "eval_tokens": 1200, ..., "epoch": 0.5, "step": 10}

    A run that goes on begins with the entries of its checkpoint: what was logged after that is taken again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            write_atomic(self._path, "".join(map(as_line, state.log_history)))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(as_line(state.log_history[-1]))


def as_line(entry: dict[str, float]) -> str:
    return json.dumps(entry) + "\n"
