"""An answer's Markdown on a terminal, by rich: as it streams, and without the loss of a character.

A mark of Markdown, such as the * of **bold**, may become a style. All else stays: HTML, links, backslashes,
entities and underscores as they were written, a line break, the numbers of a list. Where the layout would
still lose a character (a table row with too many cells), the block is printed as it was written.
"""

import functools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from markdown_it import MarkdownIt
from markdown_it.rules_inline.state_inline import Delimiter, StateInline
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, TableElement
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from training.common.console import visible

# A terminal that has to show every token has no time left for the keyboard.
REFRESH_S = 0.1

# What Markdown is on this terminal. Its other rules take characters away from texts that are no Markdown:
# <T>, &amp;, __init__, ~~, C:\[1], [1]: and what follows, a line of = or - below a text.
BLOCKS = ("fence", "code", "blockquote", "hr", "list", "heading", "table")
INLINE = ("newline", "backticks", "emphasis")

# The characters that Markdown's marks are made of.
MARKS = frozenset("#>*-+|`:~")

# The characters that may stand before an opening * or after a closing one, besides white space and what is
# not ASCII; and those that may not stand after the one or before the other.
BEFORE_OPENING, AFTER_CLOSING = "([{\"'`:;,.!?-", ")]}\"'`:;,.!?-"
NOT_OPENING, NOT_CLOSING = ".,;:!?/)]}\\", "/,([{\\"


def show_markdown(console: Console, pieces: Iterable[str]) -> None:
    """Print a text as its pieces come: each block once it is finished; the last is drawn anew as it grows."""
    text, printed, drawn_at = "", 0, 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for piece in pieces:
            text += piece
            if time.monotonic() - drawn_at < REFRESH_S:
                continue
            shown = _as_lines(text)[printed:]
            # A line that is not complete may become anything, and so may the last block.
            finished = blocks(shown[: shown.rfind("\n") + 1])[:-1]
            if finished:
                live.update("")
                console.print(_together(finished, is_first=not printed))
                length = sum(map(len, finished))
                printed, shown = printed + length, shown[length:]
            live.update(_Tail(_together(blocks(shown), is_first=not printed)), refresh=True)
            drawn_at = time.monotonic()
        live.update("")
    console.print(_together(blocks(_as_lines(text)[printed:]), is_first=not printed))


def _as_lines(text: str) -> str:
    return visible(text.replace("\r\n", "\n"))


def _together(sources: Sequence[str], *, is_first: bool) -> Group:
    """Blocks with a blank line before each, but for the first of all."""
    spaced = [part for source in sources for part in ("", Block(source))]
    return Group(*spaced[is_first:])


def blocks(text: str) -> list[str]:
    """The parts of a text of which each is a heading, a paragraph, a list or another block."""
    lines = text.split("\n")
    tokens = parser().parse(text)
    starts = [token.map[0] for token in tokens if token.level == 0 and token.nesting >= 0 and token.map]
    ends = [*starts[1:], len(lines)]
    parts = ["\n".join(lines[start:end]) for start, end in zip([0, *starts[1:]], ends, strict=False)]
    return [part + "\n" for part in parts[:-1]] + parts[-1:]


