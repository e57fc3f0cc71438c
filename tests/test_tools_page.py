"""docs/tools.md, in both languages: its limits are those of the code, and its Python is Python."""

import ast
import re

import pytest

from inference import tool_child, tool_process
from inference.tool_loop import MAX_CALLS
from tests.pages import blocks, text_of

ENGLISH, CHINESE = text_of("docs/tools.md"), text_of("docs/zh/tools.md")


def test_the_python_is_python() -> None:
    assert blocks(ENGLISH, "python")
    for block in blocks(ENGLISH, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_limits_are_those_of_the_code(page: str) -> None:
    assert re.search(rf"\b{tool_process.TIME_LIMIT_S}\b ?(seconds|秒)", page)
    assert f"{tool_child.LONGEST_RESULT:,}" in page
    assert re.search(rf"`--max-calls`.{{1,30}}\b{MAX_CALLS}\b", page)
