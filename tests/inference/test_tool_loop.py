"""The loop is tried with answers that a test has written, and calls of a real file."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from inference.tool_loop import GOES_ON, REFUSED, TOO_LONG, TOO_MANY, ToolLoop, answer_with_tools
from inference.tool_process import ToolFile
from training.text.calls import Call, answer_with_calls, call_text, declaration, error_text
from training.text.conversation import Conversation, Turn
from training.text.turns import ToolUse

TOOLS = """
import time

def double(x: int) -> int:
    return 2 * x

def sleep() -> None:
    time.sleep(1000)
"""
DECLARATIONS = (
    declaration(
        {"name": "double", "parameters": {"properties": {"x": {"type": "integer"}}, "required": ["x"]}}
    ),
    declaration({"name": "sleep"}),
)
ASKED = Conversation((Turn("a", "b"), Turn("twice 4?")), "s", DECLARATIONS)


@pytest.fixture
def tools(tmp_path: Path) -> ToolFile:
    path = tmp_path / "tools.py"
    path.write_text(TOOLS)
    return ToolFile(path, DECLARATIONS)


def saying(answers: Iterable[str], prompts: list[Conversation]) -> Callable[[Conversation], str]:
    """A model that gives these answers one after another, and notes what it was asked."""
    waiting = iter(answers)

    def generate(prompt: Conversation) -> str:
        assert prompt.is_prompt
        prompts.append(prompt)
        return next(waiting)

    return generate


def call(x: object) -> str:
    return call_text("double", {"x": x})


def with_uses(*uses: ToolUse, yayi: str | None = None) -> Conversation:
    return Conversation((Turn("a", "b"), Turn("twice 4?", yayi, tool_uses=uses)), "s", DECLARATIONS)


def test_calls_are_run_until_an_answer_has_none(tools: ToolFile) -> None:
    answers = [answer_with_calls("先算。", [call(4), call(5)]), answer_with_calls("", [call(8)]), "16 <b>"]
    prompts: list[Conversation] = []
    answered = answer_with_tools(ASKED, saying(answers, prompts), tools)
    first, second = ToolUse((call(4), call(5)), ("8", "10"), "先算。"), ToolUse((call(8),), ("16",))
    assert prompts == [ASKED, with_uses(first), with_uses(first, second)]
    assert answered == with_uses(first, second, yayi="16 <b>")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (
            '{"name": "double",',
            "not JSON (Expecting property name enclosed in double quotes at line 1 column 19)",
        ),
        ("[]", "not a JSON object"),
        ('{"name": "half", "arguments": {}}', "there is no tool 'half'; there are double, sleep"),
        (call("4"), '\'x\' is "4", and not what {"type": "integer"} says'),
        (call_text("double", {}), "missing arguments: x"),
    ],
)
def test_a_call_that_is_wrong_goes_back_to_the_model(tools: ToolFile, said: str, problem: str) -> None:
    prompts: list[Conversation] = []
    answered = answer_with_tools(ASKED, saying([answer_with_calls("", [said]), "?"], prompts), tools)
    assert prompts[1] == with_uses(ToolUse((said,), (error_text(problem),)))
    assert answered.turns[-1].yayi == "?"


def test_a_call_is_run_only_where_it_is_allowed(tools: ToolFile) -> None:
    asked_for: list[Call] = []

    def allow(call: Call) -> bool:
        asked_for.append(call)
        return call.arguments["x"] == 5

    answers = [answer_with_calls("", [call(4), call(5), "no call"]), "."]
    answered = answer_with_tools(ASKED, saying(answers, []), tools, allow=allow)
    [use] = answered.turns[-1].tool_uses
    assert use.results[:2] == (error_text(REFUSED), "10")
    assert asked_for == [Call("double", {"x": 4}), Call("double", {"x": 5})]


def test_a_model_that_goes_on_calling_is_told_to_answer_and_then_stopped(tools: ToolFile) -> None:
    loop = ToolLoop(ASKED, tools, max_calls=3)
    answer = answer_with_calls("再算。", [call(4), "no call"])
    rounds = 0
    while loop.is_open:
        assert not loop.problem
        list(loop.take(answer))
        rounds += 1
    results = [result for use in loop.conversation.turns[-1].tool_uses for result in use.results]
    assert results[0] == results[2] == "8"
    assert "not JSON" in results[1]
    assert results[3:] == [error_text(TOO_MANY)]
    assert rounds == 3
    assert loop.problem == GOES_ON
    assert loop.conversation.turns[-1].yayi == "再算。"

    told = [*[answer_with_calls("", [call(4)])] * 2, "8"]
    answered = answer_with_tools(ASKED, saying(told, []), tools, max_calls=1)
    assert [use.results for use in answered.turns[-1].tool_uses] == [("8",), (error_text(TOO_MANY),)]
    assert answered.turns[-1].yayi == "8"


def test_results_that_the_model_cannot_read_are_replaced_the_longest_first(tools: ToolFile) -> None:
    prompts: list[Conversation] = []

    def fits(prompt: Conversation) -> bool:
        return sum(map(len, prompt.turns[-1].tool_uses[-1].results)) < 260

    answers = [answer_with_calls("", [call(10**k) for k in (1, 300, 2, 200)]), "."]
    answer_with_tools(ASKED, saying(answers, prompts), tools, fits=fits)
    short = error_text("a result of 301 characters is too long")
    assert prompts[1].turns[-1].tool_uses[0].results[:3] == ("20", short, "200")

    loop = ToolLoop(ASKED, tools, fits=lambda prompt: not prompt.turns[-1].tool_uses)
    list(loop.take(answers[0]))
    assert (loop.is_open, loop.problem, loop.conversation.turns[-1].yayi) == (False, TOO_LONG, "")


def test_stopping_a_tool_is_a_result_and_closing_the_iterator_ends_it(tools: ToolFile) -> None:
    loop = ToolLoop(ASKED, tools)
    loop.stop()  # nothing runs
    said = answer_with_calls("", [call_text("sleep", {}), call(1)])
    for number, _ in enumerate(loop.take(said)):
        if not number:
            loop.stop()
    assert loop.conversation == with_uses(
        ToolUse((call_text("sleep", {}), call(1)), (error_text("stopped by the user"), "2"))
    )
    before = loop.conversation
    taking = loop.take(said)
    next(taking)
    taking.close()
    assert loop.conversation == before
    assert loop.is_open
