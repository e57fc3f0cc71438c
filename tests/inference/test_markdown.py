"""Markdown on a terminal loses no character but Markdown's marks, and is the same however it streams."""

import io
import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from inference import markdown
from inference.markdown import Block, show_markdown

# What a model writes and what Markdown is made of: marks, what looks like a mark, and texts between them.
MARKUP = (
    *"#*_`~>-+=|\\[]()<>&;:.!$\"'{}^/@",
    *("\n", "\n\n", "  ", "   ", "\t", "1. ", "7) ", "- ", "```", "~~~", "**", "|---|\n", "|:-:|-|\n"),
    *("<b>", "</b>", "<!-- x -->", "&amp;", "http://x/_a_", "](u)", "![", "[^1]:"),
)
WORDS = ("a", "Zz", "2", "34", "中", "文字", "，", "“", "”", "。", "é", "😀", "\u3000", "x" * 30, "长" * 30)
PARTS = st.sampled_from([*MARKUP, *WORDS])
TEXTS = st.lists(PARTS, max_size=30).map("".join)

MARKS = "#>*-+|`:~"


@pytest.fixture(autouse=True, scope="module")
def _a_terminal() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(markdown, "REFRESH_S", 0)
        yield


class Terminal(io.StringIO):
    """Shows what is written to it as a terminal does, with what has scrolled off its top."""

    def __init__(self, width: int, height: int = 8) -> None:
        super().__init__()
        self.height, self.rows, self.row, self.column = height, [""], 0, 0
        self.console = Console(file=self, width=width, height=height, force_terminal=True, color_system=None)

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif part == "\x1b[2K":
                self.rows[self.row] = ""
            elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
                self.row = max(self.row - int(up[1] or 1), len(self.rows) - self.height, 0)
            elif part not in ("\x1b[?25l", "\x1b[?25h"):
                assert self.column == cell_len(self.rows[self.row]), "written over what is there"
                self.rows[self.row] += part
                self.column += cell_len(part)
        return len(text)

    @property
    def shown(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows).strip("\n")


def shown(source: str, width: int = 60) -> str:
    terminal = Terminal(width)
    terminal.console.print(Block(source))
    return terminal.shown


def letters(text: str) -> Counter[str]:
    return Counter(character for character in text if not character.isspace() and character not in MARKS)


@given(source=TEXTS, width=st.integers(20, 90))
@example("|a|b|\n|-|-|\n|1|2|3|", 60)
@example("> " * 30 + "deep", 20)
@example("|" + "|".join("abcdefghijkl") + "|\n" + "|-" * 12 + "|\n", 20)
@settings(max_examples=80, deadline=None)
def test_no_character_is_lost_but_marks(source: str, width: int) -> None:
    assert not letters(source) - letters(shown(source, width))


@given(source=TEXTS, seed=st.integers(0, 99))
@example("```\n" + "code\n" * 40 + "```\nand then\n\n- a\n- b", 1)
@example("a\n#tag\n\n-5\n---\n1. a\n\n2. b\n3", 2)
@settings(max_examples=25, deadline=None)
def test_however_a_text_streams_the_terminal_shows_the_same_in_the_end(source: str, seed: int) -> None:
    randomly = random.Random(seed)
    cuts = sorted(randomly.choices(range(len(source) + 1), k=12))
    pieces = [source[start:end] for start, end in zip([0, *cuts], [*cuts, len(source)], strict=True)]
    streamed, whole = Terminal(40), Terminal(40)
    show_markdown(streamed.console, pieces)
    show_markdown(whole.console, [source])
    assert streamed.shown == whole.shown
    assert not letters(source) - letters(whole.shown)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("2*3*4 = 24, a**b, 长*宽*高", "2*3*4 = 24, a**b, 长*宽*高"),
        ("请**务必**保存，**“引号”**的 *x*.", "请务必保存，“引号”的 x."),
        ("src/*/a/*/b *.py,*.txt f(**k) g(**k)", "src/*/a/*/b *.py,*.txt f(**k) g(**k)"),
        ("__init__ my_var_1 ~~你好~~", "__init__ my_var_1 ~~你好~~"),
        (r"\(x^2\) \*a\* C:\_b", r"\(x^2\) \*a\* C:\_b"),
        ("<b>x</b> List<T> &amp; [a](http://x '标题')", "<b>x</b> List<T> &amp; [a](http://x '标题')"),
        ("<div>\n\n[1]: http://x", "<div>\n\n[1]: http://x"),
        ("一行\n二行", "一行\n二行"),
        ("7. g\n3. c\n3. c", " 7. g\n 3. c\n 3. c"),
        ("2) b\n   - n", " 2) b\n     • n"),
        ("# 标题\n正文", "标题\n\n正文"),
        ("```python\nx = 1\n```", "python\n\n x = 1"),
        ("|a|b|\n|-|-|\n|1|2|", " a  b\n ────\n 1  2"),
        ("> 引用", "▌ 引用"),
    ],
)
def test_what_is_shown(source: str, expected: str) -> None:
    terminal = Terminal(60)
    show_markdown(terminal.console, [source])
    assert terminal.shown == expected.strip("\n")


def test_control_characters_are_shown_and_not_obeyed() -> None:
    terminal = Terminal(60)
    show_markdown(terminal.console, ["a\x1b]0;title\x07b\r\n", "\x1b[2J\u202eend\r"])
    assert terminal.shown == "a\\x1b]0;title\\x07b\n\\x1b[2J\\u202eend\\r"
