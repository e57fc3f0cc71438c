"""What holds the repository together: the Python floor."""

import importlib.metadata
import re
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pins() -> list[Requirement]:
    """The packages that the requirement files name, each with its exact version."""
    lines = [
        line
        for path in sorted(ROOT.glob("requirements*.txt"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def python_floor() -> str:
    """`3.11` of `>=3.11`."""
    return PROJECT["project"]["requires-python"].removeprefix(">=")


def refused_by(version: str) -> list[str]:
    """The pinned packages that do not install on this version of Python, by their own metadata."""
    return [
        pin.name
        for pin in pins()
        if not SpecifierSet(importlib.metadata.metadata(pin.name).get("Requires-Python", "")).contains(
            version
        )
    ]


def test_the_installed_packages_are_the_pinned_ones() -> None:
    for pin in pins():
        assert pin.specifier.contains(importlib.metadata.version(pin.name)), pin


def test_the_python_floor_is_the_lowest_version_that_every_pin_takes() -> None:
    major, minor = map(int, python_floor().split("."))
    assert not refused_by(python_floor())
    assert refused_by(f"{major}.{minor - 1}")


def test_the_linter_the_scripts_and_the_pages_name_the_python_floor() -> None:
    floor = python_floor()
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + floor.replace(".", "")
    script = (ROOT / "scripts" / "environment.sh").read_text("utf-8")
    assert f"sys.version_info < ({floor.replace('.', ', ')})" in script
    for text in (script, *((ROOT / page).read_text("utf-8") for page in ("README.md", "README_zh.md"))):
        assert set(re.findall(r"Python (3\.\d+)", text)) == {floor}
