"""docs/tools.md, in both languages: its commands parse, and its Python runs."""

import ast
import re
import shlex

import pytest

from inference import tool_child, tool_process
from inference.tool_loop import MAX_CALLS
from tests.conftest import ROOT
from tests.test_readme import assert_parses, blocks

ENGLISH = (ROOT / "docs" / "tools.md").read_text("utf-8")
CHINESE = (ROOT / "docs" / "zh" / "tools.md").read_text("utf-8")


def test_both_pages_show_the_same_blocks_and_words_of_code() -> None:
    for kind in ("bash", "python", "text", "json"):
        assert blocks(ENGLISH, kind) == blocks(CHINESE, kind)
        assert blocks(ENGLISH, kind)
    for shown in (r"^(#+) ", r"--[a-z-]+", r"`[^`\n]+`"):
        english, chinese = (re.findall(shown, page, re.MULTILINE) for page in (ENGLISH, CHINESE))
        assert sorted(english) == sorted(chinese)


@pytest.mark.parametrize("name", ["docs/tools.md", "docs/zh/tools.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_every_command_parses_and_the_python_is_python() -> None:
    for line in "".join(blocks(ENGLISH, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        module = words.index("--module" if words[0] == "deepspeed" else "-m") + 1
        assert_parses(words[module], words[module + 1 :])
    for block in blocks(ENGLISH, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_limits_are_those_of_the_code(page: str) -> None:
    assert re.search(rf"\b{tool_process.TIME_LIMIT_S}\b ?(seconds|秒)", page)
    assert f"{tool_child.LONGEST_RESULT:,}" in page
    assert re.search(rf"`--max-calls`.{{1,30}}\b{MAX_CALLS}\b", page)
