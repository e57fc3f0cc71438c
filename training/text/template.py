"""The text of a conversation, written in two ways: by our renderer, and by the chat template.

    <|System|>:\\n{system}\\n\\n<|Human|>:\\n{human}\\n\\n<|YaYi|>:\\n{yayi}\\n\\n<|End|><|Human|>:\\n...

After answers that call tools, each result stands behind a control token of its own (`calls.py`: the calls):

    ...<|YaYi|>:\\n{calls}\\n\\n<|End|><|Tool|>:\\n{result}\\n\\n<|YaYi|>:\\n{yayi}\\n\\n<|End|>...

Texts are inserted unchanged. The names of the speakers are those of `consts.py`; what stands around a text is
declared here. A change of either changes training, the template and inference together.
"""

import re
import string
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from training.consts import BREAKER, END, HUMAN, INTRO, SYSTEM, TOOL, YAYI
from training.text.calls import (
    BETWEEN_CALLS,
    CALL_CLOSING,
    CALL_OPENING,
    DECLARATIONS_CLOSING,
    DECLARATIONS_OPENING,
    answer_with_calls,
    declarations_text,
)
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


def chat_template(
    special_tokens: Iterable[str], header: str = COLON, default_system: str = INTRO, *, tools: bool = False
) -> str:
    """The Jinja template that renders OpenAI-style messages to the same text, for servers without our code.

    The content of a message is a text, or a list of parts {"type": "text", "text": ...}, which are joined.
    Each of `special_tokens` inside a message is broken with a character that the tokenizer's normalizer
    removes. A client may send back an answer as it was generated, so the newline that opens it and the blank
    line that closes it are removed from an assistant's message. The tokens between `{% generation %}` and
    `{% endgeneration %}` are the supervised ones. A prompt ends in `header`.

    tools: whether the template is for a model that was taught tools. It then renders `tools=`, the
    `tool_calls` of an assistant, and messages of role tool: in the order of the calls, found by
    `tool_call_id` where all have one. The arguments of a call are an object; a text is inserted as it is.
    Without, the template refuses all of these.
    """
    dialogue = _TOOL_DIALOGUE if tools else _PLAIN_DIALOGUE
    return string.Template(
        (_TOOL_MACROS if tools else "") + _TEXT_MACROS + _SYSTEM_TEXT + dialogue
    ).substitute(
        special="[" + ", ".join(_quoted(token) for token in special_tokens) + "]",
        breaker=_quoted(BREAKER),
        default_system=_quoted(default_system),
        system=_quoted(SYSTEM + COLON + OPENING),
        human=_quoted(HUMAN + COLON + OPENING),
        yayi=_quoted(YAYI),
        tool=_quoted(TOOL + COLON + OPENING),
        header=_quoted(header),
        answer_opening=_quoted(COLON + OPENING),
        opening=_quoted(OPENING),
        opening_length=len(OPENING),
        closing=_quoted(CLOSING),
        closing_length=len(CLOSING),
        answer_closing=_quoted(CLOSING + END),
        declarations_opening=_quoted(CLOSING + DECLARATIONS_OPENING),
        declarations_closing=_quoted(DECLARATIONS_CLOSING),
        call_opening=_quoted(CALL_OPENING),
        call_closing=_quoted(CALL_CLOSING),
        between_calls=_quoted(BETWEEN_CALLS),
    )


_TEXT_MACROS = """\
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
"""

_SYSTEM_TEXT = """\
{%- set system = $default_system -%}
{%- set dialogue = messages -%}
{%- if messages and messages[0]['role'] in ['system', 'developer'] -%}
  {%- if messages[0]['content'] -%}{%- set system = text_of(messages[0]['content']) or system -%}{%- endif -%}
  {%- set dialogue = messages[1:] -%}
{%- endif -%}
"""

# The two tags of a generation block have no dashes: where a tool refuses them, they can be removed from the
# template, which then renders the same text.
_PLAIN_DIALOGUE = """\
{%- if tools or dialogue | selectattr('tool_calls') | list -%}
  {{- raise_exception('this model was taught no tools') -}}
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
"""

