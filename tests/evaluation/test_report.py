import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from evaluation import objective, perplexity, picture, report, subjective, tools
from evaluation.objective_scores import GENERATED, GUESSED, objective_figures
from evaluation.output import check_no_model
from evaluation.published import inconsistencies, read_published, sizes_of
from evaluation.ranking import score_tables
from evaluation.ratings import Item, Ratings
from evaluation.tool_scores import MEASURES, tool_figures
from tests.conftest import ROOT, write_rows
from training.common.errors import UserError


def printed() -> dict[str, list[list[str]]]:
    """The tables of the original authors, as docs/zh/evaluation.md has them."""
    page = (ROOT / "docs" / "zh" / "evaluation.md").read_text("utf-8")
    return tables_in(page[page.index("## 原作者的评测结果") :])


def tables_in(document: str) -> dict[str, list[list[str]]]:
    """The cells of the tables of evaluation.md, by the heading above them."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in document.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("| ---"):
            tables.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    return tables


def without_source(table: list[list[str]]) -> list[list[str]]:
    assert {row[-1] for row in table} == {"来源", "原作者发布"}
    return [row[:-1] for row in table]


@pytest.fixture
def has_chinese_font() -> None:
    try:
        picture.chinese_fonts("模型排名")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def quick_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are put together and not drawn: the test is about the tables."""
    monkeypatch.setattr(picture.Figure, "savefig", lambda figure, path, **_: path.touch())


def test_the_published_tables_come_out_as_they_were_printed(
    outcome, tmp_path: Path, has_chinese_font
) -> None:
    write_result(tmp_path / "loss", PERPLEXITY)
    status, _, err = outcome(report.main, str(tmp_path))
    assert status == 0
    assert "1 results beside the published ones" in err
    document = (tmp_path / "evaluation.md").read_text("utf-8")
    tables = tables_in(document[document.index("## Beside the published results") :])
    assert {title: without_source(table) for title, table in tables.items()} == printed()
    assert list(tables) == list(printed())


def test_both_pages_have_the_published_numbers() -> None:
    """The English page has other names, in the same places."""
    page = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    page = page[page.index("## What the original authors measured") :]
    rows = [row for row in re.findall(r"^\| \S.* \| (\d \| .*) \|$", page, re.MULTILINE)]
    assert rows == [" | ".join(row[1:]) for table in printed().values() for row in table[1:]]


def test_where_the_published_tables_disagree_with_themselves(
    outcome, tmp_path: Path, has_chinese_font, quick_picture
) -> None:
    """Ranks follow the means everywhere. One mean is not that of its categories."""
    found = {table["title"]: list(inconsistencies(table)) for table in read_published()}
    what = "YaYi-7B has the mean 3.48; the plain mean of its categories, as printed, is 3.4853"
    assert {title: several for title, several in found.items() if several} == {"基础能力-主观题": [what]}
    write_result(tmp_path / "loss", PERPLEXITY)
    outcome(report.main, str(tmp_path))
    assert f"- 基础能力-主观题: {what}\n" in (tmp_path / "evaluation.md").read_text("utf-8")


def test_the_objective_means_are_those_of_101_questions() -> None:
    (table,) = (table for table in read_published() if table["kind"] == "objective")
    assert sizes_of(table) == [57, 10, 25, 4, 5]


@pytest.mark.parametrize(
    ("title", "change", "message"),
    [
        ("金融领域", {"rank": 2}, "YaYi-7B has rank 2, and 0 models have a higher mean"),
        ("金融领域", {"mean": 5.5}, "YaYi-7B has the score 5.50, outside of 1 to 5"),
        (
            "基础能力-客观题",
            {"mean": 0.34},
            "YaYi-7B has the mean 0.34; that of [57, 10, 25, 4, 5]",
        ),
    ],
)
def test_what_a_disagreement_would_look_like(title: str, change: dict, message: str) -> None:
    (table,) = (table for table in read_published() if table["title"] == title)
    (row,) = (row for row in table["rows"] if row["model"] == "YaYi-7B")
    row |= change
    assert any(what.startswith(message) for what in inconsistencies(table))


LOSS = {
    "rows": 2,
    "tokens": 1234,
    "characters": 3,
    "loss": 1.5,
    "perplexity": 4.4817,
    "loss_per_character": 1,
}
PERPLEXITY = {
    "kind": "perplexity",
    "model": "甲",
    "data": "d.jsonl",
    "domains": {"all": LOSS, "金融风控领域任务": LOSS},
}


def write_result(directory: Path, result: dict) -> None:
    directory.mkdir(parents=True)
    (directory / "result.json").write_text(json.dumps(result), "utf-8")


def objective_result(model: str, categories: list[str]) -> dict:
    judged = []
    for number, category in enumerate(categories):
        row = {"place": f"q:{number}", "category": category, "rotation": 0, "ended": True}
        said = {
            "answer": "7",
            "chosen": {GENERATED: "7"},
            "is_right": {GENERATED: number < 2},
        }
        said["chosen"][GUESSED], said["is_right"][GUESSED] = "7", number < 2
        judged.append(row | said)
    return {"kind": "objective", "model": model, "questions": "q.jsonl"} | objective_figures(judged)


