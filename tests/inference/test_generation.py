import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, StoppingCriteriaList

from inference.generation import KeywordsStoppingCriteria, context_length, load, reply, stream
from tests.conftest import LEARNT
from tests.text.test_template import EARLIER
from training.common.errors import UserError
from training.consts import END
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import encode, encode_prompt

GREEDY = {"temperature": 0, "repetition_penalty": 1.0}
CONVERSATIONS = [from_row(row) for row in LEARNT]


def prompt_of(conversation: Conversation) -> Conversation:
    return Conversation((*conversation.turns[:-1], Turn(conversation.turns[-1].human)), conversation.system)


@pytest.fixture(scope="module")
def loaded(tuned: str):
    return load(tuned)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda c: c.turns[-1].human)
def test_the_answer_is_what_was_taught_and_nothing_around_it(loaded, conversation: Conversation) -> None:
    with stream(*loaded, prompt_of(conversation), **GREEDY) as answer:
        pieces = list(answer)
    assert "".join(pieces) == answer.text == conversation.turns[-1].yayi
    assert answer.ended
    assert not any("\ufffd" in piece for piece in pieces)
    assert reply(*loaded, prompt_of(conversation), **GREEDY) == answer.text


def test_an_answer_comes_in_pieces_of_whole_characters(loaded) -> None:
    _, tokenizer = loaded
    taught = CONVERSATIONS[2]
    assert taught.turns[0].yayi == "😀🀄𠮷 好"
    assert len(tokenizer("😀").input_ids) > 1
    with stream(*loaded, prompt_of(taught), **GREEDY) as answer:
        assert [character for piece in answer for character in piece] == list("😀🀄𠮷 好")


def test_the_length_limit_cuts_an_answer_and_says_so(loaded) -> None:
    with stream(*loaded, prompt_of(CONVERSATIONS[0]), max_new_tokens=3, **GREEDY) as answer:
        text = "".join(answer)
    assert CONVERSATIONS[0].turns[0].yayi.startswith(text)
    assert not answer.ended


