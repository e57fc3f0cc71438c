"""docs/serving.md, in both languages: what it shows works, as far as no server is needed for it."""

import re
import shlex
import subprocess
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import jinja2
import pytest
from packaging.requirements import Requirement
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import ROOT
from tests.inference.prompts import TYPED, messages_of
from tests.pages import blocks
from tests.tiny_models import TOKENIZERS
from training.consts import END, INTRO, REPETITION_PENALTY, TEMPERATURE
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode
from training.text.template import render
from training.text.tokenizer import load_tokenizer

ENGLISH = (ROOT / "docs" / "serving.md").read_text("utf-8")
CHINESE = (ROOT / "docs" / "zh" / "serving.md").read_text("utf-8")


def one_block(kind: str, word: str) -> str:
    [block] = (block for block in blocks(ENGLISH, kind) if word in block)
    return block


def test_both_pages_name_the_same_code() -> None:
    english, chinese = (re.findall(r"`[^`\n]+`", page) for page in (ENGLISH, CHINESE))
    assert sorted(english) == sorted(chinese)


def test_the_requirements_are_those_that_transformers_asks_for_to_serve() -> None:
    asked = (Requirement(line) for line in requires("transformers") or [])
    names = {each.name for each in asked if each.marker and each.marker.evaluate({"extra": "serving"})}
    served = (ROOT / "requirements-serve.txt").read_text("utf-8").splitlines()
    ours = {line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()}
    # What others of these packages bring along: fastapi has starlette and pydantic, transformers has rich.
    assert names - ours - {"starlette", "pydantic", "rich"} == {
        line.partition("==")[0] for line in served if "==" in line
    }


def test_the_modelfile_is_made_of_the_text_that_is_taught() -> None:
    modelfile = one_block("text", "FROM")
    system, template = re.findall(r'^(?:SYSTEM|TEMPLATE) """(.*?)"""$', modelfile, re.DOTALL | re.MULTILINE)
    assert system == INTRO
    parts = [part for part in re.split(r"\{\{.*?\}\}", template) if part]
    before_system, after_system, before_human, after_human, before_answer, after_answer, end = parts
    assert render(Conversation((Turn("H", "Y"),), "S")) == (
        f"{before_system}S{after_system}{before_human}H{after_human}{before_answer}Y{after_answer}{end}"
    )
    parameters = dict(re.findall(r"^PARAMETER (\w+) (.+)$", modelfile, re.MULTILINE))
    assert parameters == {
        "stop": END, "temperature": str(TEMPERATURE), "repeat_penalty": str(REPETITION_PENALTY)
    }  # fmt: skip


@pytest.fixture(params=["bloom", *TOKENIZERS])
def saved(request: pytest.FixtureRequest, base: str, tmp_path: Path) -> tuple[PreTrainedTokenizerFast, Path]:
    """A tokenizer with the control tokens, and the directory where it was saved."""
    if request.param != "bloom":
        base = str(tmp_path / "base")
        TOKENIZERS[request.param]().save_pretrained(base)
        (tmp_path / "base" / "config.json").write_text("{}")
    tokenizer = load_tokenizer(base)
    tokenizer.save_pretrained(tmp_path / "saved")
    return tokenizer, tmp_path / "saved"


def test_the_harness_scores_the_ids_of_training_with_the_second_tokenizer(
    saved: tuple[PreTrainedTokenizerFast, Path], tmp_path: Path
) -> None:
    tokenizer, directory = saved
    lines = one_block("python", "harness").replace("checkpoints/demo/model", str(directory))
    exec(lines.replace("checkpoints/demo-harness", str(tmp_path / "second")), {})
    second = AutoTokenizer.from_pretrained(tmp_path / "second")
    for option in ("B", "木星", "(3) is it", "。好"):
        for prompt in (Conversation((Turn("多少？\nA. 1\n答案："),)), *TYPED):
            # The harness tokenizes the prompt and an option in one piece.
            context = second.apply_chat_template(
                messages_of(prompt), tokenize=False, add_generation_prompt=True
            )
            assert context.endswith("<|YaYi|>:\n")
            scored = second(f"{context}{option}").input_ids
            *before, last = prompt.turns
            taught = Conversation((*before, Turn(last.human, option)), prompt.system)
            assert scored == encode(taught, tokenizer)["input_ids"][: len(scored)], (option, prompt)


def test_the_line_for_other_engines_takes_the_tags_out_and_changes_no_text(
    saved: tuple[PreTrainedTokenizerFast, Path],
) -> None:
    tokenizer, directory = saved

    def refuse(message: str) -> None:
        raise ValueError(message)

    def renderer() -> Callable[[Conversation], str]:
        template = (directory / "chat_template.jinja").read_text("utf-8")
        engine = jinja2.Environment()
        engine.globals["raise_exception"] = refuse
        return lambda prompt: engine.from_string(template).render(
            messages=messages_of(prompt), add_generation_prompt=True
        )

    with pytest.raises(jinja2.TemplateSyntaxError, match="unknown tag 'generation'"):
        renderer()(TYPED[0])
    program, *arguments = shlex.split(
        one_block("bash", "sed -i").replace("checkpoints/my-copy", str(directory))
    )
    assert program == "sed"
    subprocess.run([program, *arguments], check=True)
    for prompt in TYPED:
        text = tokenizer.apply_chat_template(messages_of(prompt), tokenize=False, add_generation_prompt=True)
        assert renderer()(prompt) == text
