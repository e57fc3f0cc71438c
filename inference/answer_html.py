r"""Answers in Markdown as HTML that is safe to show: nothing in it runs, and nothing in it is loaded.

# Fruits           ->  <h1>Fruits</h1>
<b>1 < 2</b>       ->  <p>&lt;b&gt;1 &lt; 2&lt;/b&gt;</p>              HTML stays the text that it is,
![a](http://b/c)   ->  <p>![a](http://b/c)</p>                         so does an image,
[a](javascript:b)  ->  <p>[a](javascript:b)</p>                        and a link that leads to no page
$x^2$              ->  <p><span class="formula">\(x^2\)</span></p>     which KaTeX draws in the browser
"""

import html
import re
from collections.abc import Sequence
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

# javascript: and data: would run, and an address on this server could log the reader out.
LINK = re.compile(r"https?://|mailto:", re.IGNORECASE)

# How models mark a formula: on lines of its own, or within a line. There is no empty line in one.
DISPLAYED = {r"\[": r"\]", "$$": "$$"}
INLINE = {r"\(": r"\)"}
DOLLARS = re.compile(r"\$((?=\S)[^$`\n]*[^$`\s])\$(?![\d$])")  # "$5 or $6" is none
# How KaTeX finds it on the page.
KATEX_DELIMITERS = [
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]

COPY_BUTTON = '<button class="copy-code" title="Copy / 复制" aria-label="Copy / 复制"></button>'


@lru_cache(maxsize=256)  # a dialogue's earlier answers are shown again with each piece of the last one
def answer_html(text: str) -> str:
    """HTML of an answer in Markdown, which may still be growing: what is open at its end is closed."""
    return _MARKDOWN.render(text)


def highlight_css() -> str:
    """The colours of code on a light and on a dark page."""
    light, dark = HtmlFormatter(style="default"), HtmlFormatter(style="github-dark")
    return f"{light.get_style_defs('.code')}\n{dark.get_style_defs('.dark .code')}"


class _SafeHTML(RendererHTML):
    """The library's HTML, but for what a method here is named after."""

    def image(self, tokens: Sequence[Token], index: int, *_: object) -> str:
        return html.escape(f"![{tokens[index].content}]({tokens[index].attrs['src']})")

    def link_open(self, tokens: Sequence[Token], index: int, *_: object) -> str:
        address = html.escape(str(tokens[index].attrs["href"]))
        return f'<a href="{address}" target="_blank" rel="noopener noreferrer nofollow">'

    def formula(self, tokens: Sequence[Token], index: int, *_: object) -> str:
        tag, content = tokens[index].tag, html.escape(tokens[index].content)
        left, right = (r"\[", r"\]") if tokens[index].meta["displayed"] else (r"\(", r"\)")
        return f'<{tag} class="formula">{left}{content}{right}</{tag}>'

    def fence(self, tokens: Sequence[Token], index: int, *_: object) -> str:
        language, *_ = (*tokens[index].info.split(), "")
        title = f'<div class="code-title"><span>{html.escape(language)}</span>{COPY_BUTTON}</div>'
        return (
            f'<div class="code">{title}'
            f"<pre><code>{_highlighted(tokens[index].content, language)}</code></pre></div>\n"
        )

    code_block = fence

    def table_open(self, *_: object) -> str:
        return '<div class="table"><table>\n'

    def table_close(self, *_: object) -> str:
        return "</table></div>\n"


class _SafeMarkdown(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        return bool(LINK.match(url))


def _safe_markdown() -> MarkdownIt:
    markdown = _SafeMarkdown("commonmark", {"html": False, "breaks": True}, renderer_cls=_SafeHTML)
    markdown.enable(["table", "strikethrough"])
    # A text becomes no heading by the line below it: a growing list or table begins with such a line.
    markdown.disable("lheading")
    markdown.inline.ruler.before("escape", "formula", _formula_in_text)
    markdown.block.ruler.before(
        "fence", "formula", _formula_on_lines, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    return markdown


def _formula_at(text: str, begin: int, marks: dict[str, str]) -> str | None:
    """The formula that begins there, without its marks."""
    for left, right in marks.items():
        if text.startswith(left, begin) and (end := text.find(right, begin + 2)) > begin + 2:
            content = text[begin + 2 : end]
            return None if re.search(r"\n[ \t]*\n", content) else content
    return None


def _formula_in_text(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "\\$":
        return False
    displayed, length = True, 4
    if (content := _formula_at(state.src, state.pos, DISPLAYED)) is None:
        displayed, content = False, _formula_at(state.src, state.pos, INLINE)
    if content is None:
        if not (found := DOLLARS.match(state.src, state.pos, state.posMax)):
            return False
        content, length = found[1], 2
    if not silent:
        token = state.push("formula", "span", 0)
        token.content, token.meta = content, {"displayed": displayed}
    state.pos += len(content) + length
    return True


def _formula_on_lines(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """A formula that takes whole lines, which may look like a list, a quotation or a heading."""
    begin = state.bMarks[first] + state.tShift[first]
    if _formula_at(state.src, begin, DISPLAYED) is None or state.is_code_block(first):
        return False
    close = state.src.index(DISPLAYED[state.src[begin : begin + 2]], begin + 2)
    end = next((line for line in range(first, last) if close < state.eMarks[line]), None)
    if end is None or state.src[close + 2 : state.eMarks[end]].strip():
        return False
    if not silent:
        state.line = end + 1
        token = state.push("formula", "div", 0)
        token.content = state.getLines(first, end + 1, state.blkIndent, False).strip()[2:-2]
        token.meta, token.map = {"displayed": True}, [first, end + 1]
    return True


def _highlighted(code: str, language: str) -> str:
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return html.escape(code)
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


_MARKDOWN = _safe_markdown()
