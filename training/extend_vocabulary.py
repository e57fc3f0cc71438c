"""Give the words of a domain tokens of their own: its texts take fewer tokens, other words keep their ids.

python -m training.extend_vocabulary --input-model checkpoints/bloomz-7b1-mt --corpus my-domain.txt \\
    --num-tokens 1000 --output-dir checkpoints/my-bloomz
"""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import sentencepiece
from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from training.common.command_line import ModelPath, PathOrName, UserPath
from training.common.console import Progress, quiet_libraries
from training.common.errors import UserError, run_command
from training.common.files import check_empty, write_failure_refused
from training.common.hub import check_base_model
from training.data.findings import LINES_KEPT, reason_of
from training.data.reader import NotRead, parse, read_raw_rows
from training.data.sources import expand_path
from training.data.text_lines import read_lines
from training.model.load import fit_vocabulary, load_base_model, read_config
from training.model.model_card import taught_before, write_model_card
from training.model.save import save_model
from training.text.conversation import from_row
from training.text.tokenizer import load_base_tokenizer

# One document in HELD_OUT_EVERY is held out.
HELD_OUT_EVERY = 10

# The number of candidates for each piece wanted. On 1.4 million characters of dialogues, twice as many saved
# 0.04 % more of the held-out tokens, four times as many 0.06 %.
CANDIDATES = 4

# The number of rounds in which pieces are chosen; each sees what those before it have left to save. On those
# dialogues, 4 rounds saved 0.1 % less than 10, and 20 rounds 0.04 % more.
ROUNDS = 8

# Candidates are looked for in stretches of letters; sentencepiece skips those of more than 4,192 bytes.
LETTERS = re.compile(r"[^\W\d_]{2,1000}")

BEST_SHOWN = 10


@click.command()
@click.option(
    "--input-model",
    type=ModelPath(),
    required=True,
    help="Model to extend: a directory, or a name on the hub.",
)
@click.option(
    "--corpus",
    "paths",
    type=PathOrName(),
    required=True,
    multiple=True,
    help="Texts of the domain: a .txt file with one document per line, or rows as for training; may be "
    "given several times.",
)
@click.option("--num-tokens", required=True, type=click.IntRange(min=1), help="Number of pieces to add.")
@click.option(
    "--output-dir", required=True, type=UserPath(file_okay=False, path_type=Path), help="New directory."
)
def main(input_model: str, paths: tuple[str, ...], num_tokens: int, output_dir: Path) -> None:
    """Add to a model the pieces of --corpus that save the most tokens, each with an embedding row."""
    quiet_libraries()
    check_empty(output_dir, "give another --output-dir")
    check_base_model(input_model)
    tokenizer = load_base_tokenizer(input_model)
    read_config(input_model)  # raises for a directory without a model, before the work begins
    corpus = read_corpus(paths)
    for line in corpus.left_out_lines():
        print(line)
    texts, held_out = corpus.split()

    base = copy_for_text(tokenizer)
    candidates = learn_candidates(texts, base, CANDIDATES * num_tokens)
    saved = choose(candidates, texts, base, num_tokens)
    if not saved:
        raise UserError(f"{', '.join(paths)}: no piece of it would save a token; give more text")
    tokenizer.add_tokens(as_tokens(saved))
    extended = copy_for_text(tokenizer)
    check_round_trip(input_model, base, extended, texts + held_out)
    with write_failure_refused(output_dir, "make room, or give another --output-dir"):
        extend_model(input_model, tokenizer, base, list(saved), output_dir)

    for line in savings_report(saved, num_tokens, len(candidates), held_out, base, extended):
        print(line)
    print(f"{output_dir}: {input_model} with {len(saved):,} tokens more, {len(tokenizer):,} in all")


