import pytest

from training.text.conversation import Conversation, Turn, from_row


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "a row is a list, not an object"),
        ({}, 'needs one of "instruction", "conversations" and "messages"; this one has none'),
        ({"instruction": "q", "messages": []}, 'this one has "instruction" and "messages"'),
        ({"instruction": 3, "output": "a"}, '"instruction" is a number, not text'),
        ({"instruction": " \n", "output": "a"}, '"instruction" is empty'),
        ({"instruction": "q", "input": ["x"], "output": "a"}, '"input" is a list, not text'),
        ({"instruction": "q", "output": ""}, '"output" is empty'),
        ({"instruction": "q", "output": "\ud800"}, '"output" has half of a surrogate pair'),
        ({"instruction": "q", "system": True, "output": "a"}, '"system" is a boolean, not text'),
        ({"conversations": {}}, '"conversations" is an object, not a list'),
        ({"conversations": []}, '"conversations" has no message from the human'),
        ({"conversations": ["q"]}, '"conversations"[0] is a string, not an object'),
        (
            {"conversations": [{"from": "bot", "value": "q"}]},
            """"conversations"[0]."from" is 'bot'; known are""",
        ),
        ({"conversations": [HUMAN, {"from": "yayi"}]}, '"conversations"[1]."value" is missing'),
        ({"conversations": [YAYI]}, """"conversations"[0]."value" is from 'yayi': a dialogue starts with"""),
        ({"conversations": [HUMAN, HUMAN]}, '"conversations"[1]."value" is from'),
        ({"conversations": [HUMAN, YAYI, YAYI]}, '"conversations"[2]."value" is from'),
        ({"messages": [{"role": "user", "content": None}]}, '"messages"[0]."content" is missing'),
        (
            {"system": "s", "conversations": [{"from": "system", "value": "t"}, HUMAN]},
            '"conversations"[0]."value": a second system text',
        ),
    ],
)
def test_a_bad_row_is_an_error_that_names_the_field(row: object, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared below)
        from_row(row)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q"}, '"output" is missing'),
        ({"instruction": "q", "output": None}, '"output" is missing'),
        ({"conversations": [HUMAN, YAYI, HUMAN]}, '"conversations" ends with the human'),
    ],
)
def test_a_prompt_is_refused_where_answers_are_needed(row: dict, message: str) -> None:
    assert from_row(row).is_prompt
    with pytest.raises(ValueError, match=message):
        from_row(row, answered=True)
