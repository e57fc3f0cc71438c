"""The whole recipe on bases of three kinds: BLOOM's, Llama's, whose head is not its embedding, and Qwen's.

Their tokenizers differ where a conversation is cut: at ":" and newlines, at the start of a text, at spaces.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from evaluation.likelihood import answer_ids, log_likelihoods
from inference.batch_answers import answer_batch
from inference.generation import answer_text, generation_config, load, reply, stream
from inference.kv_cache import KVCache
from tests.conftest import LEARNT, SINGLE_TURN, write_rows
from tests.inference.prompts import messages_of
from tests.text.test_encoding import CONVERSATIONS, prompts, served_ids_and_labels
from tests.tiny_models import TOKENIZERS, make_llama, make_qwen
from training import check, merge_adapter, trainer
from training.consts import BREAKER, CONTROL_TOKENS, END, HUMAN, SYSTEM, YAYI
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import answer_header, encode, encode_prompt
from training.text.template import render
from training.text.tokenizer import load_base_tokenizer, load_tokenizer, save_tokenizer, special_tokens

SHAPES = ["bloom", "llama", "qwen"]
OTHERS = ["llama", "qwen"]

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]

# Each turn of LEARNT: the conversation up to its question, and the answer that was taught.
KNOWN = [
    (prompt, turn.yayi)
    for conversation in map(from_row, LEARNT)
    for prompt, turn in zip(prompts(conversation), conversation.turns, strict=True)
]


@pytest.fixture(scope="module")
def bases(base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("bases")
    return {
        "bloom": base,
        "llama": make_llama(directory / "tiny-llama"),
        "qwen": make_qwen(directory / "tiny-qwen"),
    }


def train(base: str, directory: Path, run_name: str, more: str) -> Path:
    rows = write_rows(directory / "learnt.jsonl", LEARNT)
    arguments = (
        f"--data-path {rows} --input-model {base} --local-output-dir {directory} --run-name {run_name} "
        f"--cache-dir {directory / 'cache'} --no-bf16 --no-gradient-checkpointing --warmup-steps 5 "
        f"--per-device-train-batch-size 4 --logging-steps 1 {more}"
    )
    trainer.main.main(arguments.split(), standalone_mode=False)
    return directory / run_name / "model"


@pytest.fixture(scope="module")
def trained(bases: dict[str, str], tuned: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of models that were taught LEARNT by heart, with all weights trainable."""
    more = "--test-size 0 --max-steps 60 --lr 1e-2 --lr-scheduler linear"
    others = {shape: train(bases[shape], tmp_path_factory.mktemp(shape), "run", more) for shape in OTHERS}
    return {"bloom": Path(tuned), **others}


@pytest.fixture(scope="module", params=SHAPES)
def model_dir(request: pytest.FixtureRequest, trained: dict[str, Path]) -> Path:
    return trained[request.param]


@pytest.fixture(scope="module")
def loaded(model_dir: Path) -> Loaded:
    return load(str(model_dir), device="cpu")


def test_the_answers_are_those_that_were_taught(loaded: Loaded) -> None:
    for prompt, answer in KNOWN:
        assert reply(*loaded, prompt, temperature=0, repetition_penalty=1.0) == answer


def test_a_dialogue_is_read_once(loaded: Loaded) -> None:
    cache = KVCache()
    for prompt, answer in KNOWN[-2:]:
        with stream(*loaded, prompt, kv_cache=cache, temperature=0, repetition_penalty=1.0) as said:
            assert "".join(said) == answer
    first, second = (encode_prompt(prompt, loaded[1]) for prompt, _ in KNOWN[-2:])
    assert len(first) < said.recalled_tokens < len(second)


