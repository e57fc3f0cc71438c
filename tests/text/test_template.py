"""The speakers' names come from `consts.py`; the template's text is a promise to models saved before."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.text.template import chat_template

# Saved models are refused by `inference` unless their template is this one, to the letter.
TEMPLATE = """\
{%- macro plain(text) -%}
  {%- set broken = namespace(text=text) -%}
  {%- for token in ['<|End|>', 'it\\'s'] -%}
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


def test_the_template_of_saved_models_is_the_same_to_the_letter() -> None:
    assert chat_template(["<|End|>", "it's"]) == TEMPLATE
    assert chat_template([], ":\n") == TEMPLATE.replace(r"['<|End|>', 'it\'s']", "[]").replace(
        "'<|YaYi|>' + ':'", r"'<|YaYi|>' + ':\n'"
    )


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
