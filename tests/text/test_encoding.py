import itertools
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import MULTI_TURN, SINGLE_TURN
from tests.inference.prompts import messages_of
from training.consts import CONTROL_TOKENS, INTRO
from training.text import encoding
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import (
    answer_header,
    encode,
    encode_prompt,
    encode_turns,
    mask_labels,
    supervised_mask,
)
from training.text.template import render
from training.text.tokenizer import load_tokenizer

ODD_TEXTS = [
    "你好",
    "\n你好\n",
    "\n\n\n",
    " a ",
    ":",
    ":\n",
    "。\n\n",
    "😀 𠮷 \u200d",
    "“引号”、……——！？",
    "<|end|> <|End |> <|Human| <|YaYi>",
    "a\r\nb\tc",
    "1. x\n2. y\n",
    "<|",
    "|>",
]


def sample_conversations() -> list[Conversation]:
    lines = SINGLE_TURN.read_text("utf-8").splitlines() + MULTI_TURN.read_text("utf-8").splitlines()
    return [from_row(json.loads(line), answered=True) for line in lines]


def odd_conversations() -> list[Conversation]:
    chosen = random.Random(0)
    return [
        Conversation(
            tuple(Turn(chosen.choice(ODD_TEXTS), chosen.choice(ODD_TEXTS)) for _ in range(turns)),
            chosen.choice(["", *ODD_TEXTS]),
        )
        for turns in [1] * 40 + [2] * 20 + [5] * 20
    ] + [Conversation((Turn(a, b),)) for a, b in itertools.product(ODD_TEXTS, repeat=2)]


CONVERSATIONS = sample_conversations() + odd_conversations()


def prompts(conversation: Conversation) -> list[Conversation]:
    """The conversation up to each human text, its answer still to come."""
    return [
        Conversation((*conversation.turns[:i], Turn(turn.human)), conversation.system)
        for i, turn in enumerate(conversation.turns)
    ]


def test_the_text_of_a_conversation() -> None:
    assert render(Conversation((Turn("你好", "您好"), Turn("再见", "慢走")), "S")) == (
        "<|System|>:\nS\n\n<|Human|>:\n你好\n\n<|YaYi|>:\n您好\n\n<|End|>"
        "<|Human|>:\n再见\n\n<|YaYi|>:\n慢走\n\n<|End|>"
    )
    assert render(Conversation((Turn("你好"),))) == (f"<|System|>:\n{INTRO}\n\n<|Human|>:\n你好\n\n<|YaYi|>:")


def test_ids_and_labels_as_drawn(tokenizer) -> None:
    """
    text     <|System|> :\\n S \\n\\n <|Human|> :\\n 你好 \\n\\n <|YaYi|> :\\n 您好 \\n\\n <|End|>
    labels       .       .  .   .      .       .   .    .      .      x   x    x     x
    """
    system, human, yayi, end = tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))

    def ids(text: str) -> list[int]:
        return tokenizer(text).input_ids

    colon, newline, blank_line = ids(":"), ids("\n"), ids("\n\n")
    prompt = [system, *colon, *newline, *ids("S"), *blank_line]
    prompt += [human, *colon, *newline, *ids("你好"), *blank_line, yayi]
    answer = [*colon, *newline, *ids("您好"), *blank_line, end]
    assert encode(Conversation((Turn("你好", "您好"),), "S"), tokenizer) == {
        "input_ids": prompt + answer,
        "labels": [-100] * len(prompt) + answer,
    }


def test_the_mask_and_the_labels_as_drawn() -> None:
    """
    input_ids    h 1 2 3 y 1 4 3 e h 5 y 1 e
    mask         . . . . . x x x x . . . x x      answers  (5, 9), (12, 14)
    labels       . . . . . 1 4 3 e . . . 1 e      . = -100
    """
    h, y, e = 90, 91, 92
    input_ids = np.array([h, 1, 2, 3, y, 1, 4, 3, e, h, 5, y, 1, e])
    mask = supervised_mask(len(input_ids), [(5, 9), (12, 14)])
    assert mask.tolist() == [False] * 5 + [True] * 4 + [False] * 3 + [True] * 2
    assert mask_labels(input_ids, mask).tolist() == [-100] * 5 + [1, 4, 3, e] + [-100] * 3 + [1, e]


