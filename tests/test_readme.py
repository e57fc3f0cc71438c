"""The two pages show the same commands, and each command is one that our code takes."""

import importlib
import json
import re
import shlex

import click
import pytest
from deepspeed.launcher.runner import parse_args as parse_launcher_arguments

from tests.conftest import MULTI_TURN, ROOT, SINGLE_TURN
from training import trainer
from training.text.conversation import from_row
from training.text.template import render

ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README_zh.md").read_text("utf-8")

# Commands of others that the pages show; all else has to be ours.
FOREIGN = (
    "source .venv/bin/activate",
    "export HF_ENDPOINT=",
    "export HF_HUB_OFFLINE=",
    "hf download ",
    "pip install -r requirements-",
    "transformers serve ",
)


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "".join(blocks(ENGLISH, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if not line.startswith(FOREIGN)]


def assert_parses(module: str, arguments: list[str]) -> None:
    command = importlib.import_module(module).main
    if isinstance(command, click.Group):
        command, *arguments = command.commands[arguments[0]], *arguments[1:]
    command.make_context(module, list(arguments))


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "bash":
        assert (ROOT / arguments[0]).is_file()
    elif program == "deepspeed":
        launched = parse_launcher_arguments(arguments)
        assert launched.module
        assert_parses(launched.user_script, launched.user_args)
    else:
        assert program == "python"
        kind, what, *rest = arguments
        if kind == "-c":
            compile(what, "README.md", "exec")
        else:
            assert kind == "-m"
            assert_parses(what, rest)


def test_both_pages_show_the_same_blocks() -> None:
    for kind in ("bash", "python", "json", "text"):
        assert blocks(ENGLISH, kind) == blocks(CHINESE, kind)
        assert blocks(ENGLISH, kind)
    options = set(re.findall(r"--[a-z0-9-]+", ENGLISH))
    assert options == set(re.findall(r"--[a-z0-9-]+", CHINESE))


def test_every_option_of_the_trainer_is_explained() -> None:
    for option in trainer.main.params:
        if option.name == "local_rank" or option.hidden:  # click-option-group's titles are hidden options
            continue
        for page in (ENGLISH, CHINESE):
            assert f"`{option.opts[0]}" in page, option.opts[0]


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_the_python_snippet_runs_as_it_stands(page: str, tuned: str, capsys) -> None:
    _, snippet = blocks(page, "python")  # the other is tried with an adapter, in tests/model/test_lora.py
    assert '"checkpoints/demo/model"' in snippet
    exec(snippet.replace("checkpoints/demo/model", tuned), {})
    assert capsys.readouterr().out == "我是雅意。\n"


def test_the_rows_of_the_page_are_rows_and_its_text_is_our_text() -> None:
    rows = [json.loads(line) for line in blocks(ENGLISH, "json")[0].splitlines()]
    for row in rows:
        assert from_row(row, answered=True)
    (text,) = blocks(ENGLISH, "text")
    assert text == render(from_row({"instruction": "你是谁", "output": "我是雅意……"})) + "\n"


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_the_numbers_of_the_sample_data_are_right(page: str) -> None:
    single, multi = (len(path.read_text("utf-8").splitlines()) for path in (SINGLE_TURN, MULTI_TURN))
    assert re.search(rf"\b{single}\D+{multi}\b|{single} *条\D+{multi} *", page)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert target.startswith("https://") or (ROOT / target).exists(), target
