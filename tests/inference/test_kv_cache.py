import os
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

from inference.dialogue import Dialogue
from inference.generation import answer_text, generation_config, load, stream
from inference.kv_cache import KVCache
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode_prompt

# The system text with which the model knows its dialogue, and no answer is cut off.
KNOWN = "你是一名记者。"
GREEDY = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 14}

QUESTIONS = ["标题？", "再短一点。", "你是谁", "笑一个", "List two fruits.\nred, yellow"]
DIALOGUES = int(os.environ.get("YAYI_TEST_DIALOGUES", "25"))


@pytest.fixture(scope="module")
def loaded(tuned: str):
    return load(tuned, dtype="float32")


@pytest.fixture(scope="module")
def plain(tuned: str):
    """transformers' own model, with the same weights."""
    return AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32).eval()


def from_scratch(plain, tokenizer, conversation: Conversation) -> str:
    prompt_ids = encode_prompt(conversation, tokenizer)
    ids = plain.generate(torch.tensor([prompt_ids]), generation_config=generation_config(tokenizer, **GREEDY))
    return "".join(answer_text(tokenizer, ids[0, len(prompt_ids) :].tolist()))


def cache_of(tokens: int) -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, tokens, 4), torch.zeros(1, 1, tokens, 4), 0)
    return cache


@pytest.mark.parametrize(
    ("kept", "prompt", "recalled"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4, 5], 4),
        ([1, 2, 3, 4], [1, 2, 9, 4, 5], 2),
        ([1, 2, 3, 4], [1, 2, 3, 4], 3),  # the last has to be read to go on from it
        ([1, 2, 3, 4], [1, 2], 1),
        ([1, 2, 3, 4], [9, 2, 3, 4], 0),
    ],
)
def test_the_common_beginning_is_recalled(kept: list[int], prompt: list[int], recalled: int) -> None:
    kv_cache = KVCache()
    kv_cache.keep(cache_of(len(kept)), [*kept, 77])
    assert len(kv_cache) == len(kept)
    assert kv_cache.recall(prompt).get_seq_length() == recalled
    assert len(kv_cache) == 0  # until the answer is there


def test_a_turn_reads_its_own_tokens_only(loaded) -> None:
    model, tokenizer = loaded
    kv_cache, turns, read, was_ended = KVCache(), (), [], True
    hook = model.transformer.h[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    for human in ("标题？", "再短一点。", "你是谁", "你是谁"):
        read.clear()
        with stream(
            model, tokenizer, Conversation((*turns, Turn(human)), KNOWN), kv_cache=kv_cache, **GREEDY
        ) as answer:
            text = "".join(answer)
        assert read[0] == answer.prompt_tokens - answer.recalled_tokens
        assert read[1:] == [1] * (answer.tokens - 1)
        if turns:
            # what stands around an answer, and the new turn; the last token of one that was cut off, too
            around = tokenizer(f"\n\n<|End|><|Human|>:\n{human}\n\n<|YaYi|>:").input_ids
            assert read[0] <= len(around) + (not was_ended)
        turns, was_ended = (*turns, Turn(human, text)), answer.ended
    hook.remove()


def test_a_failure_half_way_leaves_nothing_behind(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    kv_cache, conversation = KVCache(), Conversation((Turn("你是谁"),))
    with stream(model, tokenizer, conversation, kv_cache=kv_cache, **GREEDY) as answer:
        expected = "".join(answer)
    monkeypatch.setattr(model.transformer.ln_f, "forward", lambda _: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        stream(model, tokenizer, conversation, kv_cache=kv_cache, **GREEDY) as answer,
    ):
        list(answer)
    assert len(kv_cache) == 0
    monkeypatch.undo()
    with stream(model, tokenizer, conversation, kv_cache=kv_cache, **GREEDY) as answer:
        assert "".join(answer) == expected


@pytest.mark.slow
def test_random_dialogues_get_the_answers_of_reading_everything_anew(loaded, plain) -> None:
    """Turns are taken back, asked again and stopped; questions return, so that dialogues begin alike."""
    model, tokenizer = loaded
    for seed in range(DIALOGUES):
        chance = random.Random(seed)
        kv_cache, dialogue = KVCache(), Dialogue(chance.choice(["", "你是一名记者。"]))
        for _ in range(6):
            act = chance.choice(["ask", "ask", "stop", "undo", "retry"])
            human = chance.choice(
                ["标题？", "再短一点。", "你是谁", "笑一个", "List two fruits.\nred, yellow"]
            )
            if dialogue.turns and act in ("undo", "retry"):
                last = dialogue.take_back()
                if act == "undo":
                    continue
                human = last.human
            prompt = dialogue.prompt(human, tokenizer, room=10_000)
            pieces, most = [], chance.randrange(6) if act == "stop" else 1_000
            how = {"input_ids": prompt.input_ids, "kv_cache": kv_cache, **GREEDY}
            with stream(model, tokenizer, prompt.conversation, **how) as answer:
                for piece in answer:
                    if len(pieces) >= most:
                        break
                    pieces.append(piece)
            expected, said = from_scratch(plain, tokenizer, prompt.conversation), "".join(pieces)
            assert said == expected if most > len(pieces) else expected.startswith(said), (seed, prompt)
            if said:
                dialogue.add(Turn(human, said))


def test_other_architectures_remember_too(loaded) -> None:
    _, tokenizer = loaded
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    ).eval()
    kv_cache, turns = KVCache(), ()
    for human in ("你是谁", "标题？"):
        prompt = Conversation((*turns, Turn(human)))
        with stream(model, tokenizer, prompt, kv_cache=kv_cache, **GREEDY) as answer:
            text = "".join(answer)
        assert text == from_scratch(model, tokenizer, prompt)
        turns = (*turns, Turn(human, text))
    assert answer.recalled_tokens > 0.5 * answer.prompt_tokens