_TOOL_MACROS = """\
{%- macro json(value) -%}
  {{- (value | tojson).replace('</', '<\\\\/') -}}
{%- endmacro -%}
{%- macro declarations(tools) -%}
  {{- $declarations_opening -}}
  {%- for tool in tools -%}
    {%- set function = tool['function'] if tool['function'] is mapping else tool -%}
    {{- '{' -}}
    {%- for name, value in function.items() if name != 'return' -%}
      {{- json(name) + ': ' + json(value) + ('' if loop.last else ', ') -}}
    {%- endfor -%}
    {{- '}' + ('' if loop.last else '\\n') -}}
  {%- endfor -%}
  {{- $declarations_closing -}}
{%- endmacro -%}
{%- macro with_calls(text, calls) -%}
  {{- text -}}
  {%- for call in calls -%}
    {%- set function = call['function'] if call['function'] is mapping else call -%}
    {%- set arguments = function['arguments'] or {} -%}
    {%- set arguments = arguments.replace('</', '<\\\\/') if arguments is string else json(arguments) -%}
    {{- $call_opening + '{"name": ' + json(function['name']) + ', "arguments": ' + arguments + '}' -}}
    {{- $call_closing + ('' if loop.last else $between_calls) -}}
  {%- endfor -%}
{%- endmacro -%}
{%- macro results_of(calls, results) -%}
  {%- if results | selectattr('role', 'equalto', 'tool') | list | length != calls | length -%}
    {{- raise_exception('each call of a tool is followed by its result') -}}
  {%- endif -%}
  {%- set named = (calls | selectattr('id') | list) + (results | selectattr('tool_call_id') | list) -%}
  {%- for call in calls -%}
    {%- set result = [results[loop.index0]] -%}
    {%- if named | length == 2 * calls | length -%}
      {%- set result = results | selectattr('tool_call_id', 'equalto', call['id']) | list -%}
      {%- if result | length != 1 -%}
        {{- raise_exception('a call of a tool and its result have one id') -}}
      {%- endif -%}
    {%- endif -%}
    {%- set text = text_of(result[0]['content']) if result[0]['content'] else '' -%}
    {{- $tool + plain(text) + $closing -}}
  {%- endfor -%}
{%- endmacro -%}
"""

_TOOL_DIALOGUE = """\
{%- if tools -%}{%- set system = system + declarations(tools) -%}{%- endif -%}
{{- $system + plain(system) + $closing -}}
{%- set next = namespace(role='user', results=0) -%}
{%- for message in dialogue -%}
  {%- if message['role'] != next.role -%}
    {{- raise_exception('after an optional system message, user and assistant alternate, the user first, and '
      'each call of a tool is followed by its result') -}}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- $human + plain(text_of(message['content'])) + $closing -}}
    {%- set next.role = 'assistant' -%}
  {%- elif message['role'] == 'tool' -%}
    {%- set next.results = next.results - 1 -%}
    {%- set next.role = 'tool' if next.results else 'assistant' -%}
  {%- else -%}
    {%- set calls = message['tool_calls'] or [] -%}
    {%- set text = '' if calls and not message['content'] else text_of(message['content']) -%}
    {%- if text.startswith($opening) -%}{%- set text = text[$opening_length:] -%}{%- endif -%}
    {%- if calls -%}
      {%- set text = with_calls(text, calls) -%}
    {%- elif text.endswith($closing) -%}
      {%- set text = text[:-$closing_length] -%}
    {%- endif -%}
    {{- $yayi -}}
    {% generation %}{{- $answer_opening + plain(text) + $answer_closing -}}{% endgeneration %}
    {%- if calls and not loop.last -%}
      {{- results_of(calls, dialogue[loop.index:loop.index + calls | length]) -}}
    {%- endif -%}
    {%- set next.results = calls | length -%}
    {%- set next.role = 'tool' if calls else 'user' -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {%- if next.role == 'tool' -%}
    {{- raise_exception('each call of a tool is followed by its result') -}}
  {%- endif -%}
  {{- $yayi + $header -}}
{%- endif -%}
"""


# By this, which is saved with a tokenizer that was taught tools, transformers finds the calls in an answer.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": YAYI + COLON,
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*" + re.escape(CALL_OPENING.strip()),
            "close": CALL_CLOSING.strip(),
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*" + re.escape(END), "content": "text"},
    },
}


def _quoted(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
