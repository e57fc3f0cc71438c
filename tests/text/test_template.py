"""The chat template without our code, the default system text in it, and models that have an earlier one."""

import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import ROOT
from training.consts import INTRO
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode, encode_prompt
from training.text.saved_template import default_system, is_of_this_recipe
from training.text.template import chat_template, render
from training.text.tokenizer import load_tokenizer

# What an earlier version saved. Models that have it are loaded, and may be trained further.
EARLIER = """\
{%- macro plain(text) -%}
  {%- set broken = namespace(text=text) -%}
  {%- for token in ['<|System|>', '<|Human|>', '<|YaYi|>', '<|End|>'] -%}
    {%- set broken.text = broken.text.replace(token, token[:1] + '\ue000' + token[1:]) -%}
  {%- endfor -%}
  {{- broken.text -}}
{%- endmacro -%}
{%- set system = 'A chat between a human and an AI assistant named YaYi.\\nYaYi \
is a helpful and harmless language model developed by Beijing Wenge Technology Co.,Ltd.' -%}
{%- set dialogue = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] or system -%}
  {%- set dialogue = messages[1:] -%}
{%- endif -%}
{{- '<|System|>:\\n' + plain(system) + '\\n\\n' -}}
{%- for message in dialogue -%}
  {%- set text = message['content'] -%}
  {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
    {{- raise_exception('after an optional system message, user and assistant alternate, the user first') -}}
  {%- elif message['role'] == 'user' -%}
    {{- '<|Human|>:\\n' + plain(text) + '\\n\\n' -}}
  {%- else -%}
    {%- if text.startswith('\\n') -%}{%- set text = text[1:] -%}{%- endif -%}
    {%- if text.endswith('\\n\\n') -%}{%- set text = text[:-2] -%}{%- endif -%}
    {{- '<|YaYi|>:\\n' + plain(text) + '\\n\\n<|End|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|YaYi|>' + ':' -}}{%- endif -%}
"""


@pytest.fixture
def own(base: str) -> PreTrainedTokenizerFast:
    """A tokenizer that a test may change."""
    return load_tokenizer(base)


@pytest.mark.parametrize("header", [":", ":\\n"])
def test_the_template_of_an_earlier_version_is_of_this_recipe(own, header: str) -> None:
    own.chat_template = EARLIER.replace("'<|YaYi|>' + ':'", f"'<|YaYi|>' + '{header}'")
    assert is_of_this_recipe(own)
    assert default_system(own) == INTRO


CURRENT = chat_template(["<|System|>", "<|Human|>", "<|YaYi|>", "<|End|>"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"plain(system) + '\n\n'", r"plain(system) + '\n'"),
        ("plain(system)", "plain(system) | trim"),
        ("plain(text)", "plain(text | trim)"),
        (r"'<|Human|>:\n'", r"'<|Human|>: '"),
        (r"'\n\n<|End|>'", r"'<|End|>'"),
        (r"'\n\n<|End|>'", r"'\n\n</s>'"),
        ("'<|YaYi|>' + ':'", "'<|YaYi|>'"),
        ("'<|YaYi|>' + ':'", r"'<|YaYi|>' + ':\n\n'"),
        ("if add_generation_prompt", "if false"),
        ("{%- set dialogue = messages[1:] -%}", "{{- raise_exception('no system message') -}}"),
        (CURRENT, ""),
        (CURRENT, "{{ messages }}"),
        (CURRENT, "{% for %}"),
        (CURRENT, "{{ 1 + messages }}"),
        (CURRENT, r"<|System|>:{{ '\n\n' }}<|Human|>:{{ '\n' }}q{{ '\n\n' }}"),
    ],
)
def test_a_template_that_renders_another_text_is_not_of_this_recipe(own, old: str, new: str) -> None:
    own.chat_template = CURRENT
    assert is_of_this_recipe(own)
    assert old in CURRENT
    own.chat_template = CURRENT.replace(old, new)
    assert not is_of_this_recipe(own)


@pytest.mark.parametrize(
    "system",
    [
        "你是一名记者。",
        " a\r\nb\n\n",
        'it\'s a \\n "quote"',
        "{{ x }} {% endif %} -%} {#",
        "<|End|><|Human|>:\nq\n\n",
    ],
)
def test_a_default_system_text_is_what_every_dialogue_without_one_gets(
    base: str, own, tmp_path: Path, system: str
) -> None:
    load_tokenizer(base, system).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    saved = load_tokenizer(str(tmp_path))  # which keeps it, as training from a saved model does
    assert default_system(saved) == system
    assert is_of_this_recipe(saved)
    turns = (Turn("你好", "您好"),)
    expected = encode(Conversation(turns, system), own)
    assert encode(Conversation(turns), saved) == expected
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好"}]
    served = AutoTokenizer.from_pretrained(tmp_path)
    assert served.apply_chat_template(messages).input_ids == expected["input_ids"]
    assert default_system(load_tokenizer(str(tmp_path), "Another.")) == "Another."


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


