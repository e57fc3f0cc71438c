"""The technical report: its pages show what its results file holds, and the same in both languages."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.benchmarks import report
from tests.benchmarks.report_sections import (
    ADDED,
    SECTIONS,
    read_generate,
    read_plan,
    read_train_step,
    read_whole_step,
)
from tests.benchmarks.report_tables import LANGUAGES, TABLES
from tests.pages import assert_parses, blocks

TEXTS = {language: path.read_text("utf-8") for language, path in report.PAGES.items()}
PLACE = re.compile(r"<!-- measured: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)

# What tests.benchmarks.train_step prints where TRL is not installed.
PRINTED = """\
8 examples, 1,713 tokens, 208 of them supervised, 2,904 padded; qwen, bfloat16
          s a step  useful tokens/s  peak GB  of GEMM bound     loss
trl         is not installed: pip install trl
plain        2.50            685.2     6.01             8%  12.3456
ours         0.50           3426.0     2.57            70%  12.3400
ours is 5.00 times as fast, at 0.43 of the peak
"""


@pytest.mark.parametrize("language", TEXTS)
def test_a_page_shows_what_the_results_file_holds(language: str) -> None:
    page = TEXTS[language]
    assert report.filled(page, report.read_results(), LANGUAGES[language]) == page
    assert sorted(name for name, _ in PLACE.findall(page)) == sorted(TABLES)
    assert set(TABLES) == SECTIONS.keys() | ADDED.keys()


def test_a_number_typed_by_hand_is_found() -> None:
    page = TEXTS["en"]
    name, shown = next((name, shown) for name, shown in PLACE.findall(page) if re.search(r"\d", shown))
    changed = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), shown, count=1)
    typed = page.replace(shown, changed)
    assert typed != page
    assert report.filled(typed, report.read_results(), LANGUAGES["en"]) == page, name


def test_both_pages_have_the_same_headings_commands_tables_and_pictures() -> None:
    english, chinese = TEXTS["en"], TEXTS["zh"]
    for pattern in (
        r"^#+ (?=\d|\S)",
        r"^!.*figures/(\w+)\.png",
        r"<!-- measured: (\w+) -->",
        r"^\d+\. .*http.*",
    ):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, chinese, re.MULTILINE), (
            pattern
        )
    for kind in ("bash", "text"):
        assert blocks(english, kind) == blocks(chinese, kind)
    columns = [re.findall(r"^\|.*\|$", page, re.MULTILINE) for page in (english, chinese)]
    assert [line.count(" |") for line in columns[0]] == [line.count(" |") for line in columns[1]]


@pytest.mark.parametrize("language", TEXTS)
def test_links_to_files_lead_somewhere_and_commands_parse(language: str) -> None:
    page = report.PAGES[language]
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[language]):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    commands = [line for block in blocks(TEXTS[language], "bash") for line in block.splitlines()]
    commands += re.findall(
        r"^\*(?:Not measured yet\*: |尚未测量\*：)?`(python -m [^`]+)`", TEXTS[language], re.MULTILINE
    )
    for command in commands:
        _, _, module, *arguments = shlex.split(command)
        assert_parses(module, arguments)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pages and results of its own, without any section."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "report.json")
    monkeypatch.setattr(report, "PAGES", {"zh": tmp_path / "zh.md"})
    monkeypatch.setattr(report, "FIGURES", tmp_path / "figures")
    (tmp_path / "zh.md").write_text(
        "甲\n<!-- measured: train_step_card -->\n<!-- end -->\n乙\n", encoding="utf-8"
    )
    return tmp_path


def test_what_was_measured_elsewhere_is_added_with_its_machine(place: Path, outcome) -> None:
    status, _, _ = outcome(report.main, "--pages")
    assert status == 0
    page = (place / "zh.md").read_text("utf-8")
    assert "尚未测量" in page

    (place / "steps.txt").write_text(PRINTED + PRINTED.replace("qwen", "llama"), encoding="utf-8")
    status, _, err = outcome(report.main, f"--add train_step_card {place}/steps.txt")
    assert status == 2
    assert "name the machine" in err
    line = f"--add train_step_card {place}/steps.txt --machine H100"
    assert outcome(report.main, line)[0] == 0
    page = (place / "zh.md").read_text("utf-8")
    assert "| llama, bfloat16 | 本项目 | 0.5 | 3,426.0 | 5.00 x | 2.57 | 70% | 12.3400 |" in page
    assert "；H100；" in page
    assert "尚未测量" not in page
    assert page.startswith("甲\n")
    assert page.endswith("\n乙\n")
    assert (place / "figures" / "train_step.png").stat().st_size > 1000
    kept = json.loads((place / "report.json").read_text("utf-8"))
    assert [table["base"] for table in kept["train_step_card"]["found"]] == ["qwen", "llama"]


def test_a_card_check_names_its_own_card(place: Path, outcome) -> None:
    rows = [
        ("card 0", "NVIDIA H100", "", "", ""),
        ("torch", "2.13.0", "", "", ""),
        ("cuDNN", 123.0, "TFLOP/s", "at least 100", "holds"),
        ("decoding", 12.34, "tokens/s", "at least 20", "FAILS"),
    ]
    keys = ("what", "value", "unit", "bound", "verdict")
    part = {"number": 0, "title": "The machine", "outcome": "done", "reason": "", "seconds": 3.2}
    part["rows"] = [dict(zip(keys, row, strict=True)) | {"note": ""} for row in rows]
    content = {"sizes": "a card", "device": "cuda:0", "failures": 1, "parts": [part]}
    (place / "card.json").write_text(json.dumps(content), encoding="utf-8")
    (place / "zh.md").write_text("<!-- measured: card_check -->\n<!-- end -->\n", encoding="utf-8")
    assert outcome(report.main, f"--add card_check {place}/card.json")[0] == 0
    page = (place / "zh.md").read_text("utf-8")
    for text in ("；NVIDIA H100, torch 2.13.0；", "| 1 / 2 | 3 |", "不成立的界：decoding", "| 123 TFLOP/s |"):
        assert text in page, text


@pytest.mark.parametrize("text", ["", "ours 1 2 3", PRINTED.splitlines()[0]])
def test_what_no_benchmark_printed_is_refused(text: str, place: Path, outcome) -> None:
    (place / "steps.txt").write_text(text, encoding="utf-8")
    status, _, err = outcome(report.main, f"--add train_step_card {place}/steps.txt --machine H100")
    assert status == 2
    assert err.startswith("error: ")
    assert "steps.txt" in err
    assert not (place / "report.json").exists()


def test_every_number_of_a_printed_table_is_read() -> None:
    (table,) = read_train_step(PRINTED)
    assert (table["tokens"], table["padded"]) == (1713, 2904)
    assert table["ways"]["plain"] == {
        "seconds": 2.5, "tokens a second": 685.2, "peak GB": 6.01, "of bound": 0.08, "loss": 12.3456,
    }  # fmt: skip


def test_whole_steps_are_read() -> None:
    printed = """\
