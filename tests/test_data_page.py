"""The page about data, in both languages: its commands run, its rows are rows, no kind of file is missing."""

import json
import shlex
from pathlib import Path

import openpyxl
import pytest

from tests.pages import blocks, text_of
from training import check, convert
from training.common.columns import PARTS
from training.data.faq import read_faq
from training.data.file_kinds import KIND_OF_SUFFIX
from training.data.reader import read_rows
from training.text.conversation import from_row
from training.text.messages import SPEAKERS
from training.text.template import render

ENGLISH, CHINESE = text_of("docs/data.md"), text_of("docs/zh/data.md")


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def test_a_table_a_gbk_table_and_a_faq_become_rows_by_the_commands(
    tmp_path: Path, monkeypatch, base: str, outcome
) -> None:
    monkeypatch.chdir(tmp_path)
    book = openpyxl.Workbook()
    for row in (["问题", "答案"], ["一？", "甲"]):
        book.worksheets[0].append(row)
    book.save("faq.xlsx")
    Path("faq.csv").write_bytes("问题,答案\r\n二？,乙\r\n".encode("gbk"))
    Path("faq.md").write_text("## 三？\n\n丙\n", encoding="utf-8")
    Path("checkpoints").mkdir()
    modules = {"training.check": check.main, "training.convert": convert.main}
    for _, _, module, *arguments in commands(blocks(ENGLISH, "bash")[0]):
        if module in modules:
            line = " ".join(arguments).replace("checkpoints/tiny-bloom", base)
            status, _, err = outcome(modules[module], line)
            assert status == 0, err
    turns = [from_row(row).turns for _, row in read_rows("checkpoints/*.jsonl")]
    assert [(turn.human, turn.yayi) for (turn,) in turns] == [("三？", "丙"), ("一？", "甲"), ("二？", "乙")]


def test_the_rows_and_the_faq_of_the_page_are_read(tmp_path: Path) -> None:
    rows, with_tools = blocks(ENGLISH, "json")
    for line in (rows + with_tools).splitlines():
        assert from_row(json.loads(line), answered=True)
    path = tmp_path / "faq.md"
    faq, _ = blocks(ENGLISH, "text")
    path.write_text(faq)
    assert [from_row(raw.content).turns[0].human for raw in read_faq(str(path))] == [
        "What is a deposit?",
        "What does it cost?",
    ]


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_speaker_part_and_kind_of_file_is_named(page: str) -> None:
    for name in (*SPEAKERS, *PARTS, *(set(KIND_OF_SUFFIX) - {".ndjson"}), ".gz"):
        assert f"`{name}`" in page, name


def test_the_text_of_the_page_is_our_text() -> None:
    _, text = blocks(ENGLISH, "text")
    assert text == render(from_row({"instruction": "你是谁", "output": "我是雅意……"})) + "\n"
