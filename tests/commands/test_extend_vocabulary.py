import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from inference.generation import load, reply
from tests.conftest import write_rows
from tests.inference.prompts import messages_of
from tests.model.card_checks import checked_card
from tests.text.test_encoding import prompts
from training import extend_vocabulary
from training.consts import CONTROL_TOKENS
from training.extend_vocabulary import choose, copy_for_text, is_caseless, learn_candidates, read_corpus
from training.model.load import ROW_MULTIPLE, load_model
from training.model.save import save_model
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import answer_header, encode, encode_prompt
from training.text.template import render
from training.text.tokenizer import load_base_tokenizer, load_tokenizer
from training.tiny_bloom import SPARE_ROWS, random_bloom

WORDS = ["颈椎间盘突出", "腰肌劳损", "理疗师", "康复训练"]
COUNT = 12

_chosen = random.Random(0).choice
SENTENCES = [
    f"{_chosen('我他她你')}{_chosen('有说问看')}{_chosen(WORDS)}，{_chosen(WORDS)}{_chosen('吗呢了的')}？"
    f" {_chosen(['Physiotherapy', 'nation', '2024年'])}。"
    for _ in range(300)
]


def write_text(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def options(model: str, corpus: str, directory: Path, count: int = COUNT) -> str:
    return f"--input-model {model} --corpus {corpus} --num-tokens {count} --output-dir {directory}"


def extend(*arguments) -> str:
    extend_vocabulary.main.main(options(*arguments).split(), standalone_mode=False)
    return str(arguments[2])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_text(tmp_path_factory.mktemp("corpus") / "domain.txt", SENTENCES)


@pytest.fixture(scope="module")
def extended(base: str, corpus: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return extend(base, corpus, tmp_path_factory.mktemp("extended") / "model")


@pytest.fixture(scope="module")
def before(base: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def after(extended: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(extended)


@pytest.fixture(scope="module")
def pieces(before, after) -> dict[str, int]:
    return {piece: token for piece, token in after.get_vocab().items() if piece not in before.get_vocab()}


@pytest.fixture(scope="module")
def backends(before, after) -> tuple[Tokenizer, Tokenizer]:
    return copy_for_text(before), copy_for_text(after)


def test_the_words_of_the_domain_are_among_the_pieces(before, after, pieces: dict[str, int]) -> None:
    assert set(WORDS) <= pieces.keys()
    assert before.get_vocab().items() <= after.get_vocab().items()
    assert sorted(pieces.values()) == list(range(len(before), len(before) + len(pieces)))
    assert 0 < len(pieces) <= COUNT
    for piece in pieces:  # nothing that a word, a number or a header could be cut by
        assert piece.isalpha()
        assert piece.lower() == piece.upper()


def test_a_piece_is_one_token_inside_running_text(before, after, pieces: dict[str, int]) -> None:
    left, right = before("患了").input_ids, before("怎么办").input_ids
    assert after("患了腰肌劳损怎么办").input_ids == [*left, pieces["腰肌劳损"], *right]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.text(), st.sampled_from([*WORDS, "椎间盘", "</s>", "<|End|>", " ", "\n"]))).map(
        "".join
    )
)
def test_any_text_comes_back_and_without_pieces_its_ids_are_as_before(
    backends, pieces: dict[str, int], text: str
) -> None:
    plain, new = backends
    ids = new.encode(text, add_special_tokens=False).ids
    assert new.decode(ids, skip_special_tokens=False) == text
    if not any(piece in text for piece in pieces):
        assert ids == plain.encode(text, add_special_tokens=False).ids


def test_what_was_saved_gives_the_same_ids_when_it_is_saved_again(after, tmp_path: Path) -> None:
    after.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == after.get_vocab()
    for sentence in SENTENCES[:50]:
        assert again(sentence).input_ids == after(sentence).input_ids
        assert again.decode(again(sentence).input_ids) == sentence


def assert_rows(old: torch.Tensor, new: torch.Tensor, before, pieces: dict[str, int]) -> None:
    """Old embedding rows are as before; that of each piece is the mean of its old tokens' rows."""
    assert torch.equal(new[: len(before)], old[: len(before)])
    for piece, token in pieces.items():
        ids = before(piece, add_special_tokens=False).input_ids
        mean = sum(old[i].double() for i in ids) / len(ids)
        torch.testing.assert_close(new[token], mean.to(new.dtype))


def test_each_new_row_is_the_mean_of_those_it_replaces(base: str, extended: str, before, pieces) -> None:
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (base, extended))
    assert_rows(old.get_input_embeddings().weight, new.get_input_embeddings().weight, before, pieces)
    assert new.get_output_embeddings().weight is new.get_input_embeddings().weight
    assert new.config.vocab_size % ROW_MULTIPLE == 0
    others = old.state_dict().keys() - {"transformer.word_embeddings.weight", "lm_head.weight"}
    assert all(torch.equal(old.state_dict()[name], new.state_dict()[name]) for name in others)
    assert new.config.eos_token_id == old.config.eos_token_id


