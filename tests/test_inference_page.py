"""docs/inference.md, in both languages: its lines of Python answer."""

import pytest

from tests.pages import blocks, text_of


@pytest.mark.parametrize("page", ["docs/inference.md", "docs/zh/inference.md"])
def test_the_python_snippet_runs_as_it_stands(page: str, tuned: str, capsys) -> None:
    (snippet,) = blocks(text_of(page), "python")
    assert '"checkpoints/demo/model"' in snippet
    exec(snippet.replace("checkpoints/demo/model", tuned), {})
    assert capsys.readouterr().out == "我是雅意。\n"
