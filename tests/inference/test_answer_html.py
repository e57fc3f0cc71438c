"""Answers as HTML: Markdown is rendered, and nothing of an answer runs or is loaded."""

import html
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.answer_html import COPY_BUTTON, answer_html, highlight_css

# All that an answer is made of: neither an image nor anything else that is loaded, runs or is sent.
TAGS = {
    *(
        "a",
        "blockquote",
        "br",
        "button",
        "code",
        "del",
        "div",
        "em",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
    ),
    *("li", "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"aria-label", "class", "href", "rel", "start", "style", "target", "title"}


class Parts(HTMLParser):
    """The tags, attributes and text of HTML."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# 一\n二\n三", "<h1>一</h1>\n<p>二<br />\n三</p>\n"),
        ("1. a\n2. **b**", "<ol>\n<li>a</li>\n<li><strong>b</strong></li>\n</ol>\n"),
        ("好\n---", "<p>好</p>\n<hr />\n"),
        ("~~a~~ `<b>`", "<p><s>a</s> <code>&lt;b&gt;</code></p>\n"),
        ("<b onclick=x>&lt;1 &amp; 2</b>", "<p>&lt;b onclick=x&gt;&lt;1 &amp; 2&lt;/b&gt;</p>\n"),
        ("<script>\nalert(1)\n</script>", "<p>&lt;script&gt;<br />\nalert(1)<br />\n&lt;/script&gt;</p>\n"),
        ("![a](http://b/c)", "<p>![a](http://b/c)</p>\n"),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>\n"),
        (
            "[a](JaVaScRiPt:alert(1)) [b](data:text/html,c)",
            "<p>[a](JaVaScRiPt:alert(1)) [b](data:text/html,c)</p>\n",
        ),
        ("[a](/logout) <javascript:b>", "<p>[a](/logout) &lt;javascript:b&gt;</p>\n"),
        (
            '[a](http://b/?c="d")',
            '<p><a href="http://b/?c=%22d%22" target="_blank" rel="noopener noreferrer nofollow">a</a></p>\n',
        ),
        (
            "$x_1 * y$ \\(a*b*c\\)",
            '<p><span class="formula">\\(x_1 * y\\)</span> <span class="formula">\\(a*b*c\\)</span></p>\n',
        ),
        ("$$\na\n- b\n= <c>\n$$\n好", '<div class="formula">\\[\na\n- b\n= &lt;c&gt;\n\\]</div><p>好</p>\n'),
        ("> \\[\n> a\n> \\]", '<blockquote>\n<div class="formula">\\[\na\n\\]</div></blockquote>\n'),
        ("也就是 $$a$$。", '<p>也就是 <span class="formula">\\[a\\]</span>。</p>\n'),
        ("$5 and $6, $7–$8, `$a$`, \\$b$", "<p>$5 and $6, $7–$8, <code>$a$</code>, $b$</p>\n"),
        ("$$ a\n\nb $$", "<p>$$ a</p>\n<p>b $$</p>\n"),
    ],
)
def test_markdown_is_rendered_and_what_could_run_stays_text(text: str, shown: str) -> None:
    assert answer_html(text) == shown


@pytest.mark.parametrize("fence", ["```python\n{}```", "```python\n{}", "```py title=x\n{}```\n"])
def test_code_has_its_colours_its_language_and_a_button_that_copies_it(fence: str) -> None:
    code = "\ndef f(x):\n    return '<b>' & x\n\n"
    source = answer_html(fence.format(code))
    language = fence[3:].split(maxsplit=1)[0]
    assert source.startswith(
        f'<div class="code"><div class="code-title"><span>{language}</span>{COPY_BUTTON}</div>'
    )
    assert '<span class="k">def</span>' in source
    assert Parts(source).text == language + code + "\n"
    assert ".code .k {" in highlight_css()
    assert ".dark .code .k {" in highlight_css()


def test_code_in_a_language_that_nobody_knows_is_text() -> None:
    assert "<pre><code>&lt;b&gt;\n</code></pre>" in answer_html('```"><img src=x>\n<b>\n```')


def test_a_table_can_be_scrolled_by_itself() -> None:
    source = answer_html("|a|b|\n|-|-:|\n|1|<i>|")
    assert source.startswith('<div class="table"><table>')
    assert '<td style="text-align:right">&lt;i&gt;</td>' in source


ODD = ["<", ">", "&lt;", '"', "'", "`", "```", "~~~html\n", "\n", "\n\n", "    ", "[", "](", ")", "!", "!["]
ODD += [
    "javascript:",
    "http://a",
    "data:",
    "$",
    "$$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "|",
    "|-|",
    "- ",
    "1. ",
    "> ",
    "# ",
]
ODD += [
    "<script>",
    "<img src=x onerror=a>",
    "</pre>",
    "</div>",
    "<!--",
    "[a]: http://b 'c'",
    "*",
    "_",
    "\\",
    "&#60;",
    "\x00",
]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(ODD) | st.text(max_size=3)).map("".join))
def test_no_answer_has_a_tag_or_an_address_of_its_own_making(text: str) -> None:
    parts = Parts(answer_html(text))
    assert parts.tags <= TAGS
    for name, value in parts.attributes:
        assert name in ATTRIBUTES
        if name == "href":
            assert value.lower().startswith(("http://", "https://", "mailto:"))
        if name == "style":
            assert value in ("text-align:left", "text-align:center", "text-align:right")


@settings(deadline=None)
@given(st.text(alphabet="ab <&\"'\\$#*中😀"))
def test_the_letters_of_an_answer_are_all_there(text: str) -> None:
    """Marks of Markdown, and white space, are what may be missing."""
    letters = [letter for letter in text if letter in "ab<&\"'中😀"]
    shown = html.unescape(Parts(answer_html(text)).text)
    assert [letter for letter in shown if letter in "ab<&\"'中😀"] == letters


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["\\(", "\\[\n", "$$", "$$ a\n", "$a ", "[", "![", "<", "*a_ ", "> ", "`"])
def test_no_answer_takes_long(piece: str) -> None:
    answer_html(piece * 1000)
