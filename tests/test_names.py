"""No two things of one name: whoever searches for a name finds one home of it."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_imports import modules

# Every command has one.
ALLOWED = {"main"}


def homes(root: Path) -> dict[str, list[str]]:
    """The modules that define each public class or function at their top level."""
    found: dict[str, list[str]] = {}
    for module, path in modules(root).items():
        for node in ast.parse(path.read_text("utf-8")).body:
            is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if is_definition and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return found


def doubles(root: Path) -> dict[str, list[str]]:
    return {name: where for name, where in homes(root).items() if len(where) > 1 and name not in ALLOWED}


def test_no_two_modules_define_the_same_name() -> None:
    found = doubles(ROOT)
    assert found == {}


@pytest.mark.parametrize("definition", ["class KVCache: ...", "def encode(): ...", "async def encode(): ..."])
def test_a_planted_double_is_found(definition: str, tmp_path: Path) -> None:
    for module in ("training/data/one.py", "inference/other.py"):
        path = tmp_path / module
        path.parent.mkdir(parents=True)
        path.write_text(f"{definition}\ndef _private(): ...\ndef main(): ...\n")
    (name,) = doubles(tmp_path)
    assert doubles(tmp_path) == {name: ["training.data.one", "inference.other"]}
