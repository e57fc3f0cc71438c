r"""What a generated answer says: which options it chooses, or whether it holds an accepted short answer."""

import functools
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from evaluation.letters import MARK, THOUGHTS, MarkedText, clean, lone_letters, mark_letters
from evaluation.reading_rules import (
    ASIDE,
    CONCLUDED,
    DENIED,
    LIKELY,
    QUESTION,
    RETRACTED,
    RULES,
    STATED,
    TURN,
    Rule,
)

# Where a clause ends: at a point only before a space.
CLAUSE = re.compile(r"([。!?;\n]|,(?!\d)|\.(?=\s|$)|——|…)")

# What takes the place of what is denied.
DENIAL = "∅"

# A label before a text, "B. Jupiter", "B-木星", at the beginning of a clause; BAR stands for what is between.
BAR = "|"
LABEL = re.compile(rf"(^|[\n。!?;,:])(\s*{MARK})\s*(?:[.):、]|[-–—]+)(?=[ \t]*[^\s.])", re.MULTILINE)

# A clause that begins with a letter, and what follows it. Words that make it the subject of a sentence.
LABELLED = re.compile(rf"({MARK})(\{BAR}|[ \t]*)(.+)")
PREDICATE = re.compile(r"\s*(?:is|are|was|has|seems|looks|would|and(?! not)|or|can|may|比|是|和|[^\w\s])")

# What weighs more outweighs the rest. A label weighs as much as a statement where an answer begins with it.
LIKELY_WEIGHT, LABEL_WEIGHT, STATED_WEIGHT, CONCLUDED_BONUS = 0, 1, 2, 2

# The letters of no option: what stands for a label that contradicts the text behind it.
CONTRADICTION = frozenset({-1})

# What is said against an option whose text is quoted, before and after it, in clauses that are `compact`.
DENIED_BEFORE = re.compile(
    r"(?:除了?|不是|不会是|不可能是|并非|而非|不|非|未|没有?|排除了?|错选|误选|"
    r"\b(?:not|isn t|rather than|instead of)(?: the)?\s*)$"
)
DENIED_AFTER = re.compile(
    r"\s*(?:是|都|均|显然)?(?:不对|不正确|不符|不是(?:$|正确|答案|最)|错|有误|排除|"
    r"(?:is |was )?(?:wrong|incorrect)\b|is not\b)"
)

# The option whose text follows is the answer, whatever else is quoted: "答案是木星，它比土星大".
STATED_TEXT = re.compile(
    r"(?:(?:答案|正确的?选项)(?:应该|应当|应|就)?(?:是|为|:)|\banswer(?:\s+is|:))\s*(?:the\s+)?([^,。;!?\n]+)",
    re.IGNORECASE,
)


def read_choice(answer: str, options: Sequence[str]) -> int | None:
    """Index of the one option that an answer chooses; None where it cannot be read, or chooses several."""
    chosen = read_choices(answer, options)
    return min(chosen) if len(chosen) == 1 else None


def read_choices(answer: str, options: Sequence[str], rules: Sequence[Rule] = RULES) -> frozenset[int]:
    """Indices of the options that an answer chooses, as a person reads it; none where it cannot be read.

    The answer is an option's text and nothing else, or states letters by the rules, or quotes options.
    """
    text = clean(answer)
    whole = compact(text)
    if not re.fullmatch("[a-z]?", whole) and not text.rstrip().endswith("?"):
        for index, option in enumerate(options):
            if compact(option) == whole:
                return frozenset({index})
    letters = _stated_letters(mark_letters(text, options), options, rules)
    if letters is None:
        return _quoted_options(text, options)
    return letters if letters <= set(range(len(options))) else frozenset()