def test_ids_are_those_of_the_whole_text_in_one_piece(tokenizer) -> None:
    for conversation in CONVERSATIONS:
        whole = tokenizer(render(conversation), add_special_tokens=False).input_ids
        assert encode(conversation, tokenizer)["input_ids"] == whole, conversation


def test_labels_cover_the_answers_and_nothing_else(tokenizer) -> None:
    answered = re.compile(r"(?<=<\|YaYi\|>).*?<\|End\|>", re.DOTALL)
    for conversation in CONVERSATIONS:
        text = render(conversation)
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [match.span() for match in answered.finditer(text)]
        assert len(spans) == len(conversation.turns)
        expected = [
            token if any(start <= left < end for start, end in spans) else -100
            for token, (left, _) in zip(whole.input_ids, whole.offset_mapping, strict=True)
        ]
        assert encode(conversation, tokenizer)["labels"] == expected, conversation


def test_a_prompt_is_a_prefix_of_what_training_sees(tokenizer) -> None:
    for conversation in CONVERSATIONS:
        ids = encode(conversation, tokenizer)["input_ids"]
        for prompt in prompts(conversation):
            prompt_ids = encode_prompt(prompt, tokenizer)
            assert prompt_ids == ids[: len(prompt_ids)]
            assert prompt_ids == tokenizer(render(prompt), add_special_tokens=False).input_ids


@pytest.mark.parametrize("literal", [*CONTROL_TOKENS, "</s>", "<pad>"])
def test_a_control_token_that_somebody_typed_stays_text(tokenizer, literal: str) -> None:
    control_ids = tokenizer.convert_tokens_to_ids([*CONTROL_TOKENS, "</s>", "<pad>"])

    def control_tokens(conversation: Conversation) -> list[int]:
        return [token for token in encode(conversation, tokenizer)["input_ids"] if token in control_ids]

    plain = Conversation((Turn("a x b", "c x d"), Turn("e x", "x")), "s x")
    typed = Conversation(
        tuple(Turn(t.human.replace("x", literal), t.yayi.replace("x", literal)) for t in plain.turns),
        plain.system.replace("x", literal),
    )
    assert control_tokens(typed) == control_tokens(plain)
    encoded = encode(typed, tokenizer)
    assert tokenizer.decode(encoded["input_ids"]) == render(typed)
    supervised = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(supervised) == f":\nc {literal} d\n\n<|End|>:\n{literal}\n\n<|End|>"


def test_the_private_use_character_is_the_one_that_text_loses(tokenizer) -> None:
    encoded = encode(Conversation((Turn("a\ue000b", "<\ue000|End|>"),)), tokenizer)
    assert tokenizer.decode(encoded["input_ids"]) == render(Conversation((Turn("ab", "<|End|>"),)))


def test_encode_wants_an_answer_and_encode_prompt_none(tokenizer) -> None:
    with pytest.raises(ValueError, match="no answer"):
        encode(Conversation((Turn("q"),)), tokenizer)
    with pytest.raises(ValueError, match="answer already"):
        encode_prompt(Conversation((Turn("q", "a"),)), tokenizer)


def test_a_text_that_cannot_fit_is_counted_in_parts_and_what_fits_is_exact(tokenizer, monkeypatch) -> None:
    """A row of 52 MB took 4.9 GB, and takes 0.3 GB."""
    short, long = Turn("q", "a"), Turn("问", "答 x" * 50_000)
    whole = [encode(Conversation(turns), tokenizer) for turns in ((short, long, short), (long,))]
    lengths = []
    calls = encoding._encodings
    monkeypatch.setattr(
        encoding, "_encodings", lambda _, texts: lengths.extend(map(len, texts)) or calls(_, texts)
    )
    found = encode_turns([Conversation((short, long, short)), Conversation((long,))], tokenizer, 100)
    assert max(lengths) == encoding.LONG_TEXT
    for one, expected in zip(found, whole, strict=True):
        assert one.input_ids == expected["input_ids"][: len(one.input_ids)]
        assert len(one.input_ids) <= 100
        assert one.turn_ends[-1] == pytest.approx(len(expected["input_ids"]), abs=5)
    first_turn = encode(Conversation((short,)), tokenizer)["input_ids"]
    assert found[0].input_ids[: found[0].turn_ends[0]] == first_turn
    assert found[0].answers[0][1] == len(first_turn)

    # One that may fit is tokenized in one piece.
    found = encode_turns([Conversation((long,))], tokenizer, len(whole[1]["input_ids"]))
    assert found[0].input_ids == whole[1]["input_ids"]


