"""Every page has the other language beside it, says the same in it, and shows commands that can be run."""

import re

import pytest

from tests.conftest import ROOT
from tests.pages import (
    Pair,
    all_pairs,
    anchor,
    assert_is_a_command,
    blocks,
    headings,
    kinds_of_blocks,
    links,
    options_in,
    path_in,
    shell_lines,
    tables,
    text_of,
)

PAIRS = all_pairs()
ENGLISH_ONLY = ("CONTRIBUTING.md", "CHANGELOG.md")
pairs = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.english)
pages = pytest.mark.parametrize("page", [page for pair in PAIRS for page in pair])


def in_both(pair: Pair, what) -> None:
    english, chinese = (what(text_of(page)) for page in pair)
    assert english == chinese


@pairs
def test_both_languages_have_the_same_headings(pair: Pair) -> None:
    in_both(pair, lambda text: [level for level, _ in headings(text)])


@pairs
def test_both_languages_have_the_same_blocks(pair: Pair) -> None:
    in_both(pair, kinds_of_blocks)
    for kind in {"bash", "python", "json", "text"} & set(kinds_of_blocks(text_of(pair.english))):
        in_both(pair, lambda text, kind=kind: blocks(text, kind))
    # Comments are in the language of the page.
    in_both(pair, lambda text: [re.sub(r"#.*", "", block) for block in blocks(text, "nginx")])


@pairs
def test_both_languages_have_the_same_tables(pair: Pair) -> None:
    """The same sizes, and in each row the same code, numbers and links."""
    in_both(pair, lambda text: [[len(row) for row in table] for table in tables(text)])

    def code_in(text: str) -> list[list[list[str]]]:
        return [[sorted(re.findall(r"`[^`]+`", " ".join(row))) for row in table] for table in tables(text)]

    if pair.english != "docs/training.md":  # whose table of options tests/test_training_page.py compares
        in_both(pair, code_in)


@pairs
def test_both_languages_name_the_same_options_and_lead_to_the_same_pages(pair: Pair) -> None:
    in_both(pair, options_in)

    def targets(page: str) -> list[str]:
        found = (target.partition("#")[0] for target in links(text_of(page)))
        places = (each if each.startswith("https:") else path_in(page, each or "#").name for each in found)
        return sorted(each.replace("_zh", "") for each in places)

    english, chinese = pair
    assert targets(english) == targets(chinese)


@pairs
def test_each_language_leads_to_the_other(pair: Pair) -> None:
    english, chinese = pair
    assert path_in(english, links(text_of(english))[0]).samefile(path_in(chinese, "#"))
    assert path_in(chinese, links(text_of(chinese))[0]).samefile(path_in(english, "#"))


@pages
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target in links(text_of(page)):
        if target.startswith("https://"):
            continue
        path = path_in(page, target)
        assert path.exists(), target
        _, _, wanted = target.partition("#")
        if wanted:
            assert wanted in [anchor(words) for _, words in headings(path.read_text("utf-8"))], target


@pairs
def test_a_chinese_page_leads_to_chinese_pages(pair: Pair) -> None:
    for target in links(text_of(pair.chinese))[1:]:
        place = path_in(pair.chinese, target)
        if place.suffix == ".md" and not target.startswith("https:") and place.name not in ENGLISH_ONLY:
            assert "zh" in str(place.relative_to(ROOT)), target


@pairs
def test_every_command_can_be_run(pair: Pair) -> None:
    for line in shell_lines(text_of(pair.english)):
        assert_is_a_command(line)


@pages
def test_files_and_what_they_define_are_there(page: str) -> None:
    """`NAME` in [FILE](FILE), in one language, and [FILE](FILE) 中的 `NAME` in the other."""
    names = r"((?:`\w+`(?:, | and |、| 和 )?)+)"
    text = text_of(page)
    found = [(path, named) for named, path in re.findall(names + r" in \[([\w/]+\.py)\]", text)]
    found += re.findall(r"\[([\w/]+\.py)\]\([^)]+\) (?:中的|的) " + names, text)
    for path, named in found:
        code = text_of(path)
        for name in re.findall(r"`(\w+)`", named):
            defined = rf"^\s*(?:def |class )?{name}\b(?:\(|:| =|\[)"
            assert re.search(defined, code, re.MULTILINE), (path, name)
    assert found or "extending" not in page
