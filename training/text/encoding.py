"""Token ids of a conversation, and the labels: which of its tokens are supervised.

Only the control tokens become control ids: whatever a row or a user wrote is tokenized with special tokens
switched off, so that a `<|End|>` in somebody's text stays text.
"""

import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from training.consts import CONTROL_TOKENS, END, NOT_SUPERVISED, TOOL
from training.text.saved_template import default_system, knows_tools
from training.text.template import COLON, OPENING, pieces
from training.text.turns import Conversation

# The sequences that change a terminal's colour.
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"

# The tokenizers library keeps hundreds of bytes for each token until a call returns. So a call takes no
# further text once it has so many characters.
CHARACTERS_PER_CALL = 1 << 20

# A text of more characters than these is first counted in parts of as many characters.
LONG_TEXT = 1 << 16


class Encoded(NamedTuple):
    """The input_ids of a conversation, where each of its turns ends, and which tokens are supervised.

    input_ids: all, or as far as `encode_turns` was told to give them.
    turn_ends: how many tokens stand before the end of each turn that has its answer, that answer included. A
    turn does not end with calls whose results follow.
    answers: where the supervised tokens of each answer start and end; an answer that is context has none.
    """

    input_ids: list[int]
    turn_ends: list[int]
    answers: list[tuple[int, int]]

    def within(self, max_length: int) -> "Encoded":
        """What training sees: up to the last turn that ends within `max_length` tokens.

        Nothing is left where no supervised answer does.
        """
        turn_ends = [end for end in self.turn_ends if end <= max_length]
        answers = [(start, end) for start, end in self.answers if turn_ends and end <= turn_ends[-1]]
        if not answers:
            return Encoded([], [], [])
        return Encoded(self.input_ids[: turn_ends[-1]], turn_ends, answers)

    def with_labels(self) -> dict[str, list[int]]:
        """The input_ids and labels: two lists of one length, as `supervised_mask` draws them."""
        input_ids = np.array(self.input_ids)
        labels = mask_labels(input_ids, supervised_mask(len(input_ids), self.answers))
        return {"input_ids": self.input_ids, "labels": labels.tolist()}


def supervised_mask(length: int, answers: Iterable[tuple[int, int]]) -> np.ndarray:
    """Which of `length` tokens are supervised: those of the answers, from start up to end (not included).

    text          <|Human|> :\\n 你好 \\n\\n <|YaYi|> :\\n 您好 \\n\\n <|End|>
    input_ids         h     1   2    3     y     1   4    3     e       answers  (5, 9)
    mask              .     .   .    .     .     x   x    x     x
    labels            .     .   .    .     .     1   4    3     e       . = -100

    Calls of tools are learnt as answers are; declarations and results are not:

    text          <|Human|> :\n 几点 \n\n <|YaYi|> :\n 调用 \n\n <|End|> <|Tool|> :\n 九点 \n\n <|YaYi|> : ...
    input_ids         h     1   5    3     y     1   6    3     e       t     1   7    3     y     1
    labels            .     .   .    .     .     1   6    3     e       .     .   .    .     .     1

    Training and `encode` both make their labels from this mask, by `mask_labels`. Returns (length,) booleans.
    """
    mask = np.zeros(length, dtype=bool)
    for start, end in answers:
        mask[start:end] = True
    return mask


