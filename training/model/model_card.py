"""README.md of a saved directory, its model card: what the model is, how it was taught, how it is used.

The page is `model_card.jinja`, a template that huggingface_hub's `ModelCard` fills in. Its header is what the
hub reads; what is not known is left out there.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedTokenizerFast
from yaml import YAMLError

from training.common.files import written_aside
from training.common.hub import ask_hub, is_adapter, model_name
from training.common.modelscope import MODELSCOPE, local_path
from training.consts import CONTROL_TOKENS

CARD = "README.md"
PICTURE = "loss.png"
LICENSE = "LICENSE_MODEL"
ROOT = Path(__file__).parents[2]

# Where the card is written until it and what it shows are there, within the saved directory.
INCOMPLETE_CARD = ".incomplete-card"

# How the section begins that says how the model was taught, and how the picture stands in it.
TAUGHT_TITLE = "## How it was taught"
PICTURE_LINE = f"![losses]({PICTURE})"

QUESTION = "你是谁"

# Seconds that the hub has to tell the header of a base model's card.
HUB_PATIENCE_S = 10


class Taught(NamedTuple):
    """How a model was taught, as its card says it.

    section: Markdown that begins with TAUGHT_TITLE, or "" where nobody has said it. datasets: names on the
    hub. picture: the file with the curves of the losses, where there is one.
    """

    section: str = ""
    datasets: Sequence[str] = ()
    picture: Path | None = None


def write_model_card(
    directory: Path, tokenizer: PreTrainedTokenizerFast, base: str, made: str, taught: Taught
) -> None:
    """Write README.md into the directory of a saved model or adapter, and beside it what it shows:
    LICENSE_MODEL, and the picture of the losses where there is one. An earlier card is replaced.

    base: the model that it was made of, a directory or a name on the hub. made: what was done with it, to
    follow its name.
    """
    name, for_adapter = model_name(str(directory)), is_adapter(str(directory))
    card = model_card(tokenizer, base, made, taught, name, for_adapter=for_adapter)
    with written_aside(directory, INCOMPLETE_CARD, last=CARD) as staging:
        staging.mkdir()
        (staging / CARD).write_text(f"{str(card).rstrip()}\n", encoding="utf-8")
        shutil.copyfile(ROOT / LICENSE, staging / LICENSE)
        if taught.picture:
            shutil.copyfile(taught.picture, staging / PICTURE)


def model_card(
    tokenizer: PreTrainedTokenizerFast, base: str, made: str, taught: Taught, name: str, *, for_adapter: bool
) -> ModelCard:
    """The card that `write_model_card` writes."""
    of_base = header_of(base)
    bases = [base] if is_hub_name(base) else list(filter(_can_be_hub_name, _listed(of_base, "base_model")))
    link = of_base.get("license_link")
    header = ModelCardData(
        base_model=bases or None,
        license=of_base.get("license"),
        license_name=of_base.get("license_name"),
        license_link=link if str(link).startswith("https://") else None,  # not a file of the base's directory
        datasets=list(taught.datasets) or None,
        library_name="peft" if for_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=(["sft"] * bool(taught.section) + ["lora"] * for_adapter) or None,
    )
    return ModelCard.from_template(
        header,
        template_path=str(Path(__file__).with_suffix(".jinja")),
        name=name,
        path=shlex.quote(name),
        path_merged=shlex.quote(f"{name}-merged"),
        path_converted=shlex.quote(f"{name}-ct2"),
        path_in_python=json.dumps(name, ensure_ascii=False),
        base=link_to_model(base),
        made=made,
        taught=taught.section,
        picture_line=PICTURE_LINE if taught.picture else "",
        prompt=_prompt(tokenizer),
        question=QUESTION,
        is_adapter=for_adapter,
        base_licenses=[header.license_name] if header.license_name else _listed(of_base, "license"),
    )


def taught_before(path: str) -> Taught:
    """How the model at `path`, a directory or a name on the hub, was taught, where its card says so."""
    card = _card_of(path)
    text = card.read_text(encoding="utf-8", errors="replace") if card else ""
    found = re.search(rf"^{TAUGHT_TITLE}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if not card or not found:
        return Taught()
    picture = card.with_name(PICTURE)
    return Taught(
        found[0].replace(PICTURE_LINE, "").strip(),
        _listed(header_of(path), "datasets"),
        picture if PICTURE_LINE in found[0] and picture.is_file() else None,
    )


def header_of(path: str) -> dict[str, Any]:
    """What of the header of a model's own card is a text or a list of texts.

    Nothing where there is no card, where it cannot be read, or where the hub cannot be asked for it.
    """
    card = _card_of(path)
    try:
        if card:
            found = metadata_load(card) or {}
        elif is_hub_name(path):
            told = ask_hub(huggingface_hub.model_info, path, timeout=HUB_PATIENCE_S).card_data
            found = told.to_dict() if told else {}
        else:
            return {}
    except (OSError, ValueError, YAMLError):
        return {}
    return {key: found[key] for key in found if all(isinstance(text, str) for text in _listed(found, key))}


def _listed(header: Mapping[str, Any], key: str) -> list[Any]:
    """A header's value as a list, where it may be one or stand alone."""
    value = header.get(key, [])
    return value if isinstance(value, list) else [value]


def _card_of(path: str) -> Path | None:
    """The file of a model's card, in its directory or among what was downloaded from the hub."""
    card = Path(local_path(path), CARD)
    if is_hub_name(path):
        found = huggingface_hub.try_to_load_from_cache(path, CARD)
        card = Path(found) if isinstance(found, str) else card
    return card if card.is_file() else None


def is_hub_name(path: str) -> bool:
    """Whether a model that was named so came from the hub, and not from a directory."""
    return not os.path.exists(path) and _can_be_hub_name(path)


def _can_be_hub_name(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def link_to_model(path: str) -> str:
    """A model as Markdown: a link to its page on the hub, or the name of its directory."""
    if is_hub_name(path):
        return f"[{path}](https://huggingface.co/{path})"
    if path.startswith(MODELSCOPE):
        name = path.removeprefix(MODELSCOPE)
        return f"[{name}](https://modelscope.cn/models/{name})"
    return f"`{model_name(path)}` (a directory)"


def fenced(text: str, language: str = "") -> str:
    """A block of Markdown that shows a text as it is, whatever it holds."""
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.removesuffix(chr(10))}\n{fence}"


def _prompt(tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of a question, as a block of Markdown; "" where the tokenizer has not been taught to chat."""
    if not tokenizer.chat_template or not tokenizer.get_vocab().keys() >= set(CONTROL_TOKENS):
        return ""
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return fenced(str(prompt), "text")
