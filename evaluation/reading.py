"""What a generated answer says: which option it chooses, or whether it holds an accepted short answer."""

import re
import unicodedata
from collections.abc import Sequence

from evaluation.objective_questions import LETTERS

# "答案是B", "正确选项为：(B)", "我选 B", "The answer is B", "Answer: B"; not "不选B".
STATED = re.compile(
    r"(?:(?:答案|选项)(?:应该|应当|应|就)?(?:是|为|选)?|(?<!不)(?<!别)(?<!可)选择?|answer(?:\s+is)?|option|choose)"
    r"[\s:：\"“'*]*\(?([A-Z])(?![A-Za-z])",
    re.IGNORECASE,
)

# A letter that stands alone: no Latin letter or digit beside it.
ALONE = re.compile(r"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9])")

# "不选A", "A是错的": what is said against an option.
DENIED = re.compile(
    r"(?:不选择?|不是|并非|排除|\bnot)\s*[A-Z](?![A-Za-z])"
    r"|(?<![A-Za-z])[A-Z]\s*选?项?\s*(?:是错|不对|不正确|错|(?:is\s+)?(?:wrong|incorrect|not))"
)

# "A", "(A)", "A. ...", "A、..." at the beginning.
OPENING = re.compile(r"\s*\(?([A-Z])(?:\s*$|\s*\n|\s*[.,、:。)](?!\s*[A-Z](?![A-Za-z])))")


def read_choice(answer: str, options: Sequence[str]) -> int | None:
    """Index of the one option that an answer chooses; None where it cannot be read, or chooses several.

    The answer begins with its letter; or says "答案是B" or the like (what it says last counts); or quotes the
    text of one option; or has one letter that stands alone and is not denied.
    """
    answer = unicodedata.normalize("NFKC", answer)
    letters = LETTERS[: len(options)]
    if opening := OPENING.match(answer):
        return _index(opening[1], letters)
    stated = [letter.upper() for letter in STATED.findall(answer) if letter.upper() in letters]
    if stated:
        return _index(stated[-1], letters)
    quoted = _quoted_options(answer, options)
    if len(quoted) == 1:
        return quoted[0]
    alone = set(ALONE.findall(DENIED.sub("", answer))) & set(letters)
    return _index(alone.pop(), letters) if len(alone) == 1 and not quoted else None


def _index(letter: str, letters: str) -> int | None:
    return letters.index(letter) if letter in letters else None


def _quoted_options(answer: str, options: Sequence[str]) -> list[int]:
    """Indices of the options whose text occurs in the answer, and not only inside another option's text."""
    texts = [compact(option) for option in options]
    rest = compact(answer)
    found = []
    for index in sorted(range(len(options)), key=lambda index: len(texts[index]), reverse=True):
        if texts[index] and occurs(texts[index], rest):
            found.append(index)
            rest = rest.replace(texts[index], "\n")
    return sorted(found)


def is_accepted(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer holds one of the accepted ones, whatever its width, case, spaces and punctuation."""
    text = compact(answer)
    return any(occurs(compact(one), text) for one in accepted)


def compact(text: str) -> str:
    """The text in one width and case, with only letters, digits, and what separates words and numbers.

    "《Old  Man》， 1,000 或 8:05" -> "old man 1000或8:05"
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    words = re.split(r"[\W_]+", text)
    gaps = re.findall(r"[\W_]+", text)
    joined = words[0]
    for gap, word in zip(gaps, words[1:], strict=True):
        if joined[-1:].isdigit() and word[:1].isdigit():
            joined += gap.strip() or " "
        elif joined[-1:].isascii() and word[:1].isascii() and joined and word:
            joined += " "
        joined += word
    return joined


def occurs(part: str, text: str) -> bool:
    """Whether `text` contains `part`, not as a piece of a longer number or Latin word."""
    before = r"(?<![0-9.])" if part[:1].isdigit() else r"(?<![a-z])" if part[:1].isascii() else ""
    after = r"(?![0-9])(?!\.[0-9])" if part[-1:].isdigit() else r"(?![a-z])" if part[-1:].isascii() else ""
    return bool(part) and re.search(before + re.escape(part) + after, text) is not None
