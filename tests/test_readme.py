"""The README in both languages: short enough to be read, and its figures are those of the code."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import Qwen2Config

from tests import walk_readme
from tests.commands.test_plan import BLOOMZ
from tests.conftest import MULTI_TURN, SINGLE_TURN
from tests.pages import README, blocks, headings, prose, shell_lines, tables, text_of
from training import plan

ENGLISH, CHINESE = (text_of(page) for page in README)


def words(text: str) -> int:
    """What `wc -w` counts outside the blocks of code."""
    return len(prose(text).split())


def chinese_and_latin_words(text: str) -> int:
    return len(re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+(?:[-'./][^\W\u3400-\u9fff]+)*", prose(text)))


def test_the_words_are_counted() -> None:
    assert (
        words("# One two\n\n```bash\nnot these\n```\n\nthree, four.\n") == 5
    )  # the mark of a heading is one
    assert chinese_and_latin_words("雅意 bf16，docs/data.md 里") == 5


def test_the_page_is_short() -> None:
    assert words(ENGLISH) <= 1500
    assert chinese_and_latin_words(CHINESE) <= 2500


def test_the_order_is_the_readers() -> None:
    """A small model first, then one's own data, and the command for eight cards after its download."""
    lines = "".join(blocks(ENGLISH, "bash"))
    order = [
        "scripts/demo.sh",
        "inference.chat",
        "training.check",
        "--lora-rank",
        "hf download",
        "--num_gpus=8",
    ]
    places = [lines.index(each) for each in order]
    assert places == sorted(places)
    assert ENGLISH.index("](docs/figures/") < ENGLISH.index("## ")


def test_the_reader_learns_where_a_row_format_goes() -> None:
    assert "`FORMATS` in [training/text/formats.py](training/text/formats.py)" in ENGLISH


