"""A model that our trainer saved, in other people's tools: without our code they give our greedy answer."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import ctranslate2
import datasets
import openai
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TextGenerationPipeline,
    pipeline,
)

from evaluation import tools
from inference.generation import load, reply
from tests.conftest import LEARNT, LEARNT_WITH_TOOLS, TOOLS, write_rows
from tests.inference.prompts import TYPED, Messages, messages_of
from tests.launching import Running, free_port, kill, run
from training.consts import END, HUMAN, SYSTEM, YAYI
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import encode, encode_prompt

pytestmark = pytest.mark.slow

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}

# The tokens that are asked for where an answer may not end, and so goes on beyond the taught text.
LONG = 60

PROMPTS = [
    Conversation((*known.turns[:asked], Turn(known.turns[asked].human)), known.system)
    for known in map(from_row, LEARNT)
    for asked in range(len(known.turns))
]


def each_of(prompts: list[Conversation]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("prompt", prompts, ids=lambda prompt: prompt.turns[-1].human)


each_taught, each_prompt = each_of(PROMPTS), each_of([*PROMPTS, *TYPED])


@pytest.fixture(scope="module")
def loaded(tuned: str) -> Loaded:
    return load(tuned, device="cpu")


def our_tokens(loaded: Loaded, prompt: Conversation, **limits: int) -> list[int]:
    model, tokenizer = loaded
    prompt_ids = encode_prompt(prompt, tokenizer)
    return model.generate(torch.tensor([prompt_ids]), **GREEDY, **limits)[0, len(prompt_ids) :].tolist()


def our_long_tokens(loaded: Loaded, prompt: Conversation) -> list[int]:
    return our_tokens(loaded, prompt, min_new_tokens=LONG, max_new_tokens=LONG)


def our_text(loaded: Loaded, prompt: Conversation) -> str:
    """Our answer, with the newline and the blank line around it, which only our code takes off."""
    return f"\n{reply(*loaded, prompt, temperature=0, repetition_penalty=1.0)}\n\n"


@pytest.fixture(scope="module")
def plain(tuned: str) -> Loaded:
    return AutoModelForCausalLM.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned)


@each_prompt
def test_plain_transformers_gives_our_tokens(plain: Loaded, loaded: Loaded, prompt: Conversation) -> None:
    model, tokenizer = plain
    assert type(model) is BloomForCausalLM
    inputs = tokenizer.apply_chat_template(
        messages_of(prompt), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    def their_tokens(**limits: int) -> list[int]:
        return model.generate(**inputs, **GREEDY, **limits)[0, inputs.input_ids.shape[1] :].tolist()

    if prompt in PROMPTS:
        assert their_tokens() == our_tokens(loaded, prompt)
        assert tokenizer.decode(their_tokens()) == our_text(loaded, prompt) + END
    assert their_tokens(min_new_tokens=LONG, max_new_tokens=LONG) == our_long_tokens(loaded, prompt)


@each_of(TYPED)
def test_the_saved_chat_template_takes_nothing_typed_for_a_control_token(
    plain: Loaded, loaded: Loaded, prompt: Conversation
) -> None:
    tokenizer = plain[1]
    prompt_ids = tokenizer.apply_chat_template(messages_of(prompt), add_generation_prompt=True).input_ids
    assert prompt_ids == encode_prompt(prompt, loaded[1])
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    found = [token for token in tokenizer.convert_ids_to_tokens(prompt_ids) if token in special]
    assert found == [SYSTEM, *[HUMAN, YAYI, END] * len(prompt.turns)][:-1]


@pytest.fixture(scope="module")
def generator(tuned: str) -> TextGenerationPipeline:
    return pipeline("text-generation", model=tuned, device="cpu")


@each_taught
def test_a_pipeline_gives_our_text(
    generator: TextGenerationPipeline, loaded: Loaded, prompt: Conversation
) -> None:
    messages = messages_of(prompt)
    answer = {"role": "assistant", "content": our_text(loaded, prompt)}
    assert generator(messages, **GREEDY) == [{"generated_text": [*messages, answer]}]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Running, str]]:
    """The address of `transformers serve`, which is running, and loads the models that it is asked for."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    running = Running(
        "transformers", "serve", "--device=cpu", "--host=127.0.0.1", f"--port={port}",
        HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    try:
        assert running.wait_until(lambda: is_healthy(address), seconds=180), running.output
        yield running, address
    finally:
        kill(running.family())
        running.finish()


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=10) as answer:
            return json.load(answer) == {"status": "ok"}
    except OSError:
        return False