def _stated_letters(
    marked: MarkedText, options: Sequence[str], rules: Sequence[Rule]
) -> frozenset[int] | None:
    """Indices of the letters that are stated with the most weight, none where such statements differ.

    None where no letter is stated.
    """
    text = _with_bars(marked, len(options))
    stated: dict[int, list[frozenset[int]]] = defaultdict(list)
    labels: list[frozenset[int]] = []
    begins_with_label = False
    for before, clause in itertools.pairwise(["", *_clauses(text)]):
        if _is_found(RETRACTED, clause, rules) and not before.endswith("?"):
            stated.clear()
            labels.clear()
        rest = clause
        for pattern in _patterns(DENIED, rules):
            rest = pattern.sub(DENIAL, rest)
        if label := _label(clause, rest, marked, options):
            labels.append(label)
            begins_with_label |= not before
        weight, found = _stated_in(rest, marked, rules)
        if _is_found(CONCLUDED, clause, rules) or (
            not re.search(MARK, before) and _is_found(CONCLUDED, before, rules)
        ):
            weight += CONCLUDED_BONUS
        if found:
            stated[weight] += found
    if labels and len(frozenset().union(*labels)) < len(options):  # otherwise all options are gone through
        is_opening = begins_with_label and len(set(labels)) == 1
        stated[STATED_WEIGHT if is_opening else LABEL_WEIGHT] += labels
    if not stated:
        return None
    groups = set(stated[max(stated)])
    if len(groups) == 1 or all(len(group) == 1 for group in groups):
        return frozenset().union(*groups)
    return frozenset()


def _with_bars(marked: MarkedText, options: int) -> str:
    """The text with BAR behind each letter that labels what follows, and the options of a list as clauses."""
    text = marked.text
    on_a_line = re.compile(rf"[ \t]+({MARK})\s*[.):、](?=[ \t]*\S)")
    if len(set(on_a_line.findall(" " + text))) >= options:
        text = on_a_line.sub(r"; \1.", text)  # "A. Mars B. Jupiter"
    text = LABEL.sub(rf"\1\2{BAR}", text)
    if len(set(re.findall(rf"{MARK}(?=\{BAR})", text))) > 1:
        first_label = re.compile(rf"\A((?:(?!{MARK}\{BAR}).)*):(?=\s*{MARK}\{BAR})", re.DOTALL)
        text = first_label.sub(r"\1;", text)  # "Options:A| ..." states nothing
    return text


