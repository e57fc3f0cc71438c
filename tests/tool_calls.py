"""Fifty answers with calls that are hard to parse, by which servers' parsers are tried.

python -m tests.tool_calls > answers.jsonl       {"answer": "...", "calls": [{"name", "arguments"}]} a line
"""

import json
import random
from collections.abc import Iterator
from typing import Any

from training.text.calls import answer_with_calls, call_text

COUNT = 50
PIECES = [
    "汇率",
    '"',
    "'",
    "\n",
    "</tool_call>",
    "<tool_call>",
    "\\",
    "</",
    "{",
    "}",
    "😀",
    "<|End|>",
    " ",
    "a",
]


def hard_answers() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(what a model says, the calls in it), the same at each call; each has "</tool_call>" in an argument."""
    chosen = random.Random(21)
    for number in range(COUNT):
        calls = [
            {
                "name": f"tool_{number}",
                "arguments": {_text(chosen): _value(chosen, 3), "x": "一</tool_call>\n\"二'"},
            }
            for _ in range(1 + number % 3)
        ]
        yield answer_with_calls("", [call_text(**call) for call in calls]), calls


def _text(chosen: random.Random) -> str:
    return "".join(chosen.choices(PIECES, k=chosen.randint(1, 5)))


def _value(chosen: random.Random, depth: int) -> Any:
    kind = chosen.randrange(5 if depth else 3)
    if kind == 0:
        return _text(chosen)
    if kind == 1:
        return chosen.choice([0, -3, 2.5, 10**20, True, None])
    if kind == 2:
        return []
    values = [_value(chosen, depth - 1) for _ in range(chosen.randint(1, 3))]
    return values if kind == 3 else {_text(chosen): value for value in values}


if __name__ == "__main__":
    for answer, calls in hard_answers():
        print(json.dumps({"answer": answer, "calls": calls}))