class Served(NamedTuple):
    text: str
    finish_reason: str
    prompt_tokens: int
    answer_tokens: int


@pytest.fixture
def ask(server: tuple[Running, str], tuned: str) -> Iterator[Callable[..., Served]]:
    """Ask the server greedily, as OpenAI's client does."""
    running, address = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
    # The server samples as was saved unless told otherwise; its repetition penalty is 1 + frequency_penalty.
    greedy = {"model": tuned, "temperature": 0, "frequency_penalty": 0}

    def ask(messages: Messages, *, stream: bool = False, **options) -> Served:
        answer = client.chat.completions.create(messages=messages, stream=stream, **greedy, **options)
        if stream:
            *pieces, last = answer
            text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        else:
            last = answer
            text = answer.choices[0].message.content
        usage = last.usage
        return Served(text, last.choices[0].finish_reason, usage.prompt_tokens, usage.completion_tokens)

    with client:
        yield ask
    print(running.output)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@each_taught
def test_the_server_gives_our_text_and_stops(
    ask: Callable[..., Served], loaded: Loaded, prompt: Conversation, stream: bool
) -> None:
    assert ask(messages_of(prompt), stream=stream) == Served(
        text=our_text(loaded, prompt),
        finish_reason="stop",
        prompt_tokens=len(encode_prompt(prompt, loaded[1])),
        answer_tokens=len(our_tokens(loaded, prompt)),
    )


@each_prompt
def test_the_server_goes_on_as_we_do_where_nothing_was_taught(
    ask: Callable[..., Served], loaded: Loaded, prompt: Conversation
) -> None:
    tokenizer = loaded[1]
    # The least that OpenAI allows; a float, because transformers 5.23 answers 500 to an integer.
    never = {tokenizer.convert_tokens_to_ids(END): -100.0}
    answer = ask(messages_of(prompt), logit_bias=never, max_tokens=LONG)
    tokens = our_long_tokens(loaded, prompt)
    assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert (answer.finish_reason, answer.answer_tokens) == ("length", LONG)
    assert answer.prompt_tokens == len(encode_prompt(prompt, tokenizer))


def test_an_answer_sent_back_as_it_was_served_leads_to_our_second_turn(
    ask: Callable[..., Served], loaded: Loaded
) -> None:
    first, second = PROMPTS[-2:]
    messages = messages_of(first)
    messages.append({"role": "assistant", "content": ask(messages).text})
    messages.append({"role": "user", "content": second.turns[-1].human})
    answer = ask(messages)
    assert answer.text == our_text(loaded, second) != our_text(loaded, first)
    assert answer.prompt_tokens == len(encode_prompt(second, loaded[1]))


@pytest.fixture(scope="module")
def langchain(server: tuple[Running, str], tuned: str):
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    return ChatOpenAI(
        base_url=f"{server[1]}/v1", api_key=SecretStr("none"), model=tuned, max_tokens=LONG, max_retries=0,
        temperature=0, frequency_penalty=0, timeout=60,
    )  # fmt: skip


@each_prompt
def test_langchain_gives_our_text_whole_and_streamed(langchain, loaded: Loaded, prompt: Conversation) -> None:
    messages = [{**message} for message in messages_of(prompt)]
    text = loaded[1].decode(our_tokens(loaded, prompt, max_new_tokens=LONG), skip_special_tokens=True)
    assert langchain.invoke(messages).content == text
    assert "".join(piece.content for piece in langchain.stream(messages)) == text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("dialogue", LEARNT_WITH_TOOLS, ids=lambda dialogue: dialogue[0]["content"])
