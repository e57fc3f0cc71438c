"""A saved directory has a card that the hub would take, and no file that the page does not name."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from tests.conftest import ROOT
from tests.pages import FOREIGN, assert_parses, blocks

# The keys that our cards have; the hub knows more of them.
KEYS = {
    "base_model", "datasets", "library_name", "license", "license_link", "license_name", "pipeline_tag",
    "tags",
}  # fmt: skip
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def checked_card(directory: Path) -> ModelCard:
    """The card in a directory, after its header, its commands and its links were checked."""
    text = (directory / "README.md").read_text(encoding="utf-8")
    start, header, body = text.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(header)
    card = ModelCard.load(directory / "README.md")
    assert card.data.to_dict() == found
    assert found.keys() <= KEYS
    is_adapter = (directory / "adapter_config.json").exists()
    assert found["library_name"] == ("peft" if is_adapter else "transformers")
    assert found["pipeline_tag"] == "text-generation"
    for key in ("base_model", "datasets"):
        for name in found.get(key, []):
            assert HUB_NAME.fullmatch(name), name
            assert not Path(name).exists(), f"a local path: {name}"
    for target in re.findall(r"\]\(([^)]+)\)", body):
        assert target.startswith("https://") or (directory / target).is_file(), target
    for command in "".join(blocks(body, "bash")).splitlines():
        if not command.startswith(FOREIGN):
            program, flag, module, *arguments = shlex.split(command)
            assert (program, flag) == ("python", "-m")
            assert_parses(module, arguments)
    assert unlisted(directory, listed_names("serving.md")[0]) == set()
    return card


def listed_names(page: str) -> list[list[str]]:
    """The names in the first columns of the page's two tables: of a model, and of its run's directory."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    section = re.split(r"^## (?:What a saved directory holds|保存的目录里有什么)$", text, flags=re.MULTILINE)[
        1
    ]
    tables = re.findall(r"^\| --- .*\n((?:\|.*\n)+)", section, re.MULTILINE)
    columns = ["".join(re.findall(r"^\|[^|]*\|", table, re.MULTILINE)) for table in tables]
    return [re.findall(r"`([^`]+)`", column) for column in columns]


def unlisted(directory: Path, patterns: list[str]) -> set[str]:
    """The files of a directory that no pattern names."""
    names = {path.name for path in directory.iterdir()}
    return {name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)}