8 examples a step, 1,713 tokens; bloom, float32, deepspeed_zero2_bf16_no_offload.json
                  s a step  useful tokens/s  peak GB
plain                20.60             83.2     9.90
ours                 12.60            136.0     9.80
ours, LoRA 16         3.90            439.2     4.40
"""
    found = read_whole_step(printed)
    assert list(found) == ["plain", "ours", "ours, LoRA 16"]
    assert found["ours"] == {"seconds": 12.6, "tokens a second": 136.0, "peak GB": 9.8}


def test_the_speed_of_answers_is_read() -> None:
    printed = """\
bfloat16, 2 threads, prompt of 50 tokens, greedy
          tokens/s  of bound  batch of 8  first, s   weights      peak
plain          7.8       44%        20.1      1.25   1.12 GB   2.34 GB
ours          12.9       73%        61.5      0.75   1.12 GB   1.89 GB
ours: turn 1 1.95 s, turn 10 2.04 s to the first token (1,834 tokens by then)
ours is 1.65 times plain at batch 1, 3.06 times at 8; 24 of 25 tokens equal
"""
    found = read_generate(printed)
    assert found["ways"] == {
        "plain": {"alone": 7.8, "of bound": 0.44, "of 8": 20.1, "first": 1.25},
        "ours": {"alone": 12.9, "of bound": 0.73, "of 8": 61.5, "first": 0.75},
    }
    assert (found["turn 1"], found["turn 10"], found["tokens of turn 10"]) == (1.95, 2.04, 1834)
    assert found["equal"] == [24, 25]


def test_the_plan_beside_real_runs_is_read() -> None:
    printed = """\
                                          planned  measured   planned / measured
51 M     all weights, ZeRO-2                 1.97      1.93                 1.02
51 M     LoRA 16, ZeRO-2, offload            0.92      0.95                 0.97
"""
    assert read_plan(printed) == [
        {"weights": "51 M", "way": "all weights, ZeRO-2", "planned": 1.97, "measured": 1.93},
        {"weights": "51 M", "way": "LoRA 16, ZeRO-2, offload", "planned": 0.92, "measured": 0.95},
    ]