def test_plain_transformers_says_the_same(model_dir: Path, loaded: Loaded) -> None:
    """Our code takes no part: the saved directory and its chat template are enough."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for prompt, answer in KNOWN:
        inputs = tokenizer.apply_chat_template(
            messages_of(prompt), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        prompt_ids = encode_prompt(prompt, loaded[1])
        assert inputs.input_ids[0].tolist() == prompt_ids
        said, ours = (
            each.generate(**inputs, do_sample=False, repetition_penalty=1.0)[0, len(prompt_ids) :].tolist()
            for each in (model, loaded[0])
        )
        assert said == ours
        assert tokenizer.decode(said).strip("\n") == f"{answer}\n\n{END}"


def test_plain_transformers_takes_nothing_typed_for_a_special_token(model_dir: Path) -> None:
    """For a "qwen2" AutoTokenizer always makes a Qwen2Tokenizer, with that class's own normalizer: there the
    private-use character that the template puts into such a text stays.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ours = load_tokenizer(str(model_dir))
    special = special_tokens(ours)
    prompt = Conversation((Turn("".join(special), "".join(special)), Turn("再见")), "".join(special))
    asked = tokenizer.apply_chat_template(messages_of(prompt), add_generation_prompt=True).input_ids
    assert [token for token in tokenizer.convert_ids_to_tokens(asked) if token in special] == [
        SYSTEM, HUMAN, YAYI, END, HUMAN, YAYI,
    ]  # fmt: skip
    text = tokenizer.decode(asked)
    assert (BREAKER in text) == (type(tokenizer) is Qwen2Tokenizer)
    assert text.replace(BREAKER, "") == ours.decode(encode_prompt(prompt, ours))


def test_a_batch_and_likelihoods_are_those_of_one_at_a_time(loaded: Loaded) -> None:
    model, tokenizer = loaded
    prompt_ids = [encode_prompt(prompt, tokenizer) for prompt, _ in KNOWN]
    config = generation_config(tokenizer, temperature=0, repetition_penalty=1.0)
    assert [said.answer for said in answer_batch(model, tokenizer, prompt_ids, config)] == [
        answer for _, answer in KNOWN
    ]
    answers = [answer_ids(prompt, [answer, "别的"], tokenizer) for prompt, answer in KNOWN]
    together = log_likelihoods(model, prompt_ids, answers)
    alone = [log_likelihoods(model, [ids], [two])[0] for ids, two in zip(prompt_ids, answers, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
        assert one[0] > -1 > one[1]


def history(model_dir: Path, name: str) -> list[float]:
    newest = max(model_dir.parent.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    logged = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in logged if name in entry]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "lora"), [("llama", "--lora-rank 4"), ("qwen", "")])
