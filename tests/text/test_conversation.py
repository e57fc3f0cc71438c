import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.text.conversation import Conversation, Turn, from_row, read_row
from training.text.keys import HARMLESS, REFUSED, is_absent


def conversation(*turns: tuple, system: str = "") -> Conversation:
    return Conversation(tuple(Turn(*turn) for turn in turns), system)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "output": "a"}, conversation(("q", "a"))),
        ({"instruction": "q", "input": "", "output": "a"}, conversation(("q", "a"))),
        ({"instruction": "q", "input": "x", "output": "a"}, conversation(("q\nx", "a"))),
        ({"instruction": "q", "input": None, "system": None, "output": "a"}, conversation(("q", "a"))),
        ({"instruction": "q", "system": "s", "output": "a"}, conversation(("q", "a"), system="s")),
        (
            {"instruction": " q\n", "input": "\nx ", "output": "\n a\n"},
            conversation((" q\n\n\nx ", "\n a\n")),
        ),
        ({"instruction": "q"}, conversation(("q", None))),
        (
            {
                "system": "s",
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "yayi", "value": "a"},
                    {"from": "human", "value": "q2"},
                    {"from": "yayi", "value": "a2"},
                ],
            },
            conversation(("q", "a"), ("q2", "a2"), system="s"),
        ),
        (
            {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]},
            conversation(("q", None), system="s"),
        ),
        (
            {"id": 7, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            conversation(("q", "a")),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ]
            },
            conversation(("q", "a"), system="s"),
        ),
    ],
)
def test_every_known_format_becomes_a_conversation(row: dict, expected: Conversation) -> None:
    assert from_row(row) == expected