def ratings_result() -> dict:
    questions = [("金融领域", "", f"{n}？") for n in range(4)] + [
        ("基础能力-主观题", "翻译题", "a？"),
        ("新领域", "", "b？"),
    ]
    items = [Item(*question, model, "") for question in questions for model in ("checkpoints/甲", "乙")]
    scores = [[5 if item.model == "乙" else 2 for item in items] for _ in range(3)]
    return {"kind": "subjective", "raters": 3, "alpha": 1.0, "tables": score_tables(Ratings(items, scores))}


def tools_result() -> dict:
    """Two questions that take a call, of one domain, and one that takes none."""
    called, right_tool, right_arguments, none, holds, whole = MEASURES
    rights = [
        {called: True, right_tool: True, right_arguments: True, holds: True, whole: True},
        {called: True, right_tool: True, right_arguments: False, whole: False},
        {none: False, whole: False},
    ]
    judged = [
        {
            "domain": "金融" if called in is_right else "",
            "expected": [{"name": "f|g"}] if called in is_right else [],
            "ended": True,
            "is_right": is_right,
        }
        for is_right in rights
    ]
    return {"kind": "tools", "model": "甲", "questions": "d/q.jsonl"} | tool_figures(judged)


@pytest.mark.usefixtures("has_chinese_font", "quick_picture")
def test_new_scores_stand_beside_the_published_ones(outcome, tmp_path: Path) -> None:
    write_result(
        tmp_path / "one" / "objective", objective_result("checkpoints/甲", ["知识题", "知识题", "文学题"])
    )
    write_result(tmp_path / "other", objective_result("乙", ["历史", "语文"]))
    write_result(tmp_path / "sheets", ratings_result())
    write_result(tmp_path / "loss", PERPLEXITY)
    write_result(tmp_path / "calls", tools_result())
    status, _, err = outcome(report.main, str(tmp_path))
    assert status == 0
    assert "5 results beside the published ones" in err
    document = (tmp_path / "evaluation.md").read_text("utf-8")
    beside = tables_in(document[document.index("## Beside the published results") :])
    # Two of two and none of one; the interval is Wilson's of 2 of 3.
    assert beside["基础能力-客观题"][-1] == [
        "checkpoints/甲", "–", "0.67 [0.21, 0.94]", "1.00", "–", "0.00", "–", "–", "one/objective",
    ]  # fmt: skip
    assert beside["金融领域"][-2:] == [
        ["乙", "–", "5.00 [5.00, 5.00]", "sheets"],
        ["checkpoints/甲", "–", "2.00 [2.00, 2.00]", "sheets"],
    ]
    assert beside["基础能力-主观题"][-2][:4] == ["乙", "–", "5.00 [5.00, 5.00]", "5.00"]
    assert set(beside["基础能力-主观题"][-2][4:-1]) == {"–"}
    # What was published stays as it was.
    assert {
        title: [row[:-1] for row in beside[title][: len(table)]] for title, table in printed().items()
    } == printed()
    measured = tables_in(document[: document.index("## Beside")])
    assert measured["新领域"][1:] == [
        ["乙", "1", "5.00 [5.00, 5.00]"],
        ["checkpoints/甲", "2", "2.00 [2.00, 2.00]"],
    ]
    assert "| 金融风控领域任务 | 甲 | 2 | 1,234 | 1.5000 | 4.4817 | 1.0000 |" in document
    # Wilson's intervals of 2 and 1 of 2, 0 and 1 of 1, and 1 of 3.
    both, one, none = "100.0% [34.2%, 100.0%] of 2", "50.0% [9.5%, 90.5%] of 2", "0.0% [0.0%, 79.3%] of 1"
    held = "100.0% [20.7%, 100.0%] of 1"
    assert measured["Calls of tools: calls, 甲, d/q.jsonl"] == [
        ["share of questions, 95 % interval", *MEASURES],
        ["all", both, both, one, none, held, "33.3% [6.1%, 79.2%] of 3"],
        ["金融", both, both, one, "–", held, one],
        ["`f\\|g`", both, both, one, "–", held, one],
    ]
    assert "\n3 questions; 0.0% of the answers were cut off.\n" in document