def _clauses(text: str) -> list[str]:
    """The clauses of a text, without what separates them but for a question mark."""
    parts = [*CLAUSE.split(text), ""]
    clauses = [
        part.strip(" \t()\"':、.{}") + end.strip("。!;\n,.—…")
        for part, end in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [clause for clause in clauses if clause.strip("?")]


def _stated_in(clause: str, marked: MarkedText, rules: Sequence[Rule]) -> tuple[int, list[frozenset[int]]]:
    """The weight of what a clause states, without what it denies, and the groups of its letters."""
    parts = [clause]
    if _is_no_statement(clause, rules):
        parts = [part for part in _parts(clause, rules) if not _is_no_statement(part, rules)]
    for weight, meaning in ((STATED_WEIGHT, STATED), (LIKELY_WEIGHT, LIKELY)):
        patterns = _patterns(meaning, rules)
        found = [match[0] for part in parts for pattern in patterns for match in pattern.finditer(part)]
        if found:
            return weight, [marked.group(re.findall(MARK, text)[-1]) for text in found]
    return LIKELY_WEIGHT, []


def _is_no_statement(part: str, rules: Sequence[Rule]) -> bool:
    return _is_found(ASIDE, part, rules) or _is_found(QUESTION, part, rules)


def _parts(clause: str, rules: Sequence[Rule]) -> list[str]:
    """The parts of a clause that begin where a TURN ends; those of a question are questions."""
    said = clause.rstrip("?")
    mark = clause[len(said) :]
    turns = {match.end() for pattern in _patterns(TURN, rules) for match in pattern.finditer(said)}
    ends = [0, *sorted(turns), len(said)]
    return [said[start:end].strip(" \t()") + mark for start, end in itertools.pairwise(ends)]


def _label(clause: str, rest: str, marked: MarkedText, options: Sequence[str]) -> frozenset[int] | None:
    """The index of the letter that labels what follows it in a clause; None where none does.

    rest: the clause without what it denies. It is a CONTRADICTION where the text of another option follows,
    and that of the letter's own is nowhere in the answer.
    """
    parts = LABELLED.match(clause)
    if not parts or len(marked.group(parts[1])) > 1:
        return None
    (index,) = marked.group(parts[1])
    own, labelled = compact(options[index]) if index < len(options) else "", compact(parts[3])
    if own and re.match(_pattern_of(own), labelled):
        return None if DENIED_AFTER.match(labelled, len(own)) else frozenset({index})
    is_denied = rest[0] != clause[0] or (DENIED_AFTER.match(labelled) and not re.search(MARK, parts[3]))
    is_taken_back = _is_found(RETRACTED, parts[3], RULES) or re.fullmatch(rf"\s*{MARK}\s*", parts[3])
    if is_denied or is_taken_back or not parts[2] or (parts[2] != BAR and PREDICATE.match(parts[3])):
        return None
    if labelled in map(compact, options) and not occurs(own, compact(marked.text)):
        return CONTRADICTION
    return frozenset({index})


def _is_found(meaning: str, clause: str, rules: Sequence[Rule]) -> bool:
    return any(pattern.search(clause) for pattern in _patterns(meaning, rules))


def _patterns(meaning: str, rules: Sequence[Rule]) -> list[re.Pattern]:
    return [_compiled(rule.pattern) for rule in rules if rule.meaning == meaning]


@functools.cache
def _compiled(pattern: str) -> re.Pattern:
    """The pattern with what stands for letters in the place of "@"."""
    return re.compile(pattern.replace("@", rf"\s*[\"'(]?{MARK}"), re.IGNORECASE)


def _quoted_options(text: str, options: Sequence[str]) -> frozenset[int]:
    """Indices of the options whose text occurs in a text, and not only inside another option's text.

    What is denied is left out, and where one is said to be the answer, all others.
    """
    patterns = {
        index: _pattern_of(compact(option)) for index, option in enumerate(options) if compact(option)
    }
    longest_first = sorted(patterns, key=lambda index: len(compact(options[index])), reverse=True)
    text = re.sub(r"[^。!;,\n?]*\?", "", text)  # what is asked is no answer
    rest, clauses = compact(text), [compact(clause) for clause in CLAUSE.split(text)[::2]]
    found = set()
    for index in longest_first:
        if re.search(patterns[index], rest):
            rest = re.sub(patterns[index], "\n", rest)
            said = [(clause, match) for clause in clauses for match in re.finditer(patterns[index], clause)]
            if not said or not all(_is_denied(*one) for one in said):
                found.add(index)
    if len(found) > 1:
        answers = [compact(answer) for answer in STATED_TEXT.findall(text)]
        stated = [
            next((index for index in longest_first if re.match(patterns[index], answer)), None)
            for answer in answers
        ]
        found = {index for index in found if set(stated) == {index}} or found
    return frozenset(found)


def _is_denied(clause: str, quoted: re.Match) -> bool:
    before, after = clause[: quoted.start()], clause[quoted.end() :]
    return bool(DENIED_BEFORE.search(before) or DENIED_AFTER.match(after))


def is_accepted(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer holds one of the accepted ones, whatever its width, case, spaces and punctuation.

    An accepted letter has to stand alone, and be no word.
    """
    words = compact(clean(answer, THOUGHTS))
    return any(
        one.upper() in lone_letters(clean(answer)) if re.fullmatch("[a-z]", one) else occurs(one, words)
        for one in map(compact, accepted)
    )


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
    return bool(part) and re.search(_pattern_of(part), text) is not None


def _pattern_of(part: str) -> str:
    """A pattern of a text that is no piece of a longer number or Latin word."""
    before = r"(?<![0-9.])" if part[:1].isdigit() else r"(?<![a-z])" if part[:1].isascii() else ""
    after = r"(?![0-9])(?!\.[0-9])" if part[-1:].isdigit() else r"(?![a-z])" if part[-1:].isascii() else ""
    return before + re.escape(part) + after