HUMAN = {"from": "human", "value": "q"}
YAYI = {"from": "yayi", "value": "a"}
USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
NESTED = functools.reduce(lambda inner, _: [inner], range(2000), "deep")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "a row is a list, not an object"),
        ({}, 'a row needs one of "instruction", "conversations", "messages", "prompt",'),
        (
            {"text": "t", "x": 1},
            'this one has "text", "x"; `--columns question=...,answer=...`, of training.trainer',
        ),
        ({"chosen": "a", "rejected": "b"}, '"chosen": a preference row'),
        (
            {"instruction": "q", "messages": [{"role": "user", "content": "q"}]},
            'a row is of one format, and this one has "instruction" and "messages"',
        ),
        ({"question": "q", "query": "q2", "answer": "a"}, 'this one has "question" and "query"'),
        ({"instruction": "q", "output": "a", "response": "b"}, 'several answers, "output" and "response"'),
        ({"instruction": "q", "input": "x", "context": "y", "output": "a"}, 'both "input" and "context"'),
        ({"instruction": "q", "output": ["a", "b"]}, '"output" is a list: a preference row'),
        ({"instruction": "q", "output": "a", "history": [["q0"]]}, '"history"[0] is not a pair'),
        ({"instruction": "q", "output": "a", "history": [["q0", ""]]}, '"history"[0][1] is empty'),
        ({"instruction": "q", "output": "a", "images": ["a.png"]}, '"images": a row with pictures'),
        (
            {"instruction": "q", "output": "a", "tools": [{"name": "f"}]},
            '"tools": a row with tools is a list of',
        ),
        ({"input_ids": [1], "labels": [1]}, '"input_ids": a row of token ids'),
        ({"instruction": 3, "output": "a"}, '"instruction" is a number, not text'),
        ({"instruction": " \n", "output": "a"}, '"instruction" is empty'),
        ({"instruction": "q", "input": ["x"], "output": "a"}, '"input" is a list, not text'),
        ({"instruction": "q", "output": "\ud800"}, '"output" has half of a surrogate pair'),
        ({"instruction": "q", "system": True, "output": "a"}, '"system" is a boolean, not text'),
        ({"instruction": "q", "output": "a", "functions": [{"name": "f"}]}, '"functions": the older form of'),
        ({"messages": [USER, {"role": "assistant", "content": [[]]}]}, '"messages"[1]."content" is empty'),
        ({"conversations": 5}, '"conversations" is a number, not a list'),
        ({"conversations": []}, '"conversations" is empty'),
        ({"messages": [{"role": "system", "content": "s"}]}, '"messages" has no message from the human'),
        ({"conversations": ["q"]}, '"conversations"[0] is a string, not an object'),
        (
            {"conversations": [{"from": "observer", "value": "q"}]},
            '"conversations"[0]."from" is "observer"; known are',
        ),
        ({"conversations": [HUMAN, {"from": "yayi"}]}, '"conversations"[1]."value" is missing'),
        ({"conversations": [YAYI]}, """"conversations"[0]."value" is from 'yayi': a dialogue starts with"""),
        ({"conversations": [HUMAN, HUMAN]}, '"conversations"[1]."value" is from'),
        ({"conversations": [HUMAN, YAYI, YAYI]}, '"conversations"[2]."value" is from'),
        ({"messages": [{"role": "user", "content": None}]}, '"messages"[0]."content" is missing'),
        (
            {"conversations": [{"from": "system", "value": "t"}, {"from": "system", "value": "u"}, HUMAN]},
            '"conversations"[1]."value": a second system text',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            'a part of the content is of type "image_url", not text',
        ),
        ({"messages": [{"role": "user", "content": "q", "value": "r"}]}, 'both "value" and "content"'),
        (
            {"conversations": [HUMAN, YAYI | {"weight": 0.5}]},
            '"conversations"[1]."weight" is 0.5; 1 or true says',
        ),
        ({"conversations": [HUMAN, YAYI | {"weight": 1, "loss": False}]}, "weight, loss, train contradict"),
        ({"messages": [{"role": "user", "content": ""}]}, '"messages"[0]."content" is empty'),
        ({"conversations": [HUMAN, {"role": "gpt", "content": ""}]}, '"conversations"[1]."content" is empty'),
        (
            {"conversations": [HUMAN, {"from": "system", "value": "s"}, YAYI]},
            '"conversations"[1]."value": a system text after the start;',
        ),
        ({"prompt": "q", "completion": [{"role": "user"}]}, '"completion" is a list, not text'),
        ({"messages": [USER], "output": "a", "answer": "b"}, 'the row has several answers, "output" and'),
        ({"messages": [USER, BOT, USER], "output": 5}, '"output" is a number, not text'),
        ({"messages": [USER, BOT, USER, USER], "output": "a"}, """"content" is from 'user'"""),
        ({"messages": [USER | {"content": [{"type": "text"}]}]}, '[…]."text" is missing'),
        ({"messages": [USER | {"content": [{"type": "text", "content": "q"}]}]}, '[…]."text" is missing'),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "q", "note": "lost"}]}]},
            '"messages"[0]."content"[…] has "note" beside its text',
        ),
        ({"instruction": "q", "output": "a", "meta": NESTED}, "lists in lists, too deep"),
        *(
            ({"conversations": [HUMAN, YAYI], key: "a.bin"}, f'"{key}": a row with')
            for key in ("image", "video", "audio", "pixel_values")
        ),
    ],
)
def test_a_bad_row_is_an_error_that_names_the_field(row: object, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared below)
        from_row(row)
    assert message in str(error.value)


def test_a_remedy_is_named_only_where_it_helps() -> None:
    with pytest.raises(ValueError, match=r"several answers.*`--columns question"):
        from_row({"instruction": "q", "output": "a", "response": "b"})
    with pytest.raises(ValueError, match=r'this one has "question" and "query"; `--columns question'):
        from_row({"question": "q", "query": "q2"})
    for row in ({"instruction": "q", "messages": [USER]}, {"messages": [USER], "conversations": [HUMAN]}):
        with pytest.raises(ValueError, match=r'this one has "\w+" and "\w+"$'):
            from_row(row)


