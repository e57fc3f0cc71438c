"""Rows with tools, their text and ids, the chat template with `tools=`, and the parsers of calls."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BloomConfig, PreTrainedTokenizerFast
from transformers.cli.serving.utils import (
    ToolCall,
    build_response_parser,
    parse_assistant_message,
    response_events_to_chunks,
)
from transformers.utils import get_json_schema

from tests.conftest import MULTI_TURN, SINGLE_TURN
from tests.tool_calls import hard_answers
from training.consts import CONTROL_TOKENS, INTRO, TOOL
from training.data.encoded import read_conversations
from training.text.calls import answer_with_calls, call_text, declaration, read_call, split_answer
from training.text.conversation import Conversation, Turn, from_row, read_row
from training.text.encoding import encode, encode_prompt, encode_turns
from training.text.saved_template import is_of_this_recipe, knows_tools
from training.text.template import render
from training.text.tokenizer import load_tokenizer, load_tokenizer_and_new_tokens
from training.text.turns import ToolUse
from training.text.written import (
    chat_messages,
    tool_objects,
    write_chat_messages,
    write_conversations,
    write_instruction,
)

WEATHER = {"name": "weather", "description": "天气", "parameters": {"type": "object"}}
TIME = {"name": "time"}


def calls_of(*calls: tuple[str, Any]) -> list[dict]:
    return [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]


USER = {"role": "user", "content": "q"}
CALL = {"role": "assistant", "content": None, "tool_calls": calls_of(("weather", '{"城":"里昂"}'))}
RESULT = {"role": "tool", "tool_call_id": "c0", "content": "21"}
BOT = {"role": "assistant", "content": "a"}
TOOLS = [{"type": "function", "function": {**WEATHER, "return": {"type": "number"}}}, TIME]

# As the row below it says, to the letter.
TEXT = f"""\
<|System|>:
{INTRO}

<tools>
{{"name": "weather", "description": "天气", "parameters": {{"type": "object"}}}}
{{"name": "time"}}
</tools>

<|Human|>:
q

<|YaYi|>:
查<tool_call>
{{"name": "weather", "arguments": {{"城": "<\\/tool_call>", "日": [1, 2.0]}}}}
</tool_call>
<tool_call>
{{"name": "time", "arguments": {{}}}}
</tool_call>

<|End|><|Tool|>:
21

<|Tool|>:
九点

<|YaYi|>:
a

<|End|><|Human|>:
q

<|YaYi|>:
a

