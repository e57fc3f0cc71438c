import json
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import SINGLE_TURN
from tests.run.test_sft_trainer import make_trainer
from training import trainer as command
from training.data.encoded import EncodedFile, load_encoded
from training.run.reporters import keep_in, newest_id, waits_for_login

# A swanlab of our own: it notes what it is told, and its network fails at the second log entry.
SWANLAB = """
config, told, setup = {}, [], []

def get_run():
    return None

def init(**settings):
    setup.append(settings)

def log(values, step):
    if told:
        raise ConnectionError("no route to host\\nafter 3 tries")
    told.append((step, values))
"""


@pytest.fixture(scope="module")
def rows(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> EncodedFile:
    return load_encoded(str(SINGLE_TURN), tokenizer, 2048, tmp_path_factory.mktemp("cache"))


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "package"), [("wandb", "wandb"), ("swanlab", "'swanlab<0.8'"), ("mlflow", "mlflow")]
)
def test_a_package_that_is_missing_is_one_line(
    monkeypatch, outcome, name: str, package: str, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    arguments = f"--data-path x --input-model y --local-output-dir {tmp_path / 'out'} --report-to {name}"
    status, out, err = outcome(command.main, arguments)
    assert (status, out) == (2, "")
    assert err == (
        f"error: --report-to {name}: its package is not installed here; pip install {package}, or leave it "
        "out\n"
    )
    assert not (tmp_path / "out").exists()


def test_swanlab_is_refused_where_it_would_wait_for_a_key(monkeypatch, tmp_path: Path) -> None:
    for name in ("SWANLAB_MODE", "SWANLAB_API_KEY", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path))
    assert waits_for_login()
    for name, value in (("SWANLAB_MODE", "offline"), ("SWANLAB_API_KEY", "key"), ("RANK", "1")):
        with monkeypatch.context() as set_:
            set_.setenv(name, value)
            assert not waits_for_login(), name
    (tmp_path / ".netrc").touch()
    assert not waits_for_login()


def test_a_service_that_fails_ends_no_run(
    base,
    tokenizer,
    tmp_path,
    rows,
    monkeypatch,
    capsys,
) -> None:
    monkeypatch.setenv("SWANLAB_LOG_DIR", "x")  # so that the run sets nothing in this process
    (tmp_path / "swanlab.py").write_text(SWANLAB)
    monkeypatch.syspath_prepend(tmp_path)
    trainer = make_trainer(base, tokenizer, tmp_path / "a-run", rows, 8, max_steps=4, report_to=["swanlab"])
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert len(set(kinds)) == len(kinds)  # transformers warns of a second one
    trainer.train()
    swanlab = sys.modules.pop("swanlab")
    assert swanlab.setup[0]["experiment_name"] == "a-run"
    ((step, values),) = swanlab.told
    assert (step, values["train/loss"]) == (1, trainer.state.log_history[0]["loss"])
    warnings = [line for line in capsys.readouterr().out.splitlines() if "swanlab" in line]
    assert warnings == ["WARNING: step 2: swanlab failed (no route to host); the run goes on without it"]
    assert metrics(tmp_path / "a-run") == trainer.state.log_history
    assert [entry["step"] for entry in trainer.state.log_history] == [1, 2, 3, 4, 4]


def test_metrics_are_written_at_once_and_cut_where_a_run_goes_on(
    base,
    tokenizer,
    tmp_path,
    rows,
) -> None:
    arguments = {
        "max_steps": 6, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 3,
        "eval_strategy": "steps", "eval_steps": 2, "keep": 2, "per_device_train_batch_size": 2,
    }  # fmt: skip
    trainer = make_trainer(base, tokenizer, tmp_path, rows, 10, **arguments)
    step, seen = trainer.training_step, []

    def interrupted(*args) -> torch.Tensor:
        seen.append([(entry["step"], "eval_loss" in entry) for entry in metrics(tmp_path)])
        if len(seen) == 5:
            raise KeyboardInterrupt
        return step(*args)

    trainer.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert seen[2] == [(1, False), (2, False), (2, True)]
    before = metrics(tmp_path)
    assert [entry["step"] for entry in before] == [1, 2, 2, 3, 4, 4]
    with open(tmp_path / "metrics.jsonl", "a") as half:
        half.write('{"loss": 1')  # as a killed process may leave it
    again = make_trainer(base, tokenizer, tmp_path, rows, 10, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 6]
    assert metrics(tmp_path)[:4] == before[:4]
    assert metrics(tmp_path)[4]["loss"] == pytest.approx(before[4]["loss"])


def test_services_keep_their_files_in_the_run_directory_and_go_on(tmp_path, monkeypatch) -> None:
    for variable in (
        "WANDB_DIR",
        "WANDB_RUN_ID",
        "WANDB_RESUME",
        "WANDB_LOGIN_TIMEOUT",
        "MLFLOW_TRACKING_URI",
    ):
        monkeypatch.setenv(variable, "")  # put back at the end
        monkeypatch.delenv(variable)
    for name in ("offline-run-20260102_030405-older", "run-20260103_000000-newer", "latest-run", "debug.log"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert newest_id(tmp_path / "wandb") == "newer"
    assert newest_id(tmp_path / "swanlog") is None
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    keep_in(tmp_path, ["tensorboard", "wandb"])
    found = {name: os.environ.get(name) for name in ("WANDB_DIR", "WANDB_RUN_ID", "MLFLOW_TRACKING_URI")}
    assert found == {"WANDB_DIR": "/elsewhere", "WANDB_RUN_ID": "newer", "MLFLOW_TRACKING_URI": None}
