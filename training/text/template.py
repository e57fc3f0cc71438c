"""The text of a conversation, written in two ways: by our renderer, and by the chat template.

    <|System|>:\\n{system}\\n\\n<|Human|>:\\n{human}\\n\\n<|YaYi|>:\\n{yayi}\\n\\n<|End|><|Human|>:\\n...

Texts are inserted unchanged. The names of the speakers are those of `consts.py`; what stands around a text is
declared here. A change of either changes training, the template and inference together.
"""

import string
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from training.consts import BREAKER, END, HUMAN, INTRO, SYSTEM, TOOL, YAYI
from training.text.calls import answer_with_calls, declarations_text
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
    ends_turn: bool = False


_SYSTEM, _HUMAN, _YAYI, _TOOL = (Piece(token, is_control=True) for token in (SYSTEM, HUMAN, YAYI, TOOL))


def pieces(conversation: Conversation, header: str = COLON, default_system: str = INTRO) -> Iterator[Piece]:
    """The pieces of a conversation's text, in order; those of a prompt end with the missing answer's header.

    header: where a prompt ends, COLON or COLON + OPENING, as `encoding.answer_header` gives it. The text is
    cut there and on both sides of control tokens, nowhere else. default_system: the system text of a
    conversation that has none, as `saved_template.default_system` reads it.
    """
    yield _SYSTEM
    system = conversation.system or default_system
    if conversation.tools:
        system += CLOSING + declarations_text(conversation.tools)
    yield Piece(f"{COLON}{OPENING}{system}{CLOSING}")
    for turn in conversation.turns:
        yield _HUMAN
        yield Piece(f"{COLON}{OPENING}{turn.human}{CLOSING}")
        for use in turn.tool_uses:
            answer = answer_with_calls(use.text, use.calls)
            yield from _answer_pieces(answer, header, not use.is_context, ends_turn=not use.results)
            for result in use.results:
                yield _TOOL
                yield Piece(f"{COLON}{OPENING}{result}{CLOSING}")
        if turn.yayi is not None:
            yield from _answer_pieces(turn.yayi, header, not turn.is_context, ends_turn=True)
        elif not turn.ends_with_calls:
            yield _YAYI
            yield Piece(header)


def _answer_pieces(answer: str, header: str, is_supervised: bool, ends_turn: bool) -> Iterator[Piece]:
    yield _YAYI
    yield Piece(header, is_supervised=is_supervised)
    text = f"{COLON}{OPENING}{answer}{CLOSING}"
    yield Piece(text.removeprefix(header), is_supervised=is_supervised)
    yield Piece(END, is_control=True, is_supervised=is_supervised, ends_turn=ends_turn)


def render(conversation: Conversation, default_system: str = INTRO) -> str:
    """The whole text that training sees; of a prompt, the text up to and including the last `<|YaYi|>:`."""
    return "".join(piece.text for piece in pieces(conversation, default_system=default_system))


def chat_template(special_tokens: Iterable[str], header: str = COLON, default_system: str = INTRO) -> str:
    """The Jinja template that renders OpenAI-style messages to the same text, for servers without our code.

    The content of a message is a text, or a list of parts {"type": "text", "text": ...}, which are joined.
    Each of `special_tokens` inside a message is broken with a character that the tokenizer's normalizer
    removes. A client may send back an answer as it was generated, so the newline that opens it and the blank
    line that closes it are removed from an assistant's message. The tokens between `{% generation %}` and
    `{% endgeneration %}` are the supervised ones. A prompt ends in `header`.
    """
    return _TEMPLATE.substitute(
        special="[" + ", ".join(_quoted(token) for token in special_tokens) + "]",
        breaker=_quoted(BREAKER),
        default_system=_quoted(default_system),
        system=_quoted(SYSTEM + COLON + OPENING),
        human=_quoted(HUMAN + COLON + OPENING),
        yayi=_quoted(YAYI),
        header=_quoted(header),
        answer_opening=_quoted(COLON + OPENING),
        opening=_quoted(OPENING),
        opening_length=len(OPENING),
        closing=_quoted(CLOSING),
        closing_length=len(CLOSING),
        answer_closing=_quoted(CLOSING + END),
    )


# The two tags of a generation block have no dashes: where a tool refuses them, they can be removed from the
# template, which then renders the same text.
_TEMPLATE = string.Template("""\
{%- macro text_of(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content -%}
    {%- for part in content -%}
      {%- if part['type'] != 'text' or part['text'] is not string -%}
        {{- raise_exception('a message has a part that is not of type text') -}}
      {%- endif -%}
      {{- part['text'] -}}
    {%- endfor -%}
  {%- else -%}
    {{- raise_exception('a message has no content') -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro plain(text) -%}
  {%- set broken = namespace(text=text) -%}
  {%- for token in $special -%}
    {%- set broken.text = broken.text.replace(token, token[:1] + $breaker + token[1:]) -%}
  {%- endfor -%}
  {{- broken.text -}}
{%- endmacro -%}
{%- set system = $default_system -%}
{%- set dialogue = messages -%}
{%- if messages and messages[0]['role'] in ['system', 'developer'] -%}
  {%- if messages[0]['content'] -%}{%- set system = text_of(messages[0]['content']) or system -%}{%- endif -%}
  {%- set dialogue = messages[1:] -%}
{%- endif -%}
{{- $system + plain(system) + $closing -}}
{%- for message in dialogue -%}
  {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
    {{- raise_exception('after an optional system message, user and assistant alternate, the user first') -}}
  {%- endif -%}
  {%- set text = text_of(message['content']) -%}
  {%- if message['role'] == 'user' -%}
    {{- $human + plain(text) + $closing -}}
  {%- else -%}
    {%- if text.startswith($opening) -%}{%- set text = text[$opening_length:] -%}{%- endif -%}
    {%- if text.endswith($closing) -%}{%- set text = text[:-$closing_length] -%}{%- endif -%}
    {{- $yayi -}}
    {% generation %}{{- $answer_opening + plain(text) + $answer_closing -}}{% endgeneration %}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- $yayi + $header -}}{%- endif -%}
""")


def _quoted(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