def test_a_tokenizer_without_control_tokens_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match="load_tokenizer"):
        encode(Conversation((Turn("q", "a"),)), AutoTokenizer.from_pretrained(base))


def served_ids_and_labels(tokenizer, messages: list[dict]) -> dict[str, list[int]]:
    """The ids of the chat template, and labels made as TRL's `assistant_only_loss` makes them."""
    served = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
    pairs = zip(served.input_ids, served.assistant_masks, strict=True)
    return {"input_ids": served.input_ids, "labels": [token if mask else -100 for token, mask in pairs]}


def test_the_saved_chat_template_renders_our_text_and_tokenizes_to_our_ids(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    for conversation in CONVERSATIONS:
        if any(turn.yayi.startswith("\n") or turn.yayi.endswith("\n\n") for turn in conversation.turns):
            continue  # the template takes these off; the next test looks at that
        messages = messages_of(conversation)
        assert plain.apply_chat_template(messages, tokenize=False) == render(conversation)
        assert served_ids_and_labels(plain, messages) == encode(conversation, tokenizer)
        prompt = prompts(conversation)[-1]
        asked = plain.apply_chat_template(messages_of(prompt), add_generation_prompt=True)
        assert asked.input_ids == encode_prompt(prompt, tokenizer)


def test_the_chat_template_takes_the_raw_text_of_an_answer_back(tokenizer) -> None:
    raw = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\n\na\n\n\n"}]
    expected = render(Conversation((Turn("q", "\na\n"),)))
    assert tokenizer.apply_chat_template(raw, tokenize=False) == expected


@pytest.mark.parametrize("literal", [*CONTROL_TOKENS, "</s>", "<pad>"])
def test_the_chat_template_keeps_typed_control_tokens_text(tokenizer, literal: str) -> None:
    conversation = Conversation((Turn(f"{literal}{literal}", f"x{literal}"), Turn(literal)), f"<{literal}>")
    asked = tokenizer.apply_chat_template(messages_of(conversation), add_generation_prompt=True)
    assert asked.input_ids == encode_prompt(conversation, tokenizer)
    answered = replace(conversation, turns=(*conversation.turns[:1], Turn(literal, literal)))
    assert served_ids_and_labels(tokenizer, messages_of(answered)) == encode(answered, tokenizer)


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant"],
        ["user", "user"],
        ["user", "system"],
        ["system", "assistant"],
        ["user", "tool"],
        ["system", "developer", "user"],
    ],
)
def test_the_chat_template_refuses_a_dialogue_that_does_not_alternate(tokenizer, roles: list) -> None:
    with pytest.raises(Exception, match="alternate"):
        tokenizer.apply_chat_template([{"role": role, "content": "x"} for role in roles], tokenize=False)


@pytest.fixture(scope="module")
def joining_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """A tokenizer that has tokens for ":\\n" and ":\\n\\n", as Qwen's."""
    directory = tmp_path_factory.mktemp("joining")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+|[^\\s]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    texts = [":\n", ":\n\n", "。\n\n", "a b"] * 50
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "qwen2"}')
    return load_tokenizer(str(directory))


def test_where_a_tokenizer_joins_the_header_the_prompt_takes_all_of_it(joining_tokenizer, tokenizer) -> None:
    assert answer_header(tokenizer) == ":"
    assert answer_header(joining_tokenizer) == ":\n"
    assert len(joining_tokenizer(":\n\n").input_ids) == 1
    for conversation in CONVERSATIONS:
        ids = encode(conversation, joining_tokenizer)["input_ids"]
        assert joining_tokenizer.decode(ids) == render(conversation)
        for prompt in prompts(conversation):
            prompt_ids = encode_prompt(prompt, joining_tokenizer)
            assert prompt_ids == ids[: len(prompt_ids)]
    asked = joining_tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], add_generation_prompt=True
    )
    assert asked.input_ids == encode_prompt(Conversation((Turn("q"),)), joining_tokenizer)
