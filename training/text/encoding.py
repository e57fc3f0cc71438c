"""The text of a conversation, once: as pieces, as token ids with labels, and as the chat template.

    <|System|>:\\n{system}\\n\\n<|Human|>:\\n{human}\\n\\n<|YaYi|>:\\n{yayi}\\n\\n<|End|><|Human|>:\\n...

Texts go in as they are. Only the control tokens become control ids: whatever a row or a user wrote is
tokenized with special tokens switched off, so that a `<|End|>` in somebody's text stays text.
"""

import functools
import itertools
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from training.consts import BREAKER, CONTROL_TOKENS, END, HUMAN, INTRO, NOT_LEARNT, SYSTEM, YAYI
from training.text.conversation import Conversation

# How a terminal is told to change colours.
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


class Piece(NamedTuple):
    """A stretch of the text that tokenizes on its own as it does within the whole."""

    text: str
    is_control: bool = False
    is_learnt: bool = False


class Encoded(NamedTuple):
    """Token ids, and of each answer where its learnt tokens start and where they end."""

    input_ids: list[int]
    answers: list[tuple[int, int]]


def pieces(conversation: Conversation, header: str = ":") -> Iterator[Piece]:
    """The text of a conversation in order; of a prompt, up to and including the header of the missing answer.

    The cuts are beside control tokens and after an answer's `header`, where every prompt ends: see
    `answer_header`.
    """
    answer_opens = Piece(header, is_learnt=True)
    yield _SYSTEM
    yield Piece(f":\n{conversation.system or INTRO}\n\n")
    for turn in conversation.turns:
        yield _HUMAN
        yield Piece(f":\n{turn.human}\n\n")
        yield _YAYI
        yield answer_opens
        if turn.yayi is not None:
            yield Piece(f":\n{turn.yayi}\n\n".removeprefix(header), is_learnt=True)
            yield _END


_SYSTEM, _HUMAN, _YAYI = (Piece(token, is_control=True) for token in (SYSTEM, HUMAN, YAYI))
_END = Piece(END, is_control=True, is_learnt=True)


def render(conversation: Conversation) -> str:
    """The whole text that training sees; of a prompt, the text up to and including the last `<|YaYi|>:`."""
    return "".join(piece.text for piece in pieces(conversation))


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """Token ids of a conversation, and which of them are learnt.

    text     <|Human|> :\\n 你好 \\n\\n <|YaYi|> :\\n 您好 \\n\\n <|End|>
    ids          h     1   2    3     y     1   4    3     e
    labels       .     .   .    .     .     1   4    3     e        . = -100

    Returns input_ids and labels, two lists of one length. Raises ValueError if the last answer is missing.
    """
    if conversation.is_prompt:
        raise ValueError("the last turn has no answer to learn from")
    input_ids, answers = encode_turns([conversation], tokenizer)[0]
    labels = [NOT_LEARNT] * len(input_ids)
    for start, end in answers:
        labels[start:end] = input_ids[start:end]
    return {"input_ids": input_ids, "labels": labels}


def encode_prompt(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids to generate from: a prefix of what `encode` gives once the last turn has its answer.

    Raises ValueError if the last turn has its answer already.
    """
    if not conversation.is_prompt:
        raise ValueError("the last turn has its answer already; a prompt ends with the human")
    return encode_turns([conversation], tokenizer)[0].input_ids


def encode_turns(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """The ids of many conversations in one call of the tokenizer, which spreads it over the cores.

    A text that occurs again, such as the intro, is tokenized once.
    """
    layout = _layout(tokenizer)
    rows = [list(pieces(conversation, layout.header)) for conversation in conversations]
    texts = list({piece.text: None for row in rows for piece in row if not piece.is_control})
    ids_of = dict(zip(texts, _text_ids(tokenizer, texts), strict=True))
    ids_of |= {token: [token_id] for token, token_id in layout.control_ids.items()}
    # What somebody wrote is never a whole piece that is equal to a control token: it stands between newlines.

    encoded = []
    for row in rows:
        input_ids: list[int] = []
        answers: list[tuple[int, int]] = []
        for piece in row:
            input_ids += ids_of[piece.text]
            if piece is _YAYI:
                start = len(input_ids)
            elif piece is _END:
                answers.append((start, len(input_ids)))
        encoded.append(Encoded(input_ids, answers))
    return encoded


def show(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """The text that these ids stand for, for people: what is learnt is green and between ⟦ and ⟧."""
    shown = []
    pairs = zip(input_ids, labels, strict=True)
    for is_learnt, run in itertools.groupby(pairs, key=lambda pair: pair[1] != NOT_LEARNT):
        text = tokenizer.decode([token for token, _ in run])
        shown.append(f"{GREEN}⟦{text}⟧{PLAIN}" if is_learnt else text)
    return "".join(shown)


@functools.lru_cache(maxsize=8)
def answer_header(tokenizer: PreTrainedTokenizerFast) -> str:
    """Where a prompt ends so that its ids are a prefix of training's, whatever the answer: ":" or ":\\n".

    After ":" if the tokenizer never joins ":" and a newline, as BLOOM's; the ids are then those of the whole
    text in one piece. Others have tokens for ":\\n" and ":\\n\\n": with them the whole header stands apart
    from the answer.
    """
    answers = ["", "\n", "\n\n", " ", "a", "1", ":", "你", "。"]
    whole = _text_ids(tokenizer, [f":\n{answer}" for answer in answers])
    colon, *rests = _text_ids(tokenizer, [":", *(f"\n{answer}" for answer in answers)])
    return ":" if whole == [colon + rest for rest in rests] else ":\n"


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Texts that the tokenizer takes for a single token wherever they stand, the control tokens included."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def chat_template(special_tokens: Iterable[str], header: str = ":") -> str:
    """The Jinja template that renders OpenAI-style messages to the text above, for servers without our code.

    It breaks each of `special_tokens` inside a message with a character that the tokenizer's normalizer
    removes, and takes off an assistant's message what a client got with it: the newline that opens an answer
    and the blank line that closes it.
    """
    return _TEMPLATE.substitute(
        special="[" + ", ".join(_quoted(token) for token in special_tokens) + "]",
        breaker=_quoted(BREAKER),
        intro=_quoted(INTRO),
        header=_quoted(header),
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
{%- if add_generation_prompt -%}{{- '<|YaYi|>' + $header -}}{%- endif -%}
""")


def _quoted(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


class _Layout(NamedTuple):
    """What encoding needs to know of a tokenizer."""

    control_ids: dict[str, int]
    header: str


@functools.lru_cache(maxsize=8)
def _layout(tokenizer: PreTrainedTokenizerFast) -> _Layout:
    control_ids = {token: tokenizer.backend_tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
    missing = [token for token, token_id in control_ids.items() if token_id is None]
    if missing:
        raise ValueError(
            f"the tokenizer has no {', '.join(missing)}; training.text.tokenizer.load_tokenizer adds them"
        )
    return _Layout(control_ids, answer_header(tokenizer))


def _text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which nothing is a control token.

    Straight from the tokenizers library: `tokenizer(texts)` also makes offsets and masks, which nobody reads.
    It sets anew for each of its calls what is set here.
    """
    backend = tokenizer.backend_tokenizer
    # Set only where needed: setting waits for calls that run in other threads.
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = True
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
