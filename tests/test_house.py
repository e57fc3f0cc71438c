"""What holds the repository together: the Python floor, the map of the code, the tests that CI runs."""

import importlib.metadata
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests import conftest, skips
from tests.conftest import ROOT
from tests.pages import prose, text_of

pytest_plugins = ["pytester"]

PAGES = ("README.md", "README_zh.md", "CONTRIBUTING.md", "docs/hardware.md", "docs/zh/hardware.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pins() -> list[Requirement]:
    """The packages that the tests install, by the requirement files in their script, with exact versions."""
    script = (ROOT / "scripts" / "test.sh").read_text("utf-8")
    files = re.findall(r"\brequirements[\w-]*\.txt", script)
    lines = [line for file in files for line in (ROOT / file).read_text("utf-8").splitlines()]
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


def test_the_checkers_the_scripts_and_the_pages_name_the_python_floor() -> None:
    floor = python_floor()
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + floor.replace(".", "")
    assert PROJECT["tool"]["pyright"]["pythonVersion"] == floor
    script = (ROOT / "scripts" / "environment.sh").read_text("utf-8")
    assert f"sys.version_info < ({floor.replace('.', ', ')})" in script
    for text in (script, *((ROOT / page).read_text("utf-8") for page in PAGES)):
        assert set(re.findall(r"Python (3\.\d+)", text)) == {floor}


def map_of(page: str) -> str:
    """The section of a page that is the map of the code."""
    text = prose(text_of(page))
    (section,) = re.findall(r"^## (?:A map of the code|代码地图)\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    return section


def commands() -> set[str]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("training", "inference", "evaluation")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^    run_command\(main\)$", path.read_text("utf-8"), re.MULTILINE)
    }


def rooms() -> set[str]:
    within = {f"training/{path.parent.name}" for path in ROOT.glob("training/*/__init__.py")}
    return within | {"inference", "evaluation", "tests"}


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_every_room_and_every_command_is_on_the_map(page: str) -> None:
    section = map_of(page)
    assert set(re.findall(r"`((?:training|inference|evaluation)\.\w+)`", section)) == commands()
    targets = re.findall(r"\]\(([^)#]+)\)", section)
    assert {target for target in targets if (ROOT / target).is_dir()} == rooms()


def test_both_pages_have_the_same_map() -> None:
    english, chinese = (
        re.findall(r"`[^`]+`|\]\([^)]+\)", map_of(page)) for page in ("README.md", "README_zh.md")
    )
    assert sorted(english) == sorted(chinese)
    assert len(map_of("README.md").splitlines()) == len(map_of("README_zh.md").splitlines())


def test_links_of_the_contributing_page_lead_somewhere() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / target).exists(), target


def test_the_hooks_of_pre_commit_download_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    pinned = {pin.name for pin in pins()}
    for repository in config["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["language"] == "system"
            assert hook["entry"].split()[0] in pinned


SKIPPING = """
import pytest

def test_one():
    pytest.skip("there is no chromium")

@pytest.fixture
def missing():
    pytest.skip("there is no font")

def test_two(missing):
    raise AssertionError

@pytest.mark.skipif(True, reason="needs a card of 80 GB")
def test_three():
    raise AssertionError

@pytest.mark.xfail
def test_four():
    raise AssertionError

def test_five():
    pass
"""
SKIPPED_MODULE = """
import pytest

pytest.importorskip("a_package_that_nobody_has")
"""


def outcomes(pytester: pytest.Pytester, test: str) -> tuple[dict[str, int], str]:
    """Run pytest on the text of a test file: how often each outcome came, and what was printed."""
    pytester.makepyfile(test)
    # Each of the others costs seconds, warns, or would disturb the pytest that runs this test.
    without = [f"-pno:{plugin}" for plugin in ("timeout", "xdist", "unraisableexception", "warnings")]
    result = pytester.runpytest_inprocess("-ptests.skips", *without)
    return result.parseoutcomes(), result.stdout.str()


def test_a_skipped_test_has_failed_where_ci_is_set(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    counted, printed = outcomes(pytester, SKIPPING)
    assert counted == {"failed": 1, "errors": 1, "skipped": 1, "xfailed": 1, "passed": 1}
    assert "skipped although CI is set: there is no chromium" in printed
    assert "skipped although CI is set: there is no font" in printed


def test_a_skipped_module_has_failed_where_ci_is_set(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    counted, printed = outcomes(pytester, SKIPPED_MODULE)
    assert counted == {"errors": 1}
    assert "a_package_that_nobody_has" in printed


def test_a_test_may_be_skipped_where_ci_is_not_set(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    counted, _ = outcomes(pytester, SKIPPING)
    assert counted == {"skipped": 3, "xfailed": 1, "passed": 1}


def test_the_hooks_stand_in_conftest() -> None:
    assert conftest.pytest_runtest_makereport is skips.pytest_runtest_makereport
    assert conftest.pytest_make_collect_report is skips.pytest_make_collect_report
