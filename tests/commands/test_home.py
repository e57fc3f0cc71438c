"""`~` is the home directory in every option that is a path, also where no shell has put it there."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.conftest import ROOT
from tests.test_imports import modules
from training import trainer
from training.common.command_line import ParsedText

# Options that are text, or a list of names, and no path.
TEXTS = {"run_name", "lora_target", "columns", "prompt", "system", "device", "host", "endpoint", "root_path"}


def commands() -> Iterator[tuple[str, click.Command]]:
    for module, path in modules(ROOT).items():
        if "run_command(main)" in path.read_text("utf-8"):
            command = importlib.import_module(module).main
            yield from ((module, each) for each in getattr(command, "commands", {"": command}).values())


def test_every_path_of_every_command_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    seen = set()
    for module, command in commands():
        for option in command.params:
            kind = option.type
            is_text = isinstance(kind, click.Path | click.types.StringParamType | ParsedText)
            if (
                not is_text
                or getattr(option, "hidden", False)  # click-option-group's titles
                or option.name in TEXTS
                or getattr(kind, "name", "") in ("COUNT|RATIO", "COUNT|SHARE")
            ):
                continue
            if getattr(kind, "exists", False):
                monkeypatch.setattr(kind, "exists", False)  # a file of --config need not be there for this
            converted = kind.convert("~/x", option, None)
            path = str(converted[0] if isinstance(converted, tuple) else converted)
            assert path == "/home/user/x", f"{module} --{option.name}"
            seen.add(option.name)
    assert seen >= {
        "local_output_dir",
        "cache_dir",
        "data_path",
        "deepspeed",
        "config",
        "input_model",
        "model",
    }


def test_a_run_directory_may_be_given_for_its_model(tmp_path: Path) -> None:
    """Those who load to answer look for it themselves, and keep what was typed as the model's name."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    taken = {
        (module, option.name): option.type.convert(str(tmp_path), option, None)
        for module, command in commands()
        for option in command.params
        if option.name in {"input_model", "adapter", "base"}
    }
    assert len(taken) == 6  # of the trainer, of planning, checking, extending, and two of merging
    assert set(taken.values()) == {str(tmp_path / "model")}


def test_the_trainer_takes_it_from_its_options_and_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("input-model: ~/model\nlocal-output-dir: ~/out\n")
    arguments = ["--config=~/run.yaml", "--data-path=~/rows.jsonl:0.5", "--deepspeed=~/zero.json"]
    values = trainer.main.make_context("trainer", arguments).params
    assert values["input_model"] == f"{tmp_path}/model"
    assert values["local_output_dir"] == tmp_path / "out"
    assert values["deepspeed"] == f"{tmp_path}/zero.json"
    assert values["data_path"] == ((f"{tmp_path}/rows.jsonl", 0.5),)
