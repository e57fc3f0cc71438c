"""docs/training.md, in both languages: the table of options, and that of other tools' options."""

import dataclasses
import re

import pytest
from trl import ModelConfig, ScriptArguments, SFTConfig

from tests.options_table import CHINESE, ENGLISH, cells_by_flag, lines, rewritten
from tests.pages import tables, text_of
from training import trainer
from training.common.command_line import flag_of
from training.common.options import Options


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_the_table_of_options_is_current(page) -> None:
    assert page.read_text("utf-8") == rewritten(page), "python -m tests.options_table"


def test_the_table_has_every_option_that_the_command_offers() -> None:
    offered = {option.opts[0] for option in trainer.main.params if not option.hidden}
    assert offered - {"--local_rank", "--config"} == {line.flag.split("/")[0] for line in lines()}
    assert "`--config FILE`" in text_of("docs/training.md")


def test_every_option_is_explained_in_chinese_with_the_numbers_of_the_english_page() -> None:
    shown = cells_by_flag(CHINESE)
    for line in lines():
        _, default, meaning = shown[line.flag]
        assert re.search(r"[\u4e00-\u9fff]", meaning), line.flag
        assert re.findall(r"\d[\d.e-]*", default) == re.findall(r"\d[\d.e-]*", line.default), line.flag


def test_a_changed_default_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    field = next(field for field in dataclasses.fields(Options) if field.name == "epochs")
    monkeypatch.setattr(field, "default", 3.0)
    for page in (ENGLISH, CHINESE):
        assert page.read_text("utf-8") != rewritten(page)


def coming_from(page: str) -> list[list[str]]:
    """The last table of the page."""
    return tables(text_of(page))[-1]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_for_other_tools_names_our_options_and_those_of_trl() -> None:
    """TRL is installed, so that its names are looked up in it; those of the others were looked up once."""
    heads, *rows = coming_from("docs/training.md")
    ours = {
        flag_of(field).split("/")[0] for field in dataclasses.fields(Options) if "group" in field.metadata
    }
    theirs = {
        field.name
        for config in (SFTConfig, ScriptArguments, ModelConfig)
        for field in dataclasses.fields(config)
    }
    assert heads[3] == "TRL"
    for row in rows:
        assert set(named(row[0])) <= ours | {"--config"}, row
        assert set(named(row[3])) <= theirs | {"--config"}, row
    assert {name for row in rows for name in named(row[0])} >= ours - {
        # What only this recipe has.
        "--on-bad-row", "--resume-anyway", "--warmup-shape", "--ddp-timeout", "--plan", "--local_rank",
    }  # fmt: skip


def test_both_languages_name_the_same_options_of_other_tools() -> None:
    english, chinese = (coming_from(page) for page in ("docs/training.md", "docs/zh/training.md"))
    for one, other in zip(english, chinese, strict=True):
        assert [sorted(named(cell)) for cell in one[:5]] == [sorted(named(cell)) for cell in other[:5]]
