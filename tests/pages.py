"""The pages of the repository in their two languages, and what stands in them: blocks, tables, links."""

import importlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
from deepspeed.launcher.runner import parse_args as parse_launcher_arguments

from tests.conftest import ROOT


class Pair(NamedTuple):
    """A page in English and in Chinese, by their places in the repository."""

    english: str
    chinese: str


README = Pair("README.md", "README_zh.md")


def all_pairs() -> list[Pair]:
    """The README and every page of docs/, each with what should be its Chinese page."""
    names = sorted({path.name for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("docs/zh/*.md"))})
    return [README, *(Pair(f"docs/{name}", f"docs/zh/{name}") for name in names)]


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(text: str, kind: str) -> list[str]:
    """The blocks of code of one kind (`bash`, `json`, ...) in a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def kinds_of_blocks(text: str) -> list[str]:
    return re.findall(r"^```(\w+)$", text, re.MULTILINE)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[tuple[int, str]]:
    """The level and the words of each heading."""
    found = re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)
    return [(len(marks), words) for marks, words in found]


def anchor(heading: str) -> str:
    """The name by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def tables(text: str) -> list[list[list[str]]]:
    """Each table as its rows of cells, without the line below its head."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text) + "\n", re.MULTILINE)
    return [
        [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
            for line in table.splitlines()
            if not re.fullmatch(r"[|\s-]+", line) or "---" not in line
        ]
        for table in found
    ]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9_-]*", text))


def shell_lines(text: str) -> list[str]:
    """The commands of a page's blocks, each in one line; a block that is a script of its own is left out."""
    shown = "".join(block for block in blocks(text, "bash") if not block.startswith("#!"))
    return [line.strip() for line in shown.replace("\\\n", " ").splitlines() if line.strip()]


def assert_parses(module: str, arguments: list[str]) -> None:
    """Let the command of a module read its arguments, without running it."""
    command = importlib.import_module(module).main
    if isinstance(command, click.Group):
        command, *arguments = command.commands[arguments[0]], *arguments[1:]
    command.make_context(module, list(arguments))


# Commands of others that the pages show; all else has to be ours.
FOREIGN = (
    "source .venv/bin/activate",
    "conda ",
    "export HF_ENDPOINT=",
    "export HF_HUB_OFFLINE=",
    "hf download ",
    "pip install ",
    "transformers serve ",
    "vllm serve ",
    "ray start ",
    "ct2-transformers-converter ",
    "git clone ",
    "python -m venv ",
    "llama.cpp/",
    "cmake ",
    "ollama ",
    "lm_eval run ",
    "sed -i ",
    "docker ",
)


def assert_is_a_command(line: str) -> None:
    """Raise AssertionError, or click's error, unless a line of a page is a command that can be run."""
    for file in re.findall(r"\brequirements[\w-]*\.txt|\bscripts/\w+\.sh", line):
        assert (ROOT / file).is_file() or file.startswith("requirements-convert"), file
    if "training.trainer " in line and not line.startswith(("python", "deepspeed")):
        assert_parses("training.trainer", shlex.split(line.partition(" training.trainer ")[2]))
        return
    if line.startswith(FOREIGN):
        return
    program, *arguments = shlex.split(line)
    if program == "deepspeed":
        launched = parse_launcher_arguments(arguments)
        assert launched.module
        assert_parses(launched.user_script, launched.user_args)
    elif program == "python":
        assert arguments[0] == "-m"
        assert_parses(arguments[1], arguments[2:])
    else:
        assert program == "bash", line


def path_in(page: str, target: str) -> Path:
    """The file that a link of a page leads to."""
    return ((ROOT / page).parent / target.partition("#")[0]).resolve() if target[0] != "#" else ROOT / page