class Block:
    """A block of Markdown to print with rich; as it was written, where something of it would be lost."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(_Markdown(self.source), options, pad=False)
        shown = "".join(segment.text for line in lines for segment in line)
        if _letters(self.source) - _letters(shown):
            yield Text(self.source.rstrip("\n"), overflow="fold")
            return
        lines = [list(_without_padding(line)) for line in lines]
        while lines and not lines[0]:  # such as the edge of a table
            lines.pop(0)
        while lines and not lines[-1]:
            lines.pop()
        for line in lines:
            yield from line
            yield Segment.line()


class _Tail:
    """As many of the last lines of a block as the terminal has."""

    def __init__(self, block: Group) -> None:
        self.block = block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.block, options, pad=False)
        for line in lines[-max(console.size.height - 1, 1) :]:
            yield from line
            yield Segment.line()


def _letters(text: str) -> Counter[str]:
    """How often each character is there that is neither white space nor of a mark."""
    return Counter(character for character in text if not character.isspace() and character not in MARKS)


def _without_padding(line: list[Segment]) -> Iterator[Segment]:
    """The line without the blanks at its end, unless they have a colour."""
    line = list(line)
    while line and not (line[-1].style and line[-1].style.bgcolor):
        last = line.pop()
        if text := last.text.rstrip(" "):
            line.append(Segment(text, last.style))
            break
    yield from line


@functools.cache
def parser() -> MarkdownIt:
    """A parser of the Markdown that is shown."""
    markdown = MarkdownIt("zero").enable([*BLOCKS, *INLINE])
    markdown.inline.ruler.at("emphasis", _asterisks)
    return markdown


def _asterisks(state: StateInline, silent: bool) -> bool:
    """Read a run of *, which opens or closes an emphasis only where it stands at the edge of a word.

    In 2*3*4, a**b and 长*宽*高 it is text. In 请**务必**保存 a double one is a mark: Chinese has no spaces.
    """
    start = end = state.pos
    if silent or state.src[start] != "*":
        return False
    while end < state.posMax and state.src[end] == "*":
        end += 1
    before, after = state.src[start - 1 : start] if start else " ", state.src[end : end + 1] or " "
    for _ in range(start, end):
        state.push("text", "", 0).content = "*"
        state.delimiters.append(
            Delimiter(
                marker=ord("*"),
                length=end - start,
                token=len(state.tokens) - 1,
                end=-1,
                open=_is_edge(before, BEFORE_OPENING, end - start) and not _is_outside(after, NOT_OPENING),
                close=_is_edge(after, AFTER_CLOSING, end - start) and not _is_outside(before, NOT_CLOSING),
            )
        )
    state.pos = end
    return True


def _is_edge(character: str, allowed: str, length: int) -> bool:
    """Whether a run of `length` may have this character on its outer side."""
    if character.isspace() or character in allowed:
        return True
    return not character.isascii() and (length > 1 or not character.isalnum())


def _is_outside(character: str, refused: str) -> bool:
    """Whether a run cannot have this character on its inner side."""
    return character.isspace() or character in refused


class _Heading(Heading):
    """A heading, at the left as all else; a wide terminal would have it far from its text."""

    LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Item(ListItem):
    """An item of a list, with the number that it has in the text."""

    mark = "•"

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Item":
        item = cls()
        if token.info:
            item.mark = token.info + token.markup
        return item

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first = f" {self.mark} "
        inner = options.update(width=max(options.max_width - len(first), 1))
        style = console.get_style("markdown.item.bullet")
        for number, line in enumerate(console.render_lines(self.elements, inner, style=self.style)):
            yield Segment(" " * len(first) if number else first, style)
            yield from line
            yield Segment.line()

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        return self.render_bullet(console, options)


class _Code(CodeBlock):
    """A block of code, below the name of its language."""

    info = ""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Code":
        code = cls(token.info.partition(" ")[0] or "text", markdown.code_theme)
        code.info = token.info
        return code

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.info.strip():
            yield Text(self.info.strip(), Style(dim=True))
        yield from super().__rich_console__(console, options)


class _Table(TableElement):
    """A table whose cells are wrapped, and never cut off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            for column in table.columns:
                column.overflow = "fold"
            yield table


class _Markdown(Markdown):
    """rich's Markdown of what `parser` reads."""

    elements = Markdown.elements | {
        "heading_open": _Heading,
        "list_item_open": _Item,
        "fence": _Code,
        "code_block": _Code,
        "table_open": _Table,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", justify="default")
        self.parsed = list(map(_with_line_breaks, parser().parse(source)))


def _with_line_breaks(token: Token) -> Token:
    """The token with all its line breaks, some of which rich would make blanks of."""
    if token.type == "softbreak":
        return replace(token, type="hardbreak")
    return replace(token, children=token.children and list(map(_with_line_breaks, token.children)))