def test_the_picture_has_a_panel_for_each_table_and_a_radar_for_categories(
    tmp_path: Path, monkeypatch, has_chinese_font, recwarn
) -> None:
    """One model has the name of a published one, and was asked only some of the categories."""
    drawn = []
    monkeypatch.setattr(
        picture.Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.touch())
    )
    results = {"here": objective_result("ChatGPT", ["知识题", "文学题"]), "sheets": ratings_result()}
    results["calls"] = tools_result()
    tables = report.beside_published(results)
    picture.draw(tables, tmp_path / "evaluation.png")
    (figure,) = drawn
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [*printed(), "新领域", "工具调用 q.jsonl"]
    assert sum(axes.name == "polar" for axes in figure.axes) == 3
    (called,) = panels["工具调用 q.jsonl"].patches
    assert called.get_width() == pytest.approx(1 / 3)
    bars = panels["基础能力-客观题"]
    assert len(bars.patches) == 9
    assert [label.get_text() for label in bars.get_yticklabels()].count("ChatGPT") == 2
    figure.canvas.draw()
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]
    assert (tmp_path / "evaluation.png").exists()


def test_without_a_font_the_report_is_written_and_a_line_says_why_there_is_no_picture(
    outcome, tmp_path: Path, monkeypatch
) -> None:
    own = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    write_result(tmp_path / "loss", PERPLEXITY)
    status, _, err = outcome(report.main, str(tmp_path))
    assert status == 2
    assert err.startswith("error: no font on this machine has ")
    assert "for the picture; install one (Debian: apt-get install fonts-noto-cjk)" in err
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.md", "loss"}
    assert picture.chinese_fonts(["Latin only"]) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "other"}', '{"model": "m"}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"a/result\.json: no result of an evaluation \(.*\); take it away"):
        report.read_results(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "run.json"])
@pytest.mark.parametrize("below", ["", "own"])
def test_no_command_writes_into_the_directory_of_a_model_or_a_run(
    outcome, tmp_path: Path, name: str, below: str
) -> None:
    """`evaluation.report checkpoints/demo` wrote over the report.md of the run."""
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text('{"model_type": "bloom"}')
    (run / "report.md").write_text("the run's own")
    (run / "result.json").write_text(json.dumps(PERPLEXITY))
    answers = {"domain": "域", "question": "？", "model": "m", "answer": ""}
    rows = write_rows(tmp_path / "answers.jsonl", [answers])
    before = {path: path.read_text() for path in run.iterdir()}
    output = run / below
    commands = [
        (objective.main, f"--model m --questions {rows} --output {output}"),
        (perplexity.main, f"--model m --data-path {rows} --output {output}"),
        (tools.main, f"--model m --questions {rows} --output {output}"),
        (subjective.main, f"ask --model m --questions {rows} --output {output / 'a.jsonl'}"),
        (subjective.main, f"sheets --answers {rows} --output {output}"),
    ]
    if not below:
        commands.append((report.main, str(output)))
    for command, arguments in commands:
        status, _, err = outcome(command, arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert f"{run} is the directory of a model or a run ({name} is in it)" in err
        assert {path: path.read_text() for path in run.iterdir()} == before


@pytest.mark.parametrize("content", ['{"name": "x"}', "[]", "{", "3"])
def test_beside_another_programs_config_an_evaluation_may_write(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    check_no_model(tmp_path / "evaluation")


def test_a_directory_without_results_is_an_error(outcome, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    status, _, err = outcome(report.main, str(tmp_path))
    assert (status, err.count("\n")) == (2, 1)
    assert f"error: {tmp_path}: no result.json in it or below it; give the directory that holds" in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_directory_that_is_not_there(outcome, tmp_path: Path) -> None:
    status, _, err = outcome(report.main, str(tmp_path / "nope"))
    assert (status, err.count("\n")) == (2, 1)
    assert "nope: no such directory" in err


# No font on earth has these together: letters of Mro and Adlam, a hieroglyph, and a sign of cuneiform.
RARE = "\U00016a40\U0001e900\U00013000\U00012000"


def make_font(path: Path, characters: str) -> None:
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord(character): "box" for character in characters})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "box": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "box": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Latecomer", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.mark.slow
def test_a_font_that_came_after_matplotlibs_list_of_fonts_is_found_and_one_that_went_is_not(
    tmp_path: Path,
) -> None:
    """matplotlib writes its list into a cache once, so each step is a process of its own."""
    code = (
        "from evaluation.picture import chinese_fonts\n"
        "from training.common.errors import UserError\n"
        f"try: print(*chinese_fonts({RARE!a}))\n"
        "except UserError as error: print('none:', ascii(str(error)))"
    )
    folder = tmp_path / "share" / "fonts"
    folder.mkdir(parents=True)
    (folder / "broken.ttf").write_bytes(b"no font")
    places = {"MPLCONFIGDIR": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "share")}

    def found() -> str:
        command, environment = [sys.executable, "-c", code], os.environ | places
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert found().startswith("none: 'no font on this machine has ")
    assert list((tmp_path / "cache").glob("fontlist-*.json"))
    make_font(folder / "latecomer.ttf", RARE)
    assert found() == "Latecomer"
    for written in (tmp_path / "cache").glob("fontlist-*.json"):
        written.unlink()  # so that the next process writes one with the new font
    assert found() == "Latecomer"
    (folder / "latecomer.ttf").unlink()
    assert found().startswith("none: 'no font on this machine has ")