@pytest.mark.slow
def test_spare_rows_are_used_first_and_the_dtype_is_kept(before, corpus: str, tmp_path: Path) -> None:
    model = random_bloom(len(before) + COUNT + SPARE_ROWS).to(torch.bfloat16)
    save_model(model, before, tmp_path / "roomy")
    out = extend(str(tmp_path / "roomy"), corpus, tmp_path / "out")
    old, new = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("roomy", "out"))
    assert new.dtype == torch.bfloat16
    assert new.config.vocab_size == old.config.vocab_size
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = {
        piece: token for piece, token in tokenizer.get_vocab().items() if piece not in before.get_vocab()
    }
    old_rows, new_rows = (model.get_input_embeddings().weight for model in (old, new))
    assert_rows(old_rows, new_rows, before, found)
    assert torch.equal(new_rows[len(tokenizer) :], old_rows[len(tokenizer) :])


@pytest.mark.slow
def test_a_head_of_its_own_gets_its_rows_too(before, corpus: str, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(before),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    save_model(LlamaForCausalLM(config), before, tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(extend(str(tmp_path / "llama"), corpus, tmp_path / "out"))
    found = {
        piece: token for piece, token in tokenizer.get_vocab().items() if piece not in before.get_vocab()
    }
    old, new = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("llama", "out"))
    assert_rows(old.model.embed_tokens.weight, new.model.embed_tokens.weight, before, found)
    assert_rows(old.lm_head.weight, new.lm_head.weight, before, found)
    assert not torch.equal(new.lm_head.weight, new.model.embed_tokens.weight)


def test_the_trainer_gives_it_control_tokens_and_leaves_the_pieces_alone(
    extended: str, after, pieces
) -> None:
    tokenizer = load_tokenizer(extended)
    size = len(after)
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(size, size + 4))
    old = AutoModelForCausalLM.from_pretrained(extended).get_input_embeddings().weight
    new = load_model(extended, tokenizer).get_input_embeddings().weight
    assert torch.equal(new[list(pieces.values())], old[list(pieces.values())])


DIALOGUE = Conversation((Turn("理疗师说腰肌劳损", "康复训练。"), Turn("腰肌劳损", "理疗师")), "颈椎间盘突出")


def test_it_chats_like_any_other(extended: str, tokenizer, tmp_path: Path) -> None:
    ours = load_tokenizer(extended)
    assert answer_header(ours) == answer_header(tokenizer)
    ours.save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert encode(DIALOGUE, ours)["input_ids"] == plain(render(DIALOGUE)).input_ids
    assert len(encode(DIALOGUE, ours)["input_ids"]) < len(encode(DIALOGUE, tokenizer)["input_ids"])
    for prompt in prompts(DIALOGUE):
        asked = plain.apply_chat_template(messages_of(prompt), add_generation_prompt=True)
        assert asked.input_ids == encode_prompt(prompt, ours)


def test_the_card_of_an_extended_base_says_that_it_is_a_base(extended: str) -> None:
    card = checked_card(Path(extended))
    assert f"This is `tiny-bloom` (a directory) with {COUNT} tokens more in its vocabulary." in card.text
    assert "It is a base model, to be taught before one talks to it." in card.text


