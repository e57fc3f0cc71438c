"""The text of a conversation, written in two ways: by our renderer, and by the chat template.

    <|System|>:\\n{system}\\n\\n<|Human|>:\\n{human}\\n\\n<|YaYi|>:\\n{yayi}\\n\\n<|End|><|Human|>:\\n...

Texts are inserted unchanged. The names of the speakers are those of `consts.py`; what stands around a text is
declared here. A change of either changes training, the template and inference together.
"""

import string
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from training.consts import BREAKER, END, HUMAN, INTRO, SYSTEM, YAYI
from training.text.turns import Conversation

# A speaker's control token, COLON, OPENING, the text, CLOSING.
COLON = ":"
OPENING = "\n"
CLOSING = "\n\n"


class Piece(NamedTuple):
    """A part of the text that tokenizes on its own as it does within the whole text."""

    text: str
    is_control: bool = False
    is_supervised: bool = False


_SYSTEM, _HUMAN, _YAYI = (Piece(token, is_control=True) for token in (SYSTEM, HUMAN, YAYI))


def pieces(conversation: Conversation, header: str = COLON) -> Iterator[Piece]:
    """The pieces of a conversation's text, in order; those of a prompt end with the missing answer's header.

    header: where a prompt ends, COLON or COLON + OPENING, as `encoding.answer_header` gives it. The text is
    cut there and on both sides of control tokens, nowhere else.
    """
    yield _SYSTEM
    yield Piece(f"{COLON}{OPENING}{conversation.system or INTRO}{CLOSING}")
    for turn in conversation.turns:
        yield _HUMAN
        yield Piece(f"{COLON}{OPENING}{turn.human}{CLOSING}")
        yield _YAYI
        if turn.yayi is None:
            yield Piece(header)
        else:
            is_supervised = not turn.is_context
            yield Piece(header, is_supervised=is_supervised)
            answer = f"{COLON}{OPENING}{turn.yayi}{CLOSING}"
            yield Piece(answer.removeprefix(header), is_supervised=is_supervised)
            yield Piece(END, is_control=True, is_supervised=is_supervised)


def render(conversation: Conversation) -> str:
    """The whole text that training sees; of a prompt, the text up to and including the last `<|YaYi|>:`."""
    return "".join(piece.text for piece in pieces(conversation))


def chat_template(special_tokens: Iterable[str], header: str = COLON) -> str:
    """The Jinja template that renders OpenAI-style messages to the same text, for servers without our code.

    It breaks each of `special_tokens` inside a message with a character that the tokenizer's normalizer
    removes. A client may send back an answer as it was generated, so the newline that opens it and the blank
    line that closes it are removed from an assistant's message. A prompt ends in `header`.
    """
    return _TEMPLATE.substitute(
        special="[" + ", ".join(_quoted(token) for token in special_tokens) + "]",
        breaker=_quoted(BREAKER),
        intro=_quoted(INTRO),
        system=_quoted(SYSTEM + COLON + OPENING),
        human=_quoted(HUMAN + COLON + OPENING),
        yayi=_quoted(YAYI + COLON + OPENING),
        yayi_token=_quoted(YAYI),
        header=_quoted(header),
        opening=_quoted(OPENING),
        opening_length=len(OPENING),
        closing=_quoted(CLOSING),
        closing_length=len(CLOSING),
        answer_closing=_quoted(CLOSING + END),
    )


_TEMPLATE = string.Template("""\
{%- macro plain(text) -%}
  {%- set broken = namespace(text=text) -%}
  {%- for token in $special -%}
    {%- set broken.text = broken.text.replace(token, token[:1] + $breaker + token[1:]) -%}
  {%- endfor -%}
  {{- broken.text -}}
{%- endmacro -%}
{%- set system = $intro -%}
{%- set dialogue = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] or system -%}
  {%- set dialogue = messages[1:] -%}
{%- endif -%}
{{- $system + plain(system) + $closing -}}
{%- for message in dialogue -%}
  {%- set text = message['content'] -%}
  {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
    {{- raise_exception('after an optional system message, user and assistant alternate, the user first') -}}
  {%- elif message['role'] == 'user' -%}
    {{- $human + plain(text) + $closing -}}
  {%- else -%}
    {%- if text.startswith($opening) -%}{%- set text = text[$opening_length:] -%}{%- endif -%}
    {%- if text.endswith($closing) -%}{%- set text = text[:-$closing_length] -%}{%- endif -%}
    {{- $yayi + plain(text) + $answer_closing -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- $yayi_token + $header -}}{%- endif -%}
""")


def _quoted(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