def test_leaving_early_stops_the_model(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    monkeypatch.setattr(model.generation_config, "top_k", 0)
    tokens = []
    hook = model.register_forward_hook(lambda *_: tokens.append(1))
    torch.manual_seed(0)
    # At this temperature any token is as likely as `<|End|>`: the answer would have about 1000 tokens.
    with stream(model, tokenizer, Conversation((Turn("q"),)), temperature=1e4, max_new_tokens=1000) as answer:
        first = next(iter(answer))
    hook.remove()
    assert answer.text == first
    assert not answer.ended
    assert len(tokens) < 100


def test_greedy_answers_are_those_of_plain_generate(loaded) -> None:
    model, tokenizer = loaded
    prompt = encode_prompt(prompt_of(CONVERSATIONS[3]), tokenizer)
    ids = model.generate(torch.tensor([prompt]), do_sample=False, repetition_penalty=1.0)[0].tolist()
    assert ids == encode(CONVERSATIONS[3], tokenizer)["input_ids"]


def test_sampling_is_repeatable_by_seed_and_differs_without(loaded) -> None:
    prompt = Conversation((Turn("unheard of"),))

    def sampled(seed: int) -> str:
        torch.manual_seed(seed)
        return reply(*loaded, prompt, temperature=3.0, max_new_tokens=20)

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_a_fault_of_the_model_reaches_the_reader(loaded) -> None:
    model, tokenizer = loaded

    class Broken:
        device, config = model.device, model.config

        def generate(self, *args, **kwargs) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        reply(Broken(), tokenizer, Conversation((Turn("q"),)))


def test_keywords_stop_each_row_of_a_batch_by_itself() -> None:
    stop = KeywordsStoppingCriteria([5, 7])
    input_ids = torch.tensor([[7, 1, 5], [5, 7, 1], [1, 1, 7]])
    assert stop(input_ids, torch.zeros(3, 10)).tolist() == [True, False, True]


def test_keywords_end_a_batch_of_left_padded_prompts(loaded) -> None:
    model, tokenizer = loaded
    prompts = [tokenizer.decode(encode_prompt(prompt_of(c), tokenizer)) for c in CONVERSATIONS]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    end = tokenizer.convert_tokens_to_ids(END)
    ids = model.generate(
        **batch,
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=40,
        eos_token_id=None,
        pad_token_id=end,
        stopping_criteria=StoppingCriteriaList([KeywordsStoppingCriteria([end])]),
    )
    for row, conversation in zip(ids[:, batch.input_ids.shape[1] :], CONVERSATIONS, strict=True):
        assert tokenizer.decode(row).partition(END)[0] == f"\n{conversation.turns[-1].yayi}\n\n"
    longest = max(row.tolist().index(end) for row in ids[:, batch.input_ids.shape[1] :])
    assert ids.shape[1] == batch.input_ids.shape[1] + longest + 1


def test_a_model_that_was_never_taught_to_chat_is_refused(base: str) -> None:
    with pytest.raises(UserError, match="fine-tune it first"):
        load(base)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(tuned: str, device: str) -> None:
    with pytest.raises(UserError, match=f"--device {device}"):
        load(tuned, device=device)


def test_dtype_and_device_are_as_asked(tuned: str) -> None:
    model, _ = load(tuned, dtype="bfloat16", device="cpu")
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")
    assert load(tuned)[0].dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_in_few_bits_is_smaller_and_still_answers(tuned: str, loaded, bits: int) -> None:
    model, tokenizer = load(tuned, bits=bits)
    assert {type(layer).__name__ for layer in model.transformer.h[0].modules()} >= {
        {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    }
    # The head is the embedding, and stays what it is.
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    blocks, whole = (
        sum(weight.numel() * weight.element_size() for weight in one.transformer.h.parameters())
        for one in (model, loaded[0])
    )
    assert blocks < whole / (32 / bits) * 1.5
    for conversation in CONVERSATIONS:
        assert reply(model, tokenizer, prompt_of(conversation), **GREEDY) == conversation.turns[-1].yayi


def test_a_model_that_was_taught_another_text_is_refused(tuned: str, tmp_path) -> None:
    shutil.copytree(tuned, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match="other: its chat template is not the one of this recipe"):
        load(str(tmp_path / "other"))


def test_a_model_that_was_saved_with_an_earlier_template_is_loaded(tuned: str, loaded, tmp_path) -> None:
    shutil.copytree(tuned, tmp_path / "earlier")
    (tmp_path / "earlier" / "chat_template.jinja").write_text(EARLIER)
    model, tokenizer = load(str(tmp_path / "earlier"))
    assert tokenizer.chat_template == loaded[1].chat_template
    assert reply(model, tokenizer, prompt_of(CONVERSATIONS[0]), **GREEDY) == CONVERSATIONS[0].turns[0].yayi


def test_a_model_of_the_original_release_has_no_template_and_is_loaded(tuned: str, loaded, tmp_path) -> None:
    shutil.copytree(tuned, tmp_path / "original")
    (tmp_path / "original" / "chat_template.jinja").unlink()
    other = load(str(tmp_path / "original"))
    assert reply(*other, prompt_of(CONVERSATIONS[0]), **GREEDY) == CONVERSATIONS[0].turns[0].yayi


def test_missing_control_tokens_are_named(base: str) -> None:
    with pytest.raises(UserError, match=r"has no <\|System\|>, <\|Human\|>, <\|YaYi\|>, <\|End\|>; fi"):
        load(base)


def test_the_context_is_what_the_configuration_says_or_what_training_takes(loaded) -> None:
    assert context_length(loaded[0]) == loaded[0].config.seq_length == 2048  # written by the trainer
    of = SimpleNamespace
    for fields, expected in (({"max_position_embeddings": 77}, 77), ({"seq_length": 99}, 99), ({}, 2048)):
        model = of(config=of(get_text_config=lambda fields=fields: of(**fields)))
        assert context_length(model) == expected


def test_weights_in_a_format_that_can_carry_code_are_refused(tuned: str, tmp_path) -> None:
    shutil.copytree(tuned, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tuned)
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled: no causal language model .*safetensors"):
        load(str(tmp_path / "pickled"))