# Qwen2.5-14B
QWEN = Qwen2Config(
    vocab_size=152_064, hidden_size=5120, intermediate_size=13_824, num_hidden_layers=48,
    num_attention_heads=40, num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture
def planned(base: str, tmp_path: Path, outcome) -> Callable[[str], list[str]]:
    """What `training.plan` says to a command line: what to take, GB of a card, of the host, of a checkpoint.

    The models are their sizes, with a small tokenizer and without weights.
    """
    sizes = {"bigscience/bloomz-7b1-mt": BLOOMZ, "Qwen/Qwen2.5-14B": QWEN}
    for name, config in sizes.items():
        directory = tmp_path / name
        directory.mkdir(parents=True)
        for file in Path(base).glob("*token*"):
            shutil.copy(file, directory)
        config.save_pretrained(directory)

    def run(command: str) -> list[str]:
        status, out, err = outcome(plan.main, command.replace("--input-model ", f"--input-model {tmp_path}/"))
        assert (status, err) == (0, "")
        taken, way, host = re.search(r"^take: (.*) \((.*); ([\d.]+) GB of host memory\)$", out, re.M).groups()
        *_, on_card, fits, _, checkpoint = re.search(rf"^{re.escape(way)} .*$", out, re.M)[0].split()
        assert fits == "fits"
        return [taken, on_card, host, checkpoint]

    return run


def rows_between(text: str, name: str) -> list[list[str]]:
    section = text.split(f"<!-- begin: {name} -->")[1].split(f"<!-- end: {name} -->")[0]
    ((_, *rows),) = tables(section)
    return rows


@pytest.mark.slow
def test_the_table_of_cards_is_what_the_plan_says(planned: Callable[[str], list[str]]) -> None:
    talk, *rows = rows_between(ENGLISH, "cards")
    assert talk[3] == "20"  # the original authors' figure
    in_chinese = rows_between(CHINESE, "cards")
    assert [[row[1], *row[3:]] for row in (talk, *rows)] == [[row[1], *row[3:]] for row in in_chinese]
    assert len(rows) == 5
    options = ""
    for _, cards, how, on_card, on_host in rows:
        (written,) = re.findall(r"`([^`]+)`", how)
        if written.startswith("--load-in-4bit"):
            options += f" {written}"  # the same as in the row before, and this
        else:
            options = written if written.startswith("--") else ""
        count, size = re.fullmatch(r"(\d+) x (\d+) GB", cards).groups()
        command = f"--input-model bigscience/bloomz-7b1-mt --num-gpus {count} --gpu-memory {size} {options}"
        taken, *figures, _ = planned(command)
        assert figures == [on_card, on_host], command
        assert options or written in taken


@pytest.mark.slow
def test_the_table_of_the_hardware_page_is_what_its_commands_say(
    planned: Callable[[str], list[str]],
) -> None:
    page = text_of("docs/hardware.md")
    commands = [line for line in shell_lines(page) if line.startswith("python -m training.plan ")]
    rows, in_chinese = (rows_between(text, "plan") for text in (page, text_of("docs/zh/hardware.md")))
    assert [row[3:] for row in rows] == [row[3:] for row in in_chinese]
    for command, row in zip(commands, rows, strict=True):
        assert planned(command.partition("training.plan ")[2])[1:] == row[4:], command


def test_what_the_pages_say_of_talking_is_the_plans_count_of_weights() -> None:
    cache = 2 * 2 * BLOOMZ.num_hidden_layers * BLOOMZ.hidden_size  # keys and values in 2 bytes each
    page = text_of("docs/inference.md")
    assert "7,069 million parameters are 14.1 GB" in page
    assert f"{cache / 1e6:.2f} MB a token" in page
    assert f"{2048 * cache / 1e9:.1f} GB more" in page


@pytest.mark.parametrize("page", ["docs/data.md", "docs/zh/data.md"])
def test_the_numbers_of_the_sample_data_are_right(page: str) -> None:
    single, multi = (len(path.read_text("utf-8").splitlines()) for path in (SINGLE_TURN, MULTI_TURN))
    assert re.search(rf"\b{single}\D+{multi}\b|{single} *行\D+{multi} *", text_of(page))
    assert f"the {single} sample rows" in ENGLISH


@pytest.mark.parametrize(
    "fact",
    [
        "https://yayi.wenge.com", "https://huggingface.co/wenge-research", "conda create --name yayi",
        "domain_subset", "【金融风控领域任务】", "20 GB", "star-history.com", "CC BY-NC 4.0",
        "KeywordsStoppingCriteria", "bloomz-7b1-mt", "dolly", "15B",
    ],
)  # fmt: skip
@pytest.mark.parametrize("zh", ["", "zh/"])
def test_the_facts_of_the_originals_readme_have_their_place(fact: str, zh: str) -> None:
    names = ("data", "inference", "hardware", "evaluation", "original")
    pages = [text_of(README[bool(zh)]), *(text_of(f"docs/{zh}{name}.md") for name in names)]
    assert any(fact in page for page in pages)


def test_the_arguments_of_the_originals_command_are_all_there() -> None:
    (command,) = (block for block in blocks(ENGLISH, "bash") if "--num_gpus=8" in block)
    given = shlex.split(command.replace("\\\n", " "))
    end = (
        "--epochs 2 --local-output-dir ./checkpoints --per-device-train-batch-size 8 "
        "--per-device-eval-batch-size 8 --logging-steps 1 --save-steps 100 --save-total-limit 10 "
        "--eval-steps 100 --warmup-steps 100 --test-size 400 --lr 5e-7 --seed 515"
    )
    assert shlex.join(given).endswith(end)
    assert [level for level, _ in headings(ENGLISH)].count(1) == 1


def test_few_blocks_are_not_run_as_they_stand_each_with_a_reason() -> None:
    shown = blocks(ENGLISH, "bash")
    assert len(walk_readme.SPECIAL) <= 5
    for special in walk_readme.SPECIAL:
        assert sum(special.shows in block for block in shown) == 1
        assert special.reason.endswith(".")
        assert bool(special.instead) != bool(special.asks)
    for replaced in walk_readme.REPLACED:
        assert replaced in "".join(shown)
    assert [block for block, _ in walk_readme.steps(ENGLISH)] == shown
    assert sum(text != "" for _, text in walk_readme.steps(ENGLISH)) == 1