def test_columns_that_no_row_has_are_named_with_those_that_it_has() -> None:
    row, columns = {"instruction": "q", "output": "a"}, {"question": "问题", "answer": "答案"}
    with pytest.raises(ValueError, match=r'^no column "问题"; this one has "instruction", "output"$'):
        read_row(row, columns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q"}, '"output" is missing'),
        ({"instruction": "q", "output": None}, '"output" is missing'),
        ({"instruction": "q", "output": " \n"}, '"output" is empty'),
        ({"question": "q"}, '"answer" is missing'),
        ({"prompt": "q", "response": ""}, '"response" is empty'),
        ({"instruction": "q", "history": [["q0", "a0"]]}, '"output" is missing'),
        ({"conversations": [HUMAN]}, '"conversations" ends with the human'),
    ],
)
def test_a_prompt_is_refused_where_answers_are_needed(row: dict, message: str) -> None:
    assert from_row(row).is_prompt
    with pytest.raises(ValueError, match=message):
        from_row(row, answered=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q", "output": "a", "kto_tag": False}, '"kto_tag" is false'),
        ({"conversations": [HUMAN, YAYI], "label": False}, '"label" is false'),
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, '"chosen": a preference row'),
        ({"conversations": [HUMAN, YAYI | {"loss": False}]}, "no answer of the row is to be learnt"),
        ({"instruction": "q", "output": "a", "weight": 0}, '"weight" is 0: the row says'),
        ({"conversations": [HUMAN, YAYI], "loss": False}, '"loss" is false: the row says'),
        ({"conversations": [HUMAN, YAYI], "train": False}, '"train" is false: the row says'),
        ({"prompt": [USER, BOT]}, "no answer of the row is to be learnt"),
    ],
)
def test_a_row_whose_answer_must_not_be_learnt_is_refused_in_training_and_is_a_prompt(
    row: dict, message: str
) -> None:
    assert from_row(row).turns[0].human == "q"
    with pytest.raises(ValueError, match=message):
        from_row(row, answered=True)


def test_in_training_a_last_message_of_the_human_is_left_off_and_elsewhere_it_is_the_prompt() -> None:
    row = {"conversations": [HUMAN, YAYI, {"from": "human", "value": "q2"}]}
    assert from_row(row, answered=True) == conversation(("q", "a"))
    assert from_row(row) == conversation(("q", "a"), ("q2", None))
    row["conversations"] += [HUMAN, HUMAN]
    assert from_row(row, answered=True) == conversation(("q", "a"))
    with pytest.raises(ValueError, match=r'"conversations"\[3\]."value" is from'):
        from_row(row)
    row["conversations"] += [YAYI]
    with pytest.raises(ValueError, match=r'"conversations"\[3\]."value" is from'):
        from_row(row, answered=True)


@pytest.mark.parametrize("flag", [{"weight": 0}, {"loss": False}, {"train": False}, {"weight": 0.0}])
def test_an_answer_that_is_marked_is_context(flag: dict) -> None:
    row = {"conversations": [HUMAN, YAYI | flag, HUMAN, YAYI | {"weight": 1}]}
    assert from_row(row, answered=True) == conversation(("q", "a", True), ("q", "a"))


def test_only_the_last_answer_is_learnt_if_that_is_wanted() -> None:
    row = {"conversations": [HUMAN, YAYI, HUMAN, YAYI, HUMAN]}
    assert read_row(row).to_learn("last") == conversation(("q", "a", True), ("q", "a"))


def test_a_flag_on_a_message_of_the_human_says_nothing_new() -> None:
    read = read_row({"messages": [USER | {"weight": 1}, BOT | {"weight": 1}]})
    assert (read.to_learn(), read.not_learnt) == (conversation(("q", "a")), ())


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER, BOT, USER], "completion": [BOT]},
        {"prompt": [USER, BOT, USER], "completion": "a"},
        {"prompt": [USER, BOT, USER], "response": "a"},
    ],
)
def test_answers_inside_a_prompt_are_context(row: dict) -> None:
    assert from_row(row, answered=True) == conversation(("q", "a", True), ("q", "a"))


@pytest.mark.parametrize("column", ["output", "answer", "completion", "response", "target"])
def test_the_last_answer_of_a_dialogue_may_have_a_column_of_its_own(column: str) -> None:
    for row in ({"messages": [USER, BOT, USER]}, {"conversations": [HUMAN, YAYI, HUMAN]}):
        read = read_row(row | {column: "final"})
        assert read.to_learn() == conversation(("q", "a"), ("q", "final"))
        assert not read.not_learnt


