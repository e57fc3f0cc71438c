r"""The letters of options in an answer, found and joined, so that rules can speak of them.

"The answer is: **(B)**, not A or C."  ->  "The answer is:①, not ②."   ① = {1}, ② = {0, 2}

where ① and ② are characters for private use. A letter that is a word, "A planet", or part of one is none.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from evaluation.objective_questions import LETTERS

# The first of the characters that stand for letters, and the class of all of them.
FIRST_MARK = 0xE000
MARK = "[\ue000-\uf8ff]"


class Cleaning(NamedTuple):
    """A pattern of an answer's form, what takes its place, and an example with what is left of it."""

    pattern: str
    replacement: str
    example: str
    leaves: str


# What a model thinks before it answers; an answer that is cut off in there is none.
THOUGHTS = (
    Cleaning(
        r"(?is)<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)",
        "\n",
        "<think>A？</think>\n\nB",
        "\n\n\nB",
    ),
    Cleaning(r"(?is)\A.*</(?:think|thinking|thought|reasoning)>", "", "选A？</think>B", "B"),
)

CLEANING = (
    Cleaning(MARK, "", "\ue000B", "B"),
    *THOUGHTS,
    # LaTeX.
    Cleaning(r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s*\{([^{}]*)\}", r"\1", r"$\text{B}$", "$B$"),
    Cleaning(r"\\f?boxed?\s*\{([^{}]*)\}", r"\n最终答案:\1\n", r"\boxed{B}", "\n最终答案:B\n"),
    Cleaning(r"\\[()\[\]]|\$|\\", "", r"\(B\)", "B"),
    # Markdown: the mark of a final answer, headings, list items, quotes; then emphasis.
    Cleaning(r"(?m)^\s*#{4}\s*(?=\S{1,3}$)", "最终答案:", "#### B", "最终答案:B"),
    Cleaning(r"(?m)^[ \t]*(?:#{1,6}|[-•>]|\d{1,2}[.)](?=[ \t]+[A-Z]\b))[ \t]+", "", "1) B", "B"),
    # What stands around a final answer: a tag, a key of JSON.
    Cleaning(r"(?i)<answer>|<\|begin_of_box\|>", "\n最终答案:", "<answer>B", "\n最终答案:B"),
    Cleaning(r"(?i)</answer>|<\|end_of_box\|>", "\n", "B</answer>", "B\n"),
    Cleaning(r"""\{?["'](\w+)["']\s*:""", r"\1:", '{"answer": "B"}', 'answer: "B"}'),
    Cleaning(r"([*_~]{1,3})\s*([A-Z])\s*\1", r"[\2]", "**A** is", "[A] is"),
    Cleaning(r"\*+|__|`+", "", "**B. Jupiter**", "B. Jupiter"),
    # A letter in any brackets or quotes.
    Cleaning(
        r"""(?:(?<![A-Za-z0-9])\(|[\[{<【〔「『《"“‘']{1,2})\s*([A-Za-z])\s*[.、]?\s*[)\]}>】〕」』》"”’']{1,2}""",
        r"[\1]",
        "答案是【B】",
        "答案是[B]",
    ),
    Cleaning(r"[【\[]([^】\]\n]{2,8})[】\]]:?", r"\n\1:", "【答案】B", "\n答案:B"),
    # What interrupts a statement.
    Cleaning(
        r"(?i),\s*(?:I (?:believe|think|guess|suppose)|therefore|thus|hence|then|of course|however),",
        "",
        "The answer, I believe, is B",
        "The answer is B",
    ),
    Cleaning(r":\s+", ":", "答案:\n\nB", "答案:B"),
)

# Words that follow a letter A; before any other one, "A" is the article.
AFTER_LETTER_A = (
    r"is|are|was|were|because|since|as|for|and|or|nor|seems|looks|appears|would|must|should|has|can|cannot|may|"
    r"might|could|does|did|do|which|but|not|rather|instead|over|then|isn't|doesn't|can't|I|it|the"
)

# A letter in capitals that is no word, and how several are joined. A comma joins only where no clause begins.
ONE = (
    rf"(?:\[[A-Za-z]\]|(?<![A-Za-z0-9'’])(?!A[ \t]+(?!(?i:{AFTER_LETTER_A})\b)[A-Za-z])(?!I[ \t]+[A-Za-z])"
    r"[A-Z](?![A-Za-z0-9'’])(?!-[a-z]))"
)
ITEM = rf"(?:选项\s*|第|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)s?\s+)?{ONE}(?:选项|项)?"
JOINT = (
    r"(?:\s*(?:、|/|以及|和|与|及|跟|或者?|还有|&|\+|,?\s*\b(?:and also|and|or|nor|as well as)\b)\s*|[ \t]+|"
    rf",[ \t]*(?={ONE}\s*(?:$|[\n.。!;,、)]|和|与|及|都|均|皆|全|\b(?:and|or|are|both)\b)))"
)
RUN = r"(?<![A-Za-z0-9])[A-Z]{2,}(?![A-Za-z0-9])(?:项|选项)?"
GROUP = re.compile(rf"{ONE}(?:,[ \t]*{ONE}){{2,}}(?:{JOINT}{ITEM})*|{ITEM}(?:{JOINT}{ITEM})*|{RUN}")

# A small letter that stands where a letter is expected: "选b", "b) Jupiter", "the answer is b."
SMALL = re.compile(
    r"(^[ \t]*|:|[\u4e00-\u9fff]\s*|\b(?:is|are|options?|answer|choose|choice|pick|select|with)\s+)"
    r"([a-z])(?=\s*(?:$|[.)、。,;:!](?![A-Za-z])|[\u4e00-\u9fff]))",
    re.IGNORECASE | re.MULTILINE,
)


class MarkedText(NamedTuple):
    """A text in which a character stands for each group of letters; groups: the indices of its options."""

    text: str
    groups: list[frozenset[int]]

    def group(self, mark: str) -> frozenset[int]:
        """The indices for which a character of the text stands; one may lie beyond the options."""
        return self.groups[ord(mark) - FIRST_MARK]


def clean(answer: str, form: Sequence[Cleaning] = CLEANING) -> str:
    """The answer in one width, without what `form` replaces: thoughts, emphasis, LaTeX, and brackets around a
    letter.
    """
    text = unicodedata.normalize("NFKC", answer)
    for rule in form:
        text = re.sub(rule.pattern, rule.replacement, text)
    return text


def mark_letters(text: str, options: Sequence[str]) -> MarkedText:
    """The text, as of `clean`, with its letters marked; "维生素C" has none where an option has this text."""
    letters = LETTERS[: len(options)]
    for option in sorted(map(clean, options), key=len, reverse=True):
        if len(option) > 1 and re.search(f"{ONE}|{RUN}", option):
            text = text.replace(option, "〓")

    def capital(found: re.Match) -> str:
        letter = found[2].upper()
        return f"{found[1]}[{letter}]" if letter in letters else found[0]

    groups: list[frozenset[int]] = []

    def mark(found: re.Match) -> str:
        is_run = re.fullmatch(RUN, found[0])
        named = re.findall(r"[A-Z]" if is_run else ONE, found[0])
        named = [letter.strip("[]").upper() for letter in named]
        if is_run and (not set(named) <= set(letters) or len(set(named)) < len(named)):
            return found[0]
        groups.append(frozenset(map(LETTERS.index, named)))
        return chr(FIRST_MARK + len(groups) - 1)

    return MarkedText(GROUP.sub(mark, SMALL.sub(capital, text)), groups)


def lone_letters(text: str) -> set[str]:
    """The letters that stand alone in a text, as capitals; not the words "a" and "I"."""
    small = re.findall(r"(?<![A-Za-z0-9'’])(?!a\s+[A-Za-z])[a-z](?![A-Za-z0-9'’])", text)
    return {letter.strip("[]").upper() for letter in [*re.findall(ONE, text), *small]}