def test_a_continued_run_gives_what_an_undisturbed_one_does(
    bases: dict[str, str], tmp_path: Path, shape: str, lora: str
) -> None:
    more = f"--test-size 1 --eval-steps 2 --save-steps 2 --lr 1e-2 {lora} --max-steps"
    whole = train(bases[shape], tmp_path, "whole", f"{more} 4")
    train(bases[shape], tmp_path, "parts", f"{more} 2")
    parts = train(bases[shape], tmp_path, "parts", f"{more} 4 --resume")
    name = "adapter_model" if lora else "model"
    one, other = (load_file(directory / f"{name}.safetensors") for directory in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load_file(whole.parent / "checkpoint-4" / f"{name}.safetensors").keys() == one.keys()
    assert len(history(whole, "loss")) == 4
    assert len(history(whole, "eval_loss")) == 2
    assert history(parts, "eval_loss") == history(whole, "eval_loss")


@pytest.mark.slow
@pytest.mark.parametrize("shape", OTHERS)
def test_an_adapter_trains_the_rows_of_new_tokens_and_merges(
    bases: dict[str, str], tmp_path: Path, outcome, shape: str
) -> None:
    base = bases[shape]
    adapter = train(base, tmp_path, "adapter", "--test-size 0 --lora-rank 8 --max-steps 60 --lr 2e-2")
    merged_dir = tmp_path / "merged"
    status, _, err = outcome(merge_adapter.main, f"--adapter {adapter} --output-dir {merged_dir}")
    assert (status, err) == (0, "")
    for path in (adapter, merged_dir):
        assert [reply(*load(str(path), device="cpu"), prompt, temperature=0) for prompt, _ in KNOWN] == [
            answer for _, answer in KNOWN
        ], path

    known = set(load_base_tokenizer(base).get_vocab().values())
    tokenizer = load_tokenizer(base)
    new = tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
    assert {*new, tokenizer.pad_token_id} - known == {*tokenizer.get_vocab().values()} - known
    merged, original = (AutoModelForCausalLM.from_pretrained(path) for path in (merged_dir, base))
    matrices = [
        (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        for model in (merged, original)
    ]
    assert (matrices[0][0] is matrices[0][1]) == (shape == "qwen")
    for trained, before in zip(*matrices, strict=True):
        old = sorted(known)
        assert torch.equal(trained[old], before[old])
        # They started 0.008 from the mean.
        assert (trained[new] - before[old].mean(dim=0)).norm(dim=1).min() > 0.3


@pytest.mark.parametrize("shape", OTHERS)
def test_a_data_file_is_checked(bases: dict[str, str], outcome, shape: str) -> None:
    status, out, _ = outcome(check.main, f"--data-path {SINGLE_TURN} --input-model {bases[shape]}")
    assert status == 0
    assert "我是雅意（YaYi），由中科闻歌研发" in out


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of one kind, as bases have it and with the control tokens added."""
    directory = tmp_path_factory.mktemp("tokenizer")
    config = {"model_type": "qwen3" if request.param == "qwen" else "llama"}
    TOKENIZERS[request.param]().save_pretrained(directory / "found")
    (directory / "found" / "config.json").write_text(json.dumps(config))
    save_tokenizer(load_tokenizer(str(directory / "found")), directory / "taught")
    (directory / "taught" / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def tokenizer(saved: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(str(saved / "found"))


@pytest.fixture(scope="module")
def plain(saved: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(saved / "taught")


def test_text_goes_in_and_comes_out_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    for conversation in CONVERSATIONS:
        ids = encode(conversation, tokenizer)["input_ids"]
        assert tokenizer.decode(ids) == render(conversation)
        for prompt, turn in zip(prompts(conversation), conversation.turns, strict=True):
            prompt_ids = encode_prompt(prompt, tokenizer)
            assert prompt_ids == ids[: len(prompt_ids)]
            (answer,) = answer_ids(prompt, [turn.yayi], tokenizer)
            assert "".join(answer_text(tokenizer, answer)) == turn.yayi


def test_the_saved_tokenizer_gives_our_ids(
    tokenizer: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast, saved: Path
) -> None:
    again = load_tokenizer(str(saved / "taught"))
    assert again.chat_template == tokenizer.chat_template == plain.chat_template
    assert plain("").input_ids == []
    joins = answer_header(tokenizer) != ":"
    for conversation in CONVERSATIONS:
        ids = encode(conversation, tokenizer)["input_ids"]
        assert encode(conversation, again)["input_ids"] == ids
        if any(turn.yayi.startswith("\n") or turn.yayi.endswith("\n\n") for turn in conversation.turns):
            continue  # the template takes these off
        prompt = prompts(conversation)[-1]
        asked = plain.apply_chat_template(messages_of(prompt), add_generation_prompt=True)
        assert asked.input_ids == encode_prompt(prompt, tokenizer)
        if not joins:
            assert plain(render(conversation)).input_ids == ids
            assert served_ids_and_labels(plain, messages_of(conversation)) == encode(conversation, tokenizer)


def test_what_looks_like_a_special_token_stays_text(
    tokenizer: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast
) -> None:
    special = special_tokens(tokenizer)
    assert set(CONTROL_TOKENS) < set(special)
    special_ids = set(tokenizer.convert_tokens_to_ids(special))
    for literal in special:
        prompt = Conversation(
            (Turn(f"{literal}{literal}", f"x{literal}"), Turn(f" {literal}")), f"<{literal}>"
        )
        ids = encode_prompt(prompt, tokenizer)
        found = [token for token in ids if token in special_ids]
        assert tokenizer.convert_ids_to_tokens(found) == [SYSTEM, HUMAN, YAYI, END, HUMAN, YAYI]
        assert tokenizer.decode(ids) == render(prompt) + answer_header(tokenizer).removeprefix(":")
        asked = plain.apply_chat_template(messages_of(prompt), add_generation_prompt=True)
        assert asked.input_ids == ids
    lost = Conversation((Turn(f"a{BREAKER}b", f"<{BREAKER}|End|>"),))
    assert tokenizer.decode(encode(lost, tokenizer)["input_ids"]) == render(lost).replace(BREAKER, "")


def test_whatever_a_model_says_is_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Tokens may also be bytes that make no character."""
    generator = torch.Generator().manual_seed(0)
    for most in (300, len(tokenizer)) * 100:  # ids of single bytes only, and of all tokens
        ids = torch.randint(most, (20,), generator=generator).tolist()
        assert isinstance("".join(answer_text(tokenizer, ids)), str)