def test_a_model_that_chats_already_stays_as_it_is(tuned: str, corpus: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"  # without what the trainer wrote for servers
    shutil.copytree(tuned, bare, ignore=shutil.ignore_patterns("checkpoint-*", "generation_config.json"))
    out = Path(extend(str(bare), corpus, tmp_path / "out"))
    assert "## How it was taught" in checked_card(out).text
    old, new = load_base_tokenizer(tuned), load_base_tokenizer(str(out))
    assert new.chat_template == old.chat_template
    assert new.convert_tokens_to_ids(list(CONTROL_TOKENS)) == old.convert_tokens_to_ids(list(CONTROL_TOKENS))
    configs = [json.loads(Path(path, "generation_config.json").read_text("utf-8")) for path in (tuned, out)]
    assert configs[0] == configs[1]
    # A piece is never likelier than all of its parts, so that greedy answers stay the same.
    answers = [
        reply(
            *load(str(path), device="cpu"),
            from_row({"instruction": known}),
            temperature=0,
            repetition_penalty=1,
        )
        for known in ("你是谁", "笑一个")
        for path in (tuned, out)
    ]
    assert answers == ["我是雅意。", "我是雅意。", "😀🀄𠮷 好", "😀🀄𠮷 好"]


def test_extending_twice(base: str, extended: str, corpus: str, after, tmp_path: Path) -> None:
    rows = [{"instruction": f"{n}号病人的踝关节扭伤，{word}"} for n in range(10) for word in WORDS]
    out = extend(extended, write_rows(tmp_path / "more.jsonl", rows), tmp_path / "out", 3)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert after.get_vocab().items() < tokenizer.get_vocab().items()
    assert len(tokenizer(rows[0]["instruction"]).input_ids) < len(after(rows[0]["instruction"]).input_ids)
    assert tokenizer("理疗师").input_ids == after("理疗师").input_ids


def test_pieces_are_chosen_by_what_they_save(before) -> None:
    """
    texts    甲乙丙丁 9 times, 甲乙 3 times more
    saved    甲乙丙丁: 9 x (its tokens - 1), 甲乙: 3 x (its tokens - 1), 丙丁: nothing beside 甲乙丙丁
    """
    base = copy_for_text(before)
    cost = {piece: len(base.encode(piece).ids) - 1 for piece in ("甲乙丙丁", "甲乙")}
    texts = ["甲乙丙丁。"] * 9 + ["甲乙。"] * 3
    found = choose(["甲乙", "丙丁", "甲乙丙丁"], texts, base, 3)
    assert found == {"甲乙丙丁": 9 * cost["甲乙丙丁"], "甲乙": 3 * cost["甲乙"]}
    assert list(found) == ["甲乙丙丁", "甲乙"]


def test_what_is_saved_is_the_difference_in_tokens(before) -> None:
    base = copy_for_text(before)
    saved = choose(learn_candidates(SENTENCES, base, 50), SENTENCES, base, COUNT)
    new = AutoTokenizer.from_pretrained(before.name_or_path)
    new.add_tokens(list(saved))

    def tokens(tokenizer: PreTrainedTokenizerFast) -> int:
        return sum(len(tokenizer(sentence).input_ids) for sentence in SENTENCES)

    assert sum(saved.values()) == tokens(before) - tokens(new)


def test_the_report_is_of_the_held_out_part(
    base: str, corpus: str, before, after, tmp_path: Path, outcome
) -> None:
    status, out, _ = outcome(extend_vocabulary.main, options(base, corpus, tmp_path / "out"))
    assert status == 0
    held_out = list(dict.fromkeys(SENTENCES))[9::10]
    characters = sum(map(len, held_out))
    counts = [sum(len(tokenizer(text).input_ids) for text in held_out) for tokenizer in (before, after)]
    assert f"held out: {characters:,} characters; {counts[0]:,} tokens before, {counts[1]:,} after" in out
    assert (
        f"characters per token: {characters / counts[0]:.3f} before, {characters / counts[1]:.3f} after"
        in out
    )


def test_rows_of_all_kinds_are_read_and_the_others_counted(tmp_path: Path) -> None:
    rows = [
        {"instruction": "一", "input": "二", "output": "三"},
        {"instruction": "四"},
        {"conversations": [{"from": "human", "value": "五"}, {"from": "human", "value": "六"}]},
    ]
    text = write_text(tmp_path / "a.txt", ["\ufeff七 ", "", "八\r"])
    corpus = read_corpus([write_rows(tmp_path / "a.jsonl", rows), text])
    assert corpus.documents == [("一\n二", "三"), ("四",), ("七 ",), ("八",)]
    (line,) = corpus.left_out_lines()
    assert line.endswith(f"alternates: 1 ({tmp_path / 'a.jsonl'}:3)")


def test_mistakes_are_one_line(base: str, corpus: str, after, tmp_path: Path, outcome) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "gbk.txt").write_bytes("好\n".encode() + "你好".encode("gbk"))
    english = write_text(tmp_path / "english.txt", [f"sentence {n} of ours" for n in range(20)])
    common = next(
        token for token in map(after.decode, range(500, 2000)) if len(token) == 2 and is_caseless(token)
    )
    known = write_text(tmp_path / "known.txt", [f"{n} {common}" for n in range(20)])
    new = tmp_path / "new"
    for arguments, problem in (
        (options(base, f"{tmp_path}/nope.txt", new), "nope.txt: No such file"),
        (options(base, f"{tmp_path}/nope.jsonl", new), "nope.jsonl: no such file"),
        (options(base, f"{tmp_path}/gbk.txt", new), "gbk.txt: neither UTF-8 (line 2)"),
        (options(base, write_text(tmp_path / "empty.txt", []), new), "0 different documents"),
        (options(base, write_text(tmp_path / "few.txt", SENTENCES[:9]), new), "9 different documents"),
        (options(base, english, new), "nothing to learn"),
        (options(base, known, new), "no piece of it would save a token"),
        (options(base, corpus, new, 0), "0 is not in the range"),
        (options(base, corpus, tmp_path / "full"), "holds something already"),
        (options(str(tmp_path / "adapter"), corpus, new), "an adapter"),
        (options(str(tmp_path / "full"), corpus, new), "without config.json"),
    ):
        status, _, err = outcome(extend_vocabulary.main, arguments)
        assert (status, problem in err) == (2, True), err
        assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
        assert not new.exists()


def test_a_tokenizer_that_would_not_give_text_back_is_refused(corpus: str, tmp_path: Path, outcome) -> None:
    """Metaspace puts a space before what follows an added token."""
    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in sorted(set("▁".join(SENTENCES))))], 0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    save_model(random_bloom(len(tokenizer)), tokenizer, tmp_path / "base")
    status, _, err = outcome(extend_vocabulary.main, options(tmp_path / "base", corpus, tmp_path / "out"))
    assert (status, "does not give back text" in err) == (2, True), err
    assert not (tmp_path / "out").exists()
