import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import MULTI_TURN, SINGLE_TURN, write_rows
from training import check
from training.text.conversation import from_row
from training.text.template import render

ATTACK = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)> & \"q\" </pre>"


class Page(HTMLParser):
    """What a browser would make of a page: its elements, all attributes, and the text of each `pre`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.examples: list[str] = []
        self.marked: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._open.append(tag)
        if tag == "pre":
            self.examples.append("")
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "pre" in self._open:
            self.examples[-1] += data
            if self._open[-1] == "mark":
                self.marked[-1] += data


@pytest.fixture
def checked(base: str, outcome, tmp_path: Path) -> tuple[str, list[dict]]:
    """The page of two files, and the rows of the first."""
    rows = [
        {"instruction": ATTACK, "output": ATTACK},
        {"instruction": "q"},
        {"instruction": "q", "output": "a"},
    ]
    path = write_rows(tmp_path / "<b>.jsonl", [*rows, {ATTACK: "x"}, {**rows[2], ATTACK: "x"}])
    target = tmp_path / "page.html"
    target.write_text("old")
    files = f"--data-path {path} --data-path {MULTI_TURN}"
    status, _, err = outcome(check.main, f"{files} --input-model {base} --html {target}")
    assert status == 2
    page = target.read_text("utf-8")
    assert err.removeprefix("error: ").strip() in re.sub("&[^;]+;", "", page)
    assert [entry.name for entry in tmp_path.iterdir() if "page" in entry.name] == ["page.html"]
    return page, rows


def test_the_page_marks_the_supervised_tokens_and_asks_nothing_of_the_network(checked) -> None:
    page, rows = checked
    found = Page(page)
    for row, example, marked in zip((rows[0], rows[2]), found.examples, found.marked, strict=False):
        assert example == render(from_row(row))
        assert marked == example[example.index("<|YaYi|>") + len("<|YaYi|>") :]
    dialogue = from_row(json.loads(MULTI_TURN.read_text("utf-8").splitlines()[0]))
    assert found.examples[3] == render(dialogue)
    assert found.marked[3] == "".join(f":\n{turn.yayi}\n\n<|End|>" for turn in dialogue.turns)

    assert not found.tags & {"script", "img", "link", "iframe", "object", "svg", "a", "b"}
    assert found.attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "style"}
    assert not re.search(r"url\(|@import|https?:", page)


def test_the_page_has_every_finding_and_a_bar_for_every_length(checked, base: str, outcome) -> None:
    page, _ = checked
    _, out, _ = outcome(check.main, f"--data-path {MULTI_TURN} --input-model {base} --json")
    summary = json.loads(out)
    section = page[page.index(f"<h2>{MULTI_TURN}") :]
    bars = re.findall(r'<div class="label">(?:to )?([\d,]+)</div>.*?</div>([\d,]+)</div>', section)
    histograms = [summary[name] for name in ("histogram", "answer_histogram", "turns")]
    assert [(int(name.replace(",", "")), int(count)) for name, count in bars] == [
        (int(name), count) for histogram in histograms for name, count in histogram.items() if count
    ]
    first = page[: page.index(f"<h2>{MULTI_TURN}")]
    assert "&quot;output&quot; is missing: 1 row" in first
    assert "not learnt: &quot;&lt;script&gt;" in first


def test_a_page_that_cannot_be_written_is_one_line(base: str, outcome, tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "page.html"
    status, _, err = outcome(check.main, f"--data-path {SINGLE_TURN} --input-model {base} --html {target}")
    assert (status, err) == (2, f"error: {target}: No such file or directory\n")