@dataclass
class Corpus:
    """Documents, each a tuple of texts, and the rows left out: their number and first places by reason."""

    documents: list[tuple[str, ...]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, place: str, problem: str) -> None:
        reason = reason_of(problem)
        self.left_out[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < LINES_KEPT:
            places.append(place)

    def left_out_lines(self) -> list[str]:
        return [
            f"left out, {reason}: {count:,} ({', '.join(self.places[reason])}"
            f"{', ...' if count > LINES_KEPT else ''})"
            for reason, count in self.left_out.items()
        ]

    def split(self) -> tuple[list[str], list[str]]:
        """The texts to choose pieces by, and those of every tenth document, held out.

        Documents that are equal count once. Raises UserError where there are too few documents.
        """
        documents = list(dict.fromkeys(self.documents))
        held_out = documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        if not held_out:
            raise UserError(
                f"--corpus has {len(documents)} different documents, too few to hold one in "
                f"{HELD_OUT_EVERY} out; give more"
            )
        del documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        return [text for texts in documents for text in texts], [text for texts in held_out for text in texts]


def read_corpus(data_paths: Sequence[str]) -> Corpus:
    """The documents of all files: each line of a .txt file, and all messages of each row of any other file.

    Raises UserError for a file that cannot be read to its end.
    """
    corpus = Corpus()
    paths = [path for data_path in data_paths for path in expand_path(data_path)]
    for path in paths:
        if path.endswith(".txt"):
            corpus.documents += ((line,) for _, line in read_lines(path))
            continue
        raw_rows = read_raw_rows(path)
        for raw in raw_rows:
            place = f"{path}:{raw.number}"
            if isinstance(raw.content, NotRead):
                raise UserError(f"{place}: {raw.content.problem}")
            try:
                conversation = from_row(parse(raw))
            except ValueError as error:
                corpus.leave_out(place, str(error))
                continue
            said = (text for turn in conversation.turns for text in turn.texts() if text)
            corpus.documents.append(tuple(said))
        raw_rows.say_remarks()
    return corpus


def copy_for_text(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer that encodes special tokens in a text as plain text, as training does."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return backend


def as_tokens(pieces: Sequence[str]) -> list[AddedToken]:
    """Tokens that match inside words too, and in the text before it is normalized."""
    return [AddedToken(piece, special=False, normalized=False, single_word=False) for piece in pieces]


def learn_candidates(texts: Sequence[str], base: Tokenizer, count: int) -> list[str]:
    """About `count` pieces of `texts` that are not tokens of `base` yet, the most frequent first.

    A piece matches wherever its characters stand. Latin letters would match inside other words too ("rate" in
    "crater"), so only letters without case are taken, such as Chinese ones; digits would split numbers, and
    punctuation could be that of a conversation's headers. Raises UserError where there are no such letters.
    """
    stretches = [stretch for text in texts for stretch in LETTERS.findall(text)]
    if not any(map(is_caseless, stretches)):
        raise UserError("--corpus has no text in Chinese or another script without case; nothing to learn")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stretches),
        model_writer=model,
        model_type="bpe",
        vocab_size=count + len(set().union(*stretches)),
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [found.id_to_piece(i) for i in range(found.get_piece_size())]
    pieces = [piece for piece in pieces if len(piece) > 1 and is_caseless(piece)]
    encodings = base.encode_batch_fast(pieces, add_special_tokens=False)
    return [
        piece
        for piece, encoding in zip(pieces, encodings, strict=True)
        if len(encoding.ids) > 1 and base.token_to_id(piece) is None
    ]


def is_caseless(text: str) -> bool:
    """Whether a text consists of letters without case only, as Chinese ones are."""
    return text.isalpha() and text.lower() == text.upper()


class Spans(NamedTuple):
    """Stretches of the corpus's texts laid end to end.

    numbers: the number of each stretch's piece, or the id of its token. starts, ends: the positions of its
    first character and after its last. All are (stretches,).
    """

    numbers: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def select(self, mask: np.ndarray) -> "Spans":
        return Spans(*(column[mask] for column in self))


def choose(candidates: Sequence[str], texts: Sequence[str], base: Tokenizer, count: int) -> dict[str, int]:
    """At most `count` candidates, and how many tokens each saves in `texts`; the best come first.

    Each round adds the best candidates, and removes for good those that later ones have made useless. Savings
    are counted as the extended tokenizer matches: the leftmost piece, and of several the longest.
    """
    progress = Progress("choosing", "pieces")
    found = occurrences(candidates, texts)
    before = token_spans(base, texts)
    added = max(base.get_vocab().values()) + 1
    is_free = np.ones(len(candidates), dtype=bool)
    chosen = np.empty(0, dtype=np.int64)
    while True:
        extended = Tokenizer.from_str(base.to_str())
        extended.encode_special_tokens = True
        extended.add_tokens(as_tokens([candidates[number] for number in chosen]))
        after = token_spans(extended, texts)
        matches = after.select(after.numbers >= added)
        saved = np.bincount(matches.numbers - added, savings(matches, before), len(chosen))
        useful = saved > 0
        chosen, saved = chosen[useful], saved[useful]

        gains = np.bincount(found.numbers, savings(found, after) * can_match(found, matches), len(candidates))
        best = np.argsort(-gains * is_free, kind="stable")[: min(-(-count // ROUNDS), count - len(chosen))]
        best = best[(gains * is_free)[best] > 0]
        if useful.all() and not len(best):
            order = np.argsort(-saved, kind="stable")
            return {candidates[chosen[i]]: int(saved[i]) for i in order}
        is_free[best] = False
        chosen = np.concatenate([chosen, best])
        progress.advance(len(best))


def occurrences(pieces: Sequence[str], texts: Sequence[str]) -> Spans:
    """Every place where a piece stands, with the piece's number; places may overlap."""
    numbers = {piece: number for number, piece in enumerate(pieces)}
    openings = {piece[:length] for piece in pieces for length in range(1, len(piece) + 1)}
    found: list[tuple[int, int, int]] = []
    offset = 0
    for text in texts:
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                stretch = text[start:end]
                if stretch not in openings:
                    break
                if stretch in numbers:
                    found.append((numbers[stretch], offset + start, offset + end))
        offset += len(text)
    return Spans(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def token_spans(backend: Tokenizer, texts: Sequence[str]) -> Spans:
    """Every token with its id, in order; an empty span with id -1 marks the end of the texts."""
    ids, spans = [], []
    offset = 0
    for text, encoding in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True):
        ids.append(encoding.ids)
        spans.append(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + offset)
        offset += len(text)
    starts, ends = np.concatenate([*spans, [[offset, offset]]]).T
    return Spans(np.concatenate([*ids, [-1]]), starts, ends)


def savings(pieces: Spans, tokens: Spans) -> np.ndarray:
    """How many tokens each of `pieces` saves if it alone becomes a token; (pieces,).

    It replaces the tokens that start in it; a token that runs on beyond its end leaves a rest, which is one.
    """
    first, last = np.searchsorted(tokens.starts, pieces.starts), np.searchsorted(tokens.starts, pieces.ends)
    runs_on = tokens.starts[last] != pieces.ends
    return last - first - 1 - runs_on


def can_match(pieces: Spans, matches: Spans) -> np.ndarray:
    """Whether the tokenizer would match each of `pieces`, given what it matches now.

    It would unless a match that starts earlier reaches into the piece, or one that starts with it is at least
    as long.
    """
    if not len(matches.starts):
        return np.ones(len(pieces.starts), dtype=bool)
    previous = np.searchsorted(matches.starts, pieces.starts, side="right") - 1
    starts = np.where(previous < 0, -1, matches.starts[previous])
    ends = np.where(previous < 0, -1, matches.ends[previous])
    return np.where(starts == pieces.starts, ends < pieces.ends, ends <= pieces.starts)


def check_round_trip(path: str, base: Tokenizer, extended: Tokenizer, texts: Sequence[str]) -> None:
    """Raise UserError, naming the model at `path`, where `base` gives a text back and `extended` does not."""
    for text, was, now in zip(texts, decode_texts(base, texts), decode_texts(extended, texts), strict=True):
        if was == text != now:
            raise UserError(
                f"{path}: its tokenizer cannot be extended: it does not give back text with added tokens"
            )


def decode_texts(backend: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Each text, tokenized and decoded again."""
    ids = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return backend.decode_batch(ids, skip_special_tokens=False)


def extend_model(
    path: str, tokenizer: PreTrainedTokenizerFast, base: Tokenizer, pieces: Sequence[str], output_dir: Path
) -> None:
    """Save the model at `path` with `tokenizer`, which is `base` with the tokens `pieces` added.

    The embedding row of each piece is the mean of those of base's tokens for it; all others stay as they are.
    """
    model = load_base_model(path)
    encodings = base.encode_batch_fast(pieces, add_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids(list(pieces))
    new_tokens = {token: replaced.ids for token, replaced in zip(ids, encodings, strict=True)}
    fit_vocabulary(model, tokenizer, new_tokens, seed=0, noise=0.0)
    output_dir.mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, output_dir)
    made = f" with {len(pieces):,} tokens more in its vocabulary"
    write_model_card(output_dir, tokenizer, path, made, taught_before(path))


def savings_report(
    saved: dict[str, int],
    wanted: int,
    candidates: int,
    held_out: Sequence[str],
    base: Tokenizer,
    extended: Tokenizer,
) -> list[str]:
    """The printed lines on what the pieces save."""
    characters = sum(map(len, held_out))
    before, after = (
        sum(len(encoding.ids) for encoding in backend.encode_batch_fast(held_out, add_special_tokens=False))
        for backend in (base, extended)
    )
    lines = []
    if len(saved) < wanted:
        lines.append(
            f"only {len(saved):,} of {candidates:,} candidates save any tokens; the others are not added"
        )
    best = list(saved.items())[:BEST_SHOWN]
    return [
        *lines,
        f"held out: {characters:,} characters; {before:,} tokens before, {after:,} after, "
        f"{1 - after / before:.1%} fewer",
        f"characters per token: {characters / before:.3f} before, {characters / after:.3f} after",
        "the best pieces, and the tokens that each saves in the rest: "
        + ", ".join(f"{piece} {tokens:,}" for piece, tokens in best),
    ]


if __name__ == "__main__":
    run_command(main)