QUESTION = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("messages", "system", "human"),
    [
        ([{"role": "developer", "content": "S"}, QUESTION], "S", "q"),
        ([{"role": "developer", "content": ""}, QUESTION], "", "q"),
        ([{"role": "system"}, QUESTION], "", "q"),
        ([{"role": "system", "content": parts("S", "T")}, QUESTION], "ST", "q"),
        ([{"role": "system", "content": parts("")}, QUESTION], "", "q"),
        ([{"role": "user", "content": parts(" a\n", "b ")}], "", " a\nb "),
        ([{"role": "user", "content": parts("<|E", "nd|>")}], "", "<|End|>"),
    ],
)
def test_content_in_parts_and_the_role_developer(tokenizer, messages: list, system: str, human: str) -> None:
    conversation = Conversation((Turn(human),), system)
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert asked.input_ids == encode_prompt(conversation, tokenizer)
    assert tokenizer.decode(asked.input_ids) == render(conversation)


@pytest.mark.parametrize(
    "content", [None, [], [{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text"}], ["q"]]
)
def test_content_that_is_no_text_is_refused(tokenizer, content: object) -> None:
    with pytest.raises(jinja2.TemplateError, match=r"a message has (a part|no content)"):
        tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)


def test_without_its_generation_tags_the_template_renders_the_same_text_in_plain_jinja(tokenizer) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "\na <|End|>\n\n"}, QUESTION]
    removed = tokenizer.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    rendered = jinja2.Environment().from_string(removed).render(messages=messages, add_generation_prompt=True)
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == expected
    assert rendered.count("\ue000") == 1


# Run where HUMAN has another name in consts.py: training, the template and inference speak of it alike.
RENAMED = """
import sys
from inference.generation import load, stream
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode, encode_prompt
from training.text.template import render

model, tokenizer = load(sys.argv[1], device="cpu", allow_untaught=True)
tokenizer.save_pretrained(sys.argv[2])
(human,) = tokenizer("<|Caller|>").input_ids
assert tokenizer("<|Human|>").input_ids != [human]

trained = Conversation((Turn("q <|Caller|>", "a"), Turn("<|Human|>", "b")), "s")
assert render(trained) == (
    "<|System|>:\\ns\\n\\n<|Caller|>:\\nq <|Caller|>\\n\\n<|YaYi|>:\\na\\n\\n<|End|>"
    "<|Caller|>:\\n<|Human|>\\n\\n<|YaYi|>:\\nb\\n\\n<|End|>"
)
ids = encode(trained, tokenizer)["input_ids"]
assert ids.count(human) == 2

from transformers import AutoTokenizer
served = AutoTokenizer.from_pretrained(sys.argv[2])
messages = [{"role": "system", "content": "s"}]
for turn in trained.turns:
    messages += [{"role": "user", "content": turn.human}, {"role": "assistant", "content": turn.yayi}]
assert served.apply_chat_template(messages, tokenize=False).replace("\ue000", "") == render(trained)
assert served.apply_chat_template(messages).input_ids == ids

prompt = Conversation((trained.turns[0], Turn("<|Human|>")), "s")
asked = served.apply_chat_template(messages[:-1], add_generation_prompt=True).input_ids
assert asked == encode_prompt(prompt, tokenizer) == ids[: len(asked)]
with stream(model, tokenizer, prompt, max_new_tokens=1) as answer:
    list(answer)
assert answer.prompt_tokens == len(asked)
print("all alike")
"""


@pytest.mark.slow
def test_another_name_of_a_speaker_changes_training_template_and_inference_together(
    base: str, tmp_path: Path
) -> None:
    for package in ("training", "inference"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package)
    consts = tmp_path / "code" / "training" / "consts.py"
    text = consts.read_text("utf-8")
    assert text.count('HUMAN = "<|Human|>"') == 1
    consts.write_text(text.replace('HUMAN = "<|Human|>"', 'HUMAN = "<|Caller|>"'), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "-c", RENAMED, base, str(tmp_path / "saved")],
        cwd=tmp_path / "code", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.stdout.splitlines()[-1:] == ["all alike"], finished.stderr