<|End|>"""
TWO_CALLS = CALL | {
    "content": "查",
    "tool_calls": calls_of(("weather", {"城": "</tool_call>", "日": [1, 2.0]}), ("time", {})),
}
ROW = {
    "messages": [USER, TWO_CALLS, RESULT | {"content": "九点", "tool_call_id": "c1"}, RESULT, BOT, USER, BOT],
    "tools": TOOLS,
}


@pytest.fixture(scope="module")
def taught(base: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(base, tools=True)


def test_a_row_with_tools_is_this_text_to_the_letter(taught: PreTrainedTokenizerFast) -> None:
    conversation = from_row(ROW)
    assert render(conversation) == TEXT
    encoded = encode(conversation, taught)
    assert taught.decode(encoded["input_ids"]) == TEXT
    assert encoded["input_ids"] == taught(TEXT, add_special_tokens=False).input_ids
    learnt = [taught.decode([label]) if label != -100 else "" for label in encoded["labels"]]
    calls, answer = re.findall(r"<\|YaYi\|>(.*?<\|End\|>)", TEXT, re.DOTALL)[:2]
    assert "".join(learnt) == calls + answer + answer
    # The template is told no more than OpenAI's messages, and gives the text, ids and labels of training.
    messages = ROW["messages"]
    assert taught.apply_chat_template(messages, tools=TOOLS, tokenize=False).replace("\ue000", "") == TEXT
    served = taught.apply_chat_template(messages, tools=TOOLS, return_assistant_tokens_mask=True)
    assert served.input_ids == encoded["input_ids"]
    mask = [label != -100 for label in encoded["labels"]]
    assert list(map(bool, served.assistant_masks)) == mask


SHAREGPT_CALL = {"from": "function_call", "value": '{"name": "weather", "arguments": {"城": "里昂"}}'}
HUMAN, OBSERVATION = {"from": "human", "value": "q"}, {"from": "observation", "value": "21"}
GPT = {"from": "gpt", "value": "a"}
TWO_IN_ONE = {"from": "function_call", "value": '[{"name": "time"}, {"name": "time", "arguments": {}}]'}


def turn(*calls: tuple[str, dict], results: tuple[str, ...] = ("21",)) -> Turn:
    use = ToolUse(tuple(call_text(name, arguments) for name, arguments in calls), results)
    return Turn("q", "a", tool_uses=(use,))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, CALL, RESULT, BOT]}, turn(("weather", {"城": "里昂"}))),
        ({"conversations": [HUMAN, SHAREGPT_CALL, OBSERVATION, GPT]}, turn(("weather", {"城": "里昂"}))),
        (
            {"conversations": [HUMAN, TWO_IN_ONE, OBSERVATION, OBSERVATION | {"value": ""}, GPT]},
            turn(("time", {}), ("time", {}), results=("21", "")),
        ),
        (  # LLaMA-Factory's speakers alternate
            {"conversations": [HUMAN, TWO_IN_ONE, OBSERVATION | {"value": '["21", {"值": 1}]'}, GPT]},
            turn(("time", {}), ("time", {}), results=("21", '{"值": 1}')),
        ),
        (
            {"messages": [USER, CALL | {"tool_calls": calls_of(("time", ""))}, RESULT, BOT]},
            turn(("time", {})),
        ),
        ({"messages": [USER, BOT]}, Turn("q", "a")),
    ],
)
def test_rows_of_both_formats_are_read(row: dict, expected: Turn) -> None:
    declared = (declaration(WEATHER), declaration(TIME))
    for tools in (TOOLS, json.dumps(TOOLS)):
        assert from_row(row | {"tools": tools}) == Conversation((expected,), "", declared)
        assert read_row(row | {"tools": tools}).not_learnt == ()


@pytest.mark.parametrize(
    ("messages", "tools", "problem"),
    [
        ([USER, CALL, BOT], TOOLS, '"messages"[1]."tool_calls": a call without its result (1 calls, 0'),
        ([USER, TWO_CALLS, RESULT, BOT], TOOLS, '"messages"[1]."tool_calls": a call without its result (2'),
        ([USER, TWO_CALLS, RESULT], TOOLS, '"messages"[1]."tool_calls": a call without its result (2'),
        ([USER, CALL, RESULT, RESULT, BOT], TOOLS, '"messages"[3]."content": a result, and no call waits'),
        ([USER, RESULT, BOT], TOOLS, """"messages"[1]."content" is from 'tool': a result, and no call"""),
        ([USER, CALL, RESULT | {"tool_call_id": "x"}, BOT], TOOLS, 'have other values of "tool_call_id"'),
        ([USER, CALL, RESULT, BOT], [TIME], """[0] calls 'weather', which "tools" does not declare"""),
        ([USER, CALL, RESULT, BOT], [], """[0] calls 'weather', which "tools" does not declare"""),
        ([CALL, RESULT, BOT], TOOLS, "a dialogue starts with the human and alternates"),
        ([USER, BOT, CALL, RESULT, BOT], TOOLS, "a dialogue starts with the human and alternates"),
        ([USER | {"tool_calls": [1]}, BOT], TOOLS, '"tool_calls": tools are called by messages from the'),
        ([USER, BOT | {"function_call": {"name": "f"}}], TOOLS, '"function_call": the older form'),
        *(
            ([USER, CALL | {"tool_calls": calls}, RESULT, BOT], TOOLS, problem)
            for calls, problem in [
                ([1], '"tool_calls"[0] is a number, not an object'),
                ([{"id": "c0"}], '"tool_calls"[0] names no tool'),
                (calls_of(("time", "[1]")), '"arguments" is a list, not a JSON object'),
                (calls_of(("time", "{")), '"arguments" is not JSON (Expecting property name'),
                (calls_of(("time", {"x": float("nan")})), '"tool_calls"[0]: Out of range float'),
                (calls_of(("time", {"x": "\ud800"})), "half of a surrogate pair"),
            ]
        ),
        ([USER, BOT], {"name": "f"}, '"tools" is an object, not a list of tools'),
        ([USER, BOT], "weather", '"tools" is not JSON (Expecting value at column 1)'),
        ([USER, BOT], [{"type": "function", "function": {"description": "d"}}], '"tools"[0]: a tool without'),
        ([USER, BOT], [{"type": "custom", "function": {"name": "f"}}], "of type 'custom', not function"),
        ([USER, BOT], ["weather"], '"tools"[0] is a string, not an object'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools_is_named(messages: list, tools: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        from_row({"messages": messages, "tools": tools})


def test_what_is_learnt_of_a_row_that_ends_with_a_call_or_a_result() -> None:
    calls = read_row({"messages": [USER, CALL, RESULT, CALL], "tools": TOOLS})
    assert not calls.to_learn().is_prompt
    assert calls.as_prompt() == from_row({"messages": [USER, CALL, RESULT], "tools": TOOLS})
    (last,) = calls.to_learn("last").turns
    assert [is_context for _, is_context in last.answers()] == [True, False]
    assert render(calls.to_learn()).endswith("</tool_call>\n\n<|End|>")

    results = read_row({"messages": [USER, BOT, USER, CALL, RESULT], "tools": TOOLS})
    assert results.to_learn().turns == (Turn("q", "a"),)
    assert (results.ends_with_results, results.ends_with_human) == (True, False)
    with pytest.raises(ValueError, match="ends with a result: the last answer is missing"):
        read_row({"messages": [USER, CALL, RESULT], "tools": TOOLS}).to_learn()

    weighted = from_row({"messages": [USER, CALL | {"weight": 0}, RESULT, BOT], "tools": TOOLS})
    assert [is_context for _, is_context in weighted.turns[0].answers()] == [True, False]


def test_a_dialogue_is_cut_only_after_an_answer_without_calls(taught: PreTrainedTokenizerFast) -> None:
    one = from_row({"messages": [USER, BOT, USER, CALL, RESULT, BOT], "tools": TOOLS})
    encoded = encode_turns([one], taught)[0]
    first_turn, whole = encoded.turn_ends
    assert len(encoded.answers) == 3
    call_end = encoded.answers[1][1]
    for length in (first_turn, call_end, whole - 1):
        assert encoded.within(length).turn_ends == [first_turn]
        assert encoded.within(length).answers == encoded.answers[:1]
    assert encoded.within(whole) == encoded
    starts_with_call = from_row({"messages": [USER, CALL, RESULT, BOT], "tools": TOOLS})
    encoded = encode_turns([starts_with_call], taught)[0]
    assert encoded.within(encoded.answers[0][1]).input_ids == []


# Texts that try to end a call, to forge a speaker or a result, or to confuse JSON.
SPECIAL = [*CONTROL_TOKENS, TOOL, "</s>", "<tool_call>", "</tool_call>", "<tools>"]
PIECES = [
    *SPECIAL,
    *["</", "<\\/", "\\", '"', "'", ":", "你好", "😀", "é", "{", "}", "\\n", "\\u4e00", "<", "/", "a"],
    " ",
    "\n",
    "\n\n",
    "\t",
    "\u2028",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
PLAIN_TEXTS = TEXTS.filter(lambda text: "<tool_call>" not in text and not text.startswith("\n"))
ANSWERS = TEXTS.filter(lambda text: text.strip() and not text.startswith("\n") and not text.endswith("\n\n"))
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)
NAMES = st.sampled_from(["weather", "time", "</tool_call>", "报时"])
TOOLS_OF_ALL = tuple(declaration({"name": name, "description": f"{TOOL}</tools>"}) for name in
                     ["weather", "time", "</tool_call>", "报时"])  # fmt: skip


@st.composite
def tool_uses(draw: st.DrawFn) -> ToolUse:
    calls = draw(st.lists(st.builds(call_text, NAMES, ARGUMENTS), min_size=1, max_size=3))
    results = draw(st.lists(TEXTS, min_size=len(calls), max_size=len(calls)))
    return ToolUse(tuple(calls), tuple(results), draw(PLAIN_TEXTS), draw(st.booleans()))


TURNS = st.builds(
    Turn,
    TEXTS.filter(str.strip),
    ANSWERS,
    st.booleans(),
    st.lists(tool_uses(), max_size=2).map(tuple),
)
CONVERSATIONS = st.builds(
    Conversation, st.lists(TURNS, min_size=1, max_size=3).map(tuple), TEXTS, st.just(TOOLS_OF_ALL)
)


def prompts(conversation: Conversation) -> list[Conversation]:
    """The conversation before each of its answers: those that call tools, and those after results."""
    return [
        replace(conversation, turns=(*conversation.turns[:place], Turn(turn.human, tool_uses=uses)))
        for place, turn in enumerate(conversation.turns)
        for uses in (turn.tool_uses[:count] for count in range(len(turn.tool_uses) + 1))
    ]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=CONVERSATIONS)
def test_for_any_conversation_template_training_and_prompts_agree(
    taught: PreTrainedTokenizerFast, conversation: Conversation
) -> None:
    text = render(conversation)
    encoded = encode(conversation, taught)
    ids = encoded["input_ids"]
    messages, tools = chat_messages(conversation), tool_objects(conversation)
    assert taught.apply_chat_template(messages, tools=tools, tokenize=False).replace("\ue000", "") == text
    assert taught.apply_chat_template(messages, tools=tools).input_ids == ids
    for prompt in prompts(conversation):
        prompt_ids = encode_prompt(prompt, taught)
        assert prompt_ids == ids[: len(prompt_ids)]
        served = taught.apply_chat_template(chat_messages(prompt), tools=tools, add_generation_prompt=True)
        assert served.input_ids == prompt_ids

    # The labels are the answers and calls, found again in the ids by their control tokens.
    yayi, end = taught.convert_tokens_to_ids(["<|YaYi|>", "<|End|>"])
    answers, is_answer = [], False
    for token, label in zip(ids, encoded["labels"], strict=True):
        if is_answer:
            answers[-1].append((token, label))
            is_answer = token != end
        else:
            assert label == -100
        if token == yayi:
            is_answer = True
            answers.append([])
    context = [is_context for turn in conversation.turns for _, is_context in turn.answers()]
    assert [all(label == -100 for _, label in answer) for answer in answers] == context
    assert [all(label == token for token, label in answer) for answer in answers] == [
        not one for one in context
    ]

    # As rows, it is read back.
    if any(not is_context for is_context in context):
        assert from_row(json.loads(json.dumps(write_chat_messages(conversation)))) == conversation


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=PLAIN_TEXTS, calls=st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3))
def test_calls_are_parsed_by_the_project_and_by_transformers(
    taught: PreTrainedTokenizerFast, text: str, calls: list[tuple[str, dict]]
) -> None:
    answer = answer_with_calls(text, [call_text(*call) for call in calls])
    said, found = split_answer(answer)
    assert said == text
    assert [tuple(read_call(call)) for call in found] == calls
    parsed = taught.parse_response(f"\n{answer}\n\n<|End|>", prefix=f"{render(from_row(ROW))}<|YaYi|>:")
    assert [
        (call["function"]["name"], call["function"]["arguments"]) for call in parsed["tool_calls"]
    ] == calls


def test_fifty_hard_answers_are_parsed_by_the_project_and_by_the_functions_of_transformers_serve(
    taught: PreTrainedTokenizerFast,
) -> None:
    """As it does for a client that waits for the whole answer, and for one that streams."""
    model = SimpleNamespace(config=BloomConfig())
    prompt_ids = encode_prompt(Conversation((Turn("q"),), tools=(declaration(TIME),)), taught)
    tried = 0
    for answer, calls in hard_answers():
        assert [read_call(call)._asdict() for call in split_answer(answer)[1]] == calls
        conversation = Conversation((Turn("q", answer),), tools=(declaration(TIME),))
        ids = encode(conversation, taught)["input_ids"][len(prompt_ids) :]
        content, _, whole = parse_assistant_message(taught, model, ids, prompt_ids)
        parser = build_response_parser(taught, model, prompt_ids)
        events = [event for character in taught.decode(ids) for event in parser.feed(character)]
        streamed = [chunk for chunk in response_events_to_chunks(events) if isinstance(chunk, ToolCall)]
        for found in (whole, streamed):
            pairs = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in found]
            assert pairs == calls
        assert content == ""
        tried += "</tool_call>" in json.dumps(calls)
    assert tried == 50


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ('{"name": "time"', "not JSON (Expecting ',' delimiter at line 1 column 16)"),
        ("[]", "not a JSON object"),
        ('{"arguments": {}}', '"name" is missing'),
        ('{"name": "time", "arguments": "{}"}', '"arguments" is missing, or not a JSON object'),
        ('{"name": "time", "arguments": {"x": NaN}}', "NaN is a number that JSON does not have"),
    ],
)
def test_what_is_wrong_with_a_call_that_a_model_said(call: str, problem: str) -> None:
    said, calls = split_answer(f"好<tool_call>\n{call}\n</tool_call>\n<tool_call>{call}")
    assert (said, calls) == ("好", (call, call))
    with pytest.raises(ValueError, match=re.escape(problem)):
        read_call(call)


def test_without_calls_the_whole_answer_is_text() -> None:
    assert split_answer("\n好\n\n") == ("\n好\n\n", ())


@pytest.mark.parametrize(
    "messages",
    [[USER, CALL, BOT], [USER, CALL, RESULT, RESULT], [USER, RESULT], [USER, CALL, USER], [CALL, RESULT],
     [USER, TWO_CALLS, RESULT, BOT], [USER, CALL]],
)  # fmt: skip
def test_the_template_refuses_a_dialogue_that_rows_may_not_have(
    taught: PreTrainedTokenizerFast, messages: list
) -> None:
    with pytest.raises(jinja2.TemplateError, match="each call of a tool is followed by its result"):
        taught.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)


def test_the_template_finds_a_result_by_its_id(taught: PreTrainedTokenizerFast) -> None:
    wrong = [USER, CALL, RESULT | {"tool_call_id": "x"}, BOT]
    with pytest.raises(jinja2.TemplateError, match="have one id"):
        taught.apply_chat_template(wrong, tools=TOOLS, tokenize=False)
    nameless = [{key: value for key, value in RESULT.items() if key != "tool_call_id"} | {"content": ""}, BOT]
    rendered = taught.apply_chat_template([USER, CALL, *nameless], tools=TOOLS, tokenize=False)
    assert rendered.endswith("<|Tool|>:\n\n\n<|YaYi|>:\na\n\n<|End|>")


def forecast(city: str, days: int = 1) -> float:
    """预报 <|Tool|> 天气。

    Args:
        city: 城市
        days: 天数
    """
    return 21.0


def test_python_functions_are_declared_by_transformers(taught: PreTrainedTokenizerFast) -> None:
    schema = get_json_schema(forecast)
    assert "return" in schema["function"]
    conversation = Conversation((Turn("q"),), tools=(declaration(schema),))
    served = taught.apply_chat_template([USER], tools=[forecast], add_generation_prompt=True)
    assert served.input_ids == encode_prompt(conversation, taught)
    assert "return" not in json.loads(conversation.tools[0])
    assert taught.decode(served.input_ids) == render(conversation)


def test_a_model_without_tools_stays_what_it_is(base: str, tokenizer, taught) -> None:
    """The ids of the sample data, four control tokens, and a template that refuses tools."""
    assert (knows_tools(tokenizer), knows_tools(taught)) == (False, True)
    assert taught.get_vocab() == tokenizer.get_vocab() | {TOOL: len(tokenizer)}
    assert load_tokenizer_and_new_tokens(base, tools=True)[1] == load_tokenizer_and_new_tokens(base)[1] | {
        len(tokenizer): []
    }
    assert is_of_this_recipe(tokenizer)
    assert is_of_this_recipe(taught)
    assert getattr(tokenizer, "response_template", None) is None
    for path in (SINGLE_TURN, MULTI_TURN):
        for _, conversation in list(read_conversations(str(path)))[:10]:
            assert encode(conversation, tokenizer) == encode(conversation, taught)
    typed = Conversation((Turn(f"q {TOOL}", "a"),))
    assert tokenizer.decode(encode(typed, tokenizer)["input_ids"]) == render(typed)
    with pytest.raises(ValueError, match="a row with tools, and the model was taught none"):
        encode(from_row(ROW), tokenizer)
    for messages, tools in [([USER], TOOLS), ([USER, BOT | {"tool_calls": calls_of(("time", {}))}], None)]:
        with pytest.raises(jinja2.TemplateError, match="taught no tools"):
            tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)


def test_what_is_saved_and_loaded_keeps_tools(taught: PreTrainedTokenizerFast, tmp_path) -> None:
    taught.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    again, new_tokens = load_tokenizer_and_new_tokens(str(tmp_path))
    assert new_tokens == {}
    assert again.chat_template == taught.chat_template
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain.response_template == again.response_template == taught.response_template
    assert (
        plain.apply_chat_template(ROW["messages"], tools=TOOLS).input_ids
        == encode(from_row(ROW), again)["input_ids"]
    )


def test_a_template_that_renders_tools_otherwise_is_not_of_this_recipe(base: str) -> None:
    own = load_tokenizer(base, tools=True)
    own.chat_template = own.chat_template.replace("<tool_call>\\n", "<tool_call>")
    assert not is_of_this_recipe(own)


def test_what_convert_writes_of_tools_is_read_back() -> None:
    conversation = from_row({"messages": [USER, CALL, RESULT, CALL, RESULT, BOT], "tools": TOOLS})
    for write in (write_conversations, write_chat_messages):
        assert from_row(json.loads(json.dumps(write(conversation)))) == conversation
    with pytest.raises(ValueError, match="no instruction row"):
        write_instruction(conversation)
    with pytest.raises(ValueError, match="a text before a call has no multi-round row"):
        write_conversations(from_row(ROW))
