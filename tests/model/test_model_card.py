"""The card of a saved model: its header, which the hub reads, and what it says of the model."""

import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCardData

from tests.model.card_checks import checked_card, listed_names
from training.model.model_card import (
    PICTURE_LINE,
    Taught,
    fenced,
    link_to_model,
    model_card,
    taught_before,
    write_model_card,
)
from training.text.conversation import Conversation, Turn
from training.text.template import render
from training.text.tokenizer import load_base_tokenizer

SECTION = "## How it was taught\n\n| loss | 1.5 |\n\n### Data\n\nrows"


def header_beside(tmp_path: Path, tokenizer, header: str) -> dict:
    """The header of a card whose base is a directory that has a card with `header`."""
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "README.md").write_text(header, encoding="utf-8")
    base = str(tmp_path / "base")
    return model_card(tokenizer, base, "", Taught(), "mine", for_adapter=False).data.to_dict()


PLAIN = {"library_name": "transformers", "pipeline_tag": "text-generation"}


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("---\nlicense: apache-2.0\nlanguage: [zh]\n---\n# base\n", {"license": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\nbase_model: Qwen/Qwen2.5-7B\n---\n",
         {"license": "other", "license_name": "qwen", "base_model": ["Qwen/Qwen2.5-7B"]}),
        ("---\nlicense: other\nlicense_name: qwen\nlicense_link: https://example.com/L\n---\n",
         {"license": "other", "license_name": "qwen", "license_link": "https://example.com/L"}),
        ("---\nbase_model: /home/somebody/bloomz\nlicense: {not: text}\n---\n", {}),
        ("# no header\n", {}),
        ("---\nlicense: [mit\n---\n", {}),
        ("---\n- a list\n---\n", {}),
    ],
)  # fmt: skip
def test_of_a_base_in_a_directory_its_own_card_says_licence_and_base(
    tmp_path: Path, tokenizer, header: str, known: dict
) -> None:
    assert header_beside(tmp_path, tokenizer, header) == PLAIN | known


def test_a_base_that_is_a_relative_path_is_no_name_on_the_hub(tmp_path: Path, tokenizer, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "model_info", pytest.fail)
    Path("checkpoints", "bloomz").mkdir(parents=True)
    card = model_card(tokenizer, "checkpoints/bloomz", "", Taught(), "mine", for_adapter=False)
    assert card.data.to_dict() == PLAIN
    assert "This is `bloomz` (a directory)" in card.text
    assert "names no licence" in card.text


def test_of_a_base_on_the_hub_the_hub_is_asked_once(tokenizer, monkeypatch) -> None:
    asked = []

    def model_info(name: str, timeout: float) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(card_data=ModelCardData(license="apache-2.0"))

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    card = model_card(tokenizer, "some/base", ", trained", Taught(SECTION), "mine", for_adapter=True)
    assert card.data.to_dict() == {
        "base_model": ["some/base"], "license": "apache-2.0", "library_name": "peft",
        "pipeline_tag": "text-generation", "tags": ["sft", "lora"],
    }  # fmt: skip
    assert asked == ["some/base"]
    assert "an adapter for [some/base](https://huggingface.co/some/base), trained." in card.text
    assert "- The base model: apache-2.0, as its own card says." in card.text


def test_a_hub_that_does_not_answer_costs_the_licence_only(tokenizer, monkeypatch) -> None:
    class OfTheHttpLibrary(Exception):
        pass

    def model_info(name: str, timeout: float) -> None:
        raise OfTheHttpLibrary

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    card = model_card(tokenizer, "some/base", "", Taught(), "mine", for_adapter=False)
    assert card.data.to_dict() == {"base_model": ["some/base"], **PLAIN}


def test_the_prompt_of_the_card_is_ours_and_a_base_has_none(base: str, tokenizer) -> None:
    card = model_card(tokenizer, base, "", Taught(), "mine", for_adapter=False)
    (shown,) = re.findall(r"^```text\n(.*?)\n```$", card.text, re.DOTALL | re.MULTILINE)
    assert "How it was taught is not known" in card.text
    assert shown == render(Conversation((Turn("你是谁"),)))
    untaught = model_card(load_base_tokenizer(base), base, "", Taught(), "my base", for_adapter=False).text
    assert "python -m training.trainer --input-model 'my base'" in untaught
    assert "<|YaYi|>" not in untaught


def test_what_is_made_of_a_taught_model_says_how_that_was_taught(
    base: str, tokenizer, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (tmp_path / "drawn.png").write_bytes(b"PNG")
    taught = Taught(SECTION, ["some/rows"], tmp_path / "drawn.png")
    write_model_card(one, tokenizer, base, "", taught)
    assert taught_before(str(one)) == Taught(SECTION, ["some/rows"], one / "loss.png")
    write_model_card(other, tokenizer, str(one), " with more tokens", taught_before(str(one)))
    card = checked_card(other)
    assert f"\n{SECTION}\n\n{PICTURE_LINE}\n\n## What it reads\n" in card.text
    assert card.data.datasets == ["some/rows"]
    assert {path.name for path in other.iterdir()} == {"README.md", "LICENSE_MODEL", "loss.png"}
    assert {path.stat().st_mode & 0o777 for path in other.iterdir()} == {0o644}

    # What others' cards say is not taken over, and a picture that is gone is not shown.
    (one / "loss.png").unlink()
    assert taught_before(str(one)) == Taught(SECTION, ["some/rows"], None)
    (one / "README.md").write_text("---\ndatasets: [some/rows]\n---\n# bloomz\n\n## Training\n\nlong ago\n")
    assert taught_before(str(one)) == Taught()
    assert taught_before(base) == Taught()


def test_a_fence_is_longer_than_those_in_the_text() -> None:
    assert fenced("a\n", "text") == "```text\na\n```"
    assert fenced("a\n````\nb") == "`````\na\n````\nb\n`````"


def test_both_languages_list_the_same_files_of_a_saved_directory() -> None:
    tables = listed_names("serving.md")
    assert tables == listed_names("zh/serving.md")
    assert {"config.json", "README.md"} <= set(tables[0])
    assert {"run.json", ".lock"} <= set(tables[1])


def test_a_base_from_modelscope_is_named_by_its_page() -> None:
    link = "[Qwen/Qwen2.5-7B](https://modelscope.cn/models/Qwen/Qwen2.5-7B)"
    assert link_to_model("modelscope:Qwen/Qwen2.5-7B") == link