def test_the_server_finds_the_calls_of_a_model_that_was_taught_tools(
    server: tuple[Running, str], tuned_with_tools: str, dialogue: Messages, stream: bool
) -> None:
    """What is sent back to it are its own messages, and the results."""
    greedy = {"model": tuned_with_tools, "temperature": 0, "frequency_penalty": 0, "tools": TOOLS}
    sent: list = []
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for message in dialogue:
            if message["role"] != "assistant":
                sent.append(message)
                continue
            answer = client.chat.completions.create(messages=sent, stream=stream, **greedy)
            parts = [part.choices[0].delta for part in answer] if stream else [answer.choices[0].message]
            said = "".join(part.content or "" for part in parts).strip()
            calls = [call.function for part in parts for call in part.tool_calls or []]
            found = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]
            taught = [call["function"] for call in message.get("tool_calls", [])]
            assert found == [call | {"arguments": json.loads(call["arguments"])} for call in taught]
            assert said == message["content"]
            sent.append(message)


def test_evaluation_asks_the_server_for_calls(
    outcome, server: tuple[Running, str], tuned_with_tools: str, tmp_path: Path
) -> None:
    rows = [{"messages": messages, "tools": TOOLS} for messages in LEARNT_WITH_TOOLS]
    files = f"--questions {write_rows(tmp_path / 'questions.jsonl', rows)} --output {tmp_path / 'out'}"
    how = f"--model {tuned_with_tools} --endpoint {server[1]}/v1"
    status, _, err = outcome(tools.main, f"{how} {files}")
    assert status == 0, err
    figures = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["all"].values()
    assert [(figure["right"], figure["asked"]) for figure in figures] == [
        (2, 2), (2, 2), (2, 2), (1, 1), (2, 2), (3, 3),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def convert(tuned: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctranslate2.Generator]:
    """A function that converts the model, its weights quantized as it is told to."""

    def convert(quantization: str) -> ctranslate2.Generator:
        directory = str(tmp_path_factory.mktemp("converted") / quantization)
        done = run(
            "ct2-transformers-converter", "--model", tuned, "--output_dir", directory,
            "--quantization", quantization,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return ctranslate2.Generator(directory, device="cpu", compute_type=quantization, intra_threads=1)

    return convert


@pytest.fixture(scope="module")
def converted(convert: Callable[[str], ctranslate2.Generator]) -> ctranslate2.Generator:
    return convert("float32")


def ctranslate2_tokens(
    converted: ctranslate2.Generator, tokenizer: PreTrainedTokenizerFast, prompt: Conversation, **limits: int
) -> list[int]:
    inputs = tokenizer.apply_chat_template(messages_of(prompt), add_generation_prompt=True)
    [answer] = converted.generate_batch(
        [tokenizer.convert_ids_to_tokens(inputs.input_ids)],
        end_token=END, return_end_token=True, include_prompt_in_result=False, **limits,
    )  # fmt: skip
    return answer.sequences_ids[0]


@each_prompt
def test_ctranslate2_gives_our_tokens(
    converted: ctranslate2.Generator, plain: Loaded, loaded: Loaded, prompt: Conversation
) -> None:
    tokens = ctranslate2_tokens(converted, plain[1], prompt, min_length=LONG, max_length=LONG)
    assert tokens == our_long_tokens(loaded, prompt)
    if prompt in PROMPTS:
        assert ctranslate2_tokens(converted, plain[1], prompt) == our_tokens(loaded, prompt)


def test_ctranslate2_in_8_bits_gives_what_was_learnt(
    convert: Callable[[str], ctranslate2.Generator], plain: Loaded, loaded: Loaded
) -> None:
    """Rounded weights give other tokens where nothing was taught."""
    int8 = convert("int8")
    for prompt in PROMPTS:
        assert ctranslate2_tokens(int8, plain[1], prompt) == our_tokens(loaded, prompt), prompt


def test_trl_learns_our_labels(tuned: str, loaded: Loaded, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    typed = [
        Conversation((*given.turns[:-1], replace(given.turns[-1], yayi=END)), given.system) for given in TYPED
    ]
    known = [*map(from_row, LEARNT), *typed]
    options = SFTConfig(
        str(tmp_path), assistant_only_loss=True, max_length=None, use_cpu=True, bf16=False, report_to="none"
    )
    rows = datasets.Dataset.from_list([{"messages": messages_of(conversation)} for conversation in known])
    theirs = SFTTrainer(tuned, options, train_dataset=rows).train_dataset
    ours = [encode(conversation, loaded[1]) for conversation in known]
    assert [{name: row[name] for name in ("input_ids", "labels")} for row in theirs] == ours