def mask_labels(input_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The labels for a `supervised_mask`: the ids where a token is supervised, and -100 elsewhere."""
    return np.where(mask, input_ids, NOT_SUPERVISED)


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """The input_ids and labels of a conversation: two lists of one length, as `supervised_mask` draws them.

    Raises ValueError if the last answer is missing.
    """
    if conversation.is_prompt:
        raise ValueError("the last turn has no answer to learn from")
    return encode_turns([conversation], tokenizer)[0].with_labels()


def encode_prompt(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids to generate from: a prefix of what `encode` gives once the last turn has its answer.

    Raises ValueError if the last turn has its answer already.
    """
    if not conversation.is_prompt:
        raise ValueError("the last turn has its answer already; a prompt ends with the human")
    return encode_turns([conversation], tokenizer)[0].input_ids


def encode_turns(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast, max_length: int = sys.maxsize
) -> list[Encoded]:
    """The ids of many conversations in few calls of the tokenizer, which spreads them over the cores.

    A text that occurs again, such as the intro, is tokenized once. Raises ValueError as `check_tools` does.
    max_length: how many ids the caller can use of each conversation. Those of a turn that ends later may be
    missing, and after a text that has more than twice as many tokens, its length is right to within a few
    tokens in ten thousand: the text is counted in parts, so that it takes little memory however long it is.
    """
    layout, system = _layout(tokenizer), default_system(tokenizer)
    for conversation in conversations:
        check_tools(conversation, tokenizer)
    all_pieces = [list(pieces(conversation, layout.header, system)) for conversation in conversations]
    texts = list({piece.text: None for of_one in all_pieces for piece in of_one if not piece.is_control})
    ids_of = _ids_of_texts(tokenizer, texts, max_length)
    ids_of |= {token: [token_id] for token, token_id in layout.control_ids.items()}
    # What somebody wrote is never a whole piece that is equal to a control token: it stands between newlines.

    encoded = []
    for of_one in all_pieces:
        input_ids: list[int] = []
        turn_ends: list[int] = []
        answers: list[tuple[int, int]] = []
        start = end = 0
        is_supervised = False  # whether the previous piece was
        for piece in of_one:
            if piece.is_supervised and not is_supervised:
                start = end
            is_supervised = piece.is_supervised
            ids = ids_of[piece.text]
            end += len(ids)
            if end <= max_length:
                input_ids += ids
            if piece.is_control and piece.text == END and is_supervised:
                answers.append((start, end))
            if piece.ends_turn:
                turn_ends.append(end)
        encoded.append(Encoded(input_ids, turn_ends, answers))
    return encoded


def _ids_of_texts(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], max_length: int
) -> dict[str, Sequence[int]]:
    """The ids of each text; of one that has more than twice `max_length` a range that is about as long."""
    long = max(LONG_TEXT, max_length // 2)  # a character hardly has more than four tokens, those of its bytes
    counts = {text: _count(tokenizer, text) for text in texts if len(text) > long}
    # Cutting adds a token or two to each part, which has thousands: it cannot double their number.
    too_long = {text: range(count) for text, count in counts.items() if count > 2 * max_length}
    texts = [text for text in texts if text not in too_long]
    return {**dict(zip(texts, _text_ids(tokenizer, texts), strict=True)), **too_long}


def _count(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """How many tokens a text has, or a few more: it is cut without regard to its words."""
    parts = [text[start : start + LONG_TEXT] for start in range(0, len(text), LONG_TEXT)]
    return sum(map(len, _encodings(tokenizer, parts)))


def supervised_runs(
    input_ids: np.ndarray, supervised: np.ndarray, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[str, bool]]:
    """The text that these ids stand for, cut where supervised tokens start and end: (text, is_supervised).

    input_ids, supervised: the ids and their mask, both (tokens,).
    """
    pairs = zip(input_ids.tolist(), supervised.tolist(), strict=True)
    for is_supervised, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        yield tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False), is_supervised


def show(runs: Iterable[tuple[str, bool]]) -> str:
    """The text of `supervised_runs` for a terminal: supervised tokens are green and between ⟦ and ⟧."""
    return "".join(f"{GREEN}⟦{text}⟧{PLAIN}" if is_supervised else text for text, is_supervised in runs)


@functools.lru_cache(maxsize=8)
def answer_header(tokenizer: PreTrainedTokenizerFast) -> str:
    """Where a prompt ends so that its ids are a prefix of training's, whatever the answer: ":" or ":\\n".

    A prompt ends after ":" if the tokenizer never joins ":" and a newline, as BLOOM's does not; the ids are
    then those of the whole text in one piece. Other tokenizers have tokens for ":\\n" and ":\\n\\n": with
    them the whole header is tokenized separately.
    """
    answers = ["", "\n", "\n\n", " ", "a", "1", ":", "你", "。"]
    joined = _text_ids(tokenizer, [f"{COLON}{OPENING}{answer}" for answer in answers])
    colon, *rests = _text_ids(tokenizer, [COLON, *(f"{OPENING}{answer}" for answer in answers)])
    return COLON if joined == [colon + rest for rest in rests] else COLON + OPENING


def check_tools(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError for a conversation with tools where the model of this tokenizer knows none."""
    if conversation.has_tools and not knows_tools(tokenizer):
        raise ValueError(f"a row with tools, and the model was taught none: its tokenizer has no {TOOL}")


class _Layout(NamedTuple):
    """What encoding needs to know of a tokenizer."""

    control_ids: dict[str, int]
    header: str


@functools.lru_cache(maxsize=8)
def _layout(tokenizer: PreTrainedTokenizerFast) -> _Layout:
    found = {token: tokenizer.backend_tokenizer.token_to_id(token) for token in (*CONTROL_TOKENS, TOOL)}
    control_ids = {token: token_id for token, token_id in found.items() if token_id is not None}
    missing = [token for token in CONTROL_TOKENS if token not in control_ids]
    if missing:
        raise ValueError(
            f"the tokenizer has no {', '.join(missing)}; training.text.tokenizer.load_tokenizer adds them"
        )
    return _Layout(control_ids, answer_header(tokenizer))


def _text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which nothing is a control token."""
    return [encoding.ids for encoding in _encodings(tokenizer, texts)]


def _encodings(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Iterator[Encoding]:
    """The encodings of texts in which nothing is a control token, of which few are in memory at a time.

    They come straight from the tokenizers library, since `tokenizer(texts)` also makes offsets and masks that
    nobody reads. What is set here does not change `tokenizer(texts)`, which sets it anew in each call.
    """
    backend = tokenizer.backend_tokenizer
    # Set only where needed: setting waits for calls that run in other threads.
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = True
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    ends = itertools.accumulate(map(len, texts))
    for _, group in itertools.groupby(
        zip(texts, ends, strict=True), lambda pair: pair[1] // CHARACTERS_PER_CALL
    ):
        yield from backend.encode_batch_fast([text for text, _ in group], add_special_tokens=False)