def test_an_input_of_white_space_is_text() -> None:
    assert from_row({"instruction": "q", "input": " ", "output": "a"}) == conversation(("q\n ", "a"))
    for none in ("", None, [], {}):
        assert from_row({"instruction": "q", "input": none, "output": "a"}) == conversation(("q", "a"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"query": "q", "response": "a"},
        {"instruction": "q", "response": "a", "context": ""},
        {"input": "q", "output": "a"},
        {"input": "q", "target": "a"},
        {"instruction": "", "input": "q", "output": "a"},
        {"content": "q", "summary": "a"},
        {"prompt": [USER], "completion": [BOT]},
        {"instruction": "", "output": "", "messages": [USER, BOT]},
        {"instruction": "q", "output": "a", "conversations": []},
        {"instruction": "q", "output": "a", "history": [[]]},
        {"instruction": "q", "output": "a", "history": []},
        {"messages": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}]},
        {"conversations": [{"from": "user", "value": "q"}, {"from": "bot", "value": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "chatgpt", "value": "a"}]},
        {"messages": [USER, {"role": "model", "content": "a"}]},
        {"conversations": [{"role": "user", "value": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"from": "human", "value": "q"}, BOT]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, BOT]},
        {"messages": [{"role": "system", "content": None}, USER, BOT]},
        {"messages": [{"role": "system", "content": {}}, USER, BOT], "system": [[]]},
        {"instruction": "q", "output": "a", "system": {}},
    ],
)
def test_other_names_of_columns_keys_and_speakers_are_read(row: dict) -> None:
    assert from_row(row, answered=True) == conversation(("q", "a"))


def test_history_is_the_turns_before() -> None:
    row = {"instruction": "q", "output": "a", "history": [["q0", "a0"], ["q1", "a1"]]}
    assert from_row(row) == conversation(("q0", "a0"), ("q1", "a1"), ("q", "a"))


def test_history_in_a_table_is_json_whatever_its_column_is_called() -> None:
    columns = {"question": "问", "answer": "答", "history": "前"}
    for cell, earlier in (('[["q0", "a0"]]', [("q0", "a0")]), (" [[]]", []), (" ", [])):
        read = read_row({"问": "q", "答": "a", "前": cell}, columns)
        assert read.to_learn() == conversation(*earlier, ("q", "a"))
        assert not read.not_learnt
    with pytest.raises(ValueError, match=r'^"前" is a string, not a list of pairs'):
        read_row({"问": "q", "前": "[q0"}, columns)


def test_context_follows_the_question_as_an_input_does() -> None:
    assert from_row({"instruction": "q", "context": "c", "response": "a"}) == conversation(("q\nc", "a"))


def test_a_system_message_wins_over_a_column() -> None:
    row = {"system": "s", "messages": [{"role": "developer", "content": "t"}, USER, BOT]}
    assert from_row(row) == conversation(("q", "a"), system="t")
    assert read_row(row).other_system
    assert not read_row({"system": "s", "messages": [USER, BOT]}).other_system


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*REFUSED, *HARMLESS, "kto_tag", "label", "text", "reasoning_content"])


@given(base=st.sampled_from(["pair", "messages"]), extra=st.dictionaries(NAMES | st.text(), JSON, max_size=4))
@settings(max_examples=200, deadline=None)
def test_each_key_of_any_row_is_read_or_counted_or_refused(base: str, extra: dict) -> None:
    row = {"instruction": "q", "output": "a"} if base == "pair" else {"messages": [USER, BOT]}
    read_keys = {"instruction", "output", "input", "context", "system", "history", "response", "completion"}
    read_keys |= {"answer", "target", "messages", "conversations", "prompt", "question", "query"}
    extra = {name: value for name, value in extra.items() if name not in read_keys}
    try:
        read = read_row(row | extra)
        read.to_learn()
    except ValueError as error:
        assert any(f'"{name}"' in str(error) for name in extra)  # noqa: PT017
        return
    assert read.conversation == conversation(("q", "a"))
    counted = {*read.not_learnt, *read.harmless}
    assert counted == {name for name, value in extra.items() if not is_absent(value)}
