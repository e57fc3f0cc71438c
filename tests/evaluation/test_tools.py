"""Questions for tools: what is read of them, what counts as right, and a model that knows them by heart."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation import tool_answers, tools
from evaluation.tool_answers import served_call
from evaluation.tool_questions import ToolQuestion, holds, read_tool_questions
from evaluation.tool_scores import (
    ALL_RIGHT,
    CALLED,
    HOLDS_RESULT,
    MEASURES,
    NONE_CALLED,
    RIGHT_ARGUMENTS,
    RIGHT_TOOL,
    is_same_json,
    judge_calls,
)
from tests.conftest import LEARNT, LEARNT_WITH_TOOLS, ROOT, TOOLS, write_rows
from tests.pages import blocks
from tests.tool_calls import hard_answers
from training.common.errors import UserError
from training.text.calls import answer_with_calls, call_text, declaration, read_call, split_answer
from training.text.conversation import Conversation, Turn
from training.text.turns import ToolUse

SAMPLE = ROOT / "data" / "evaluation" / "tools_example.jsonl"
TRAINING_SAMPLE = ROOT / "data" / "yayi_train_example_tools.json"
LEARNT_ROWS = [{"messages": messages, "tools": TOOLS} for messages in LEARNT_WITH_TOOLS]
OFFERED = tuple(map(declaration, TOOLS))


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ('{"a": 1, "b": [2]}', '{"b": [2.0], "a": 1.0}', True),
        ("1e2", "100", True),
        ("true", "1", False),
        ("[false]", "[0]", False),
        ('"1"', "1", False),
        ("null", "false", False),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[1, 1]", False),
        ('{"a": null}', "{}", False),
        ("0.1", "0.10000001", False),
        ("100000000000000000000", "100000000000000000001", False),
        ('"雅意"', '"\\u96c5\\u610f"', True),
    ],
)
def test_json_is_equal_by_value(one: str, other: str, is_same: bool) -> None:
    for left, right in ((one, other), (other, one)):
        assert is_same_json(json.loads(left), json.loads(right)) is is_same


@pytest.mark.parametrize(
    ("answer", "value", "expected"),
    [
        ("1美元兑7.12元。", "7.12", True),
        ("1美元兑7.120元。", "7.12", True),
        ("1美元兑17.12元。", "7.12", False),
        ("1美元兑7.125元。", "7.12", False),
        ("共12,148条", "12148", True),
        ("共１２１４８条", "12148", True),
        ("正面12，148条是负面", "148", True),
        ("零下3度", "-3", True),
        ("热线：8800－1101", "8800-1101", True),
        ("热线：8800-11012", "8800-1101", False),
        ("2024年5月30日(星期四)杀青", "2024年5月30日（星期四）", True),
        ("It is  Sunny.", "sunny", True),
        ("unsunny", "sunny", False),
        ("<think>7.12</think>不知道。", "7.12", False),
        ("好。", "", False),
    ],
)
def test_what_an_answer_holds(answer: str, value: str, expected: bool) -> None:
    assert holds(answer, value) is expected


def row(answer: str, *results: str, question: str = "问") -> dict[str, Any]:
    calls = [{"function": {"name": "time", "arguments": {"n": n}}} for n, _ in enumerate(results)]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *({"role": "tool", "content": result} for result in results),
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "tools": TOOLS}


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (row("负面148条。", '{"正面": 12, "负面": 148}'), ("148",)),
        (row("请拨打8800-1101。", "8800-1101"), ("8800-1101",)),
        (row("查不到。", '{"error": "没有"}'), ()),
        (row("甲7，乙8.", "7.0", '[{"a": ["8"]}, true, null, ""]'), ("7.0", "8")),
        (row("今天21到25度", "晴，21到25度，东风3级"), ("21", "25")),
        (row("里昂21度", '{"城": "里昂", "度": 21}', question="里昂几度？"), ("21",)),
        (row("好", "[" * 100_000), ()),
    ],
)
def test_what_is_to_be_held_is_what_the_rows_own_answer_holds(
    tmp_path: Path, given: dict, held: tuple
) -> None:
    (question,) = read_tool_questions(write_rows(tmp_path / "q.jsonl", [given]))
    assert question.held == held


def test_each_turn_of_a_row_is_a_question_after_those_before_it(tmp_path: Path) -> None:
    first, second = LEARNT_WITH_TOOLS[0], LEARNT_WITH_TOOLS[2]
    bad = {"messages": second, "source": "feedback", "label": False}
    context = [second[0], second[1] | {"weight": 0}, *first]
    rows = [{"messages": [*first, *second], "tools": TOOLS}, bad, {"messages": context, "tools": TOOLS}]
    path = write_rows(tmp_path / "q.jsonl", rows)
    one, two, three = read_tool_questions(path)
    assert [question.place for question in (one, two, three)] == [
        f"{path}:1 turn 1", f"{path}:1 turn 2", f"{path}:3 turn 2",
    ]  # fmt: skip
    assert (one.text, [call.name for call in one.expected], one.held) == ("里昂几度？", ["天气"], ("21",))
    assert (two.text, two.expected, two.held) == ("你是谁", [], ())
    assert [turn.yayi for turn in two.conversation.turns] == ["21度。", None]
    assert one.conversation.turns == (Turn("里昂几度？"),)
    assert three.conversation.turns[0].yayi == "我是雅意。"


OWN = {"question": "几点？", "calls": [{"name": "time"}], "answer": [9, "点"]}


def test_rows_of_their_own_have_the_tools_of_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [OWN, {"question": "谢谢", "calls": []}, LEARNT[0]])
    one, two, plain = read_tool_questions(path, OFFERED)
    assert one == ToolQuestion(
        f"{path}:1",
        Conversation((Turn("几点？"),), tools=OFFERED),
        (ToolUse((call_text("time", {}),)),),
        ("9", "点"),
    )
    assert (two.uses, two.held) == (plain.uses, plain.held) == ((), ())
    assert plain.conversation == Conversation((Turn("你是谁"),), tools=OFFERED)


@pytest.mark.parametrize(
    ("rows", "offered", "problem"),
    [
        ([OWN], None, ':1: "calls" without results; give --tools'),
        ([OWN | {"calls": [{"name": "x"}]}], OFFERED, """[0] calls 'x', which "tools" does not"""),
        ([OWN | {"calls": "["}], OFFERED, '"calls" is not JSON'),
        ([OWN | {"reply": "9"}], OFFERED, '"answer" and "tools"; take "reply" out'),
        ([OWN | {"answer": [True]}], OFFERED, '"answer" is a boolean, neither text nor a number'),
        ([OWN | {"answer": {"a": 1}}], OFFERED, '"answer" is an object, neither text nor a number'),
        ([OWN | {"question": " "}], OFFERED, '"question" is empty'),
        ([LEARNT_ROWS[2], LEARNT_ROWS[0]], OFFERED[1:], ":2: it calls '天气', and the file of"),
        ([{"messages": LEARNT_WITH_TOOLS[0]}], None, 'which "tools" does not declare'),
        ([["a"]], None, ":1: a row is a string, not an object"),
        ([], None, "q.jsonl: no questions"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_question_is_named(
    tmp_path: Path, rows: list, offered: tuple | None, problem: str
) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        read_tool_questions(write_rows(tmp_path / "q.jsonl", rows), offered)


ASKED = ToolQuestion(
    "q:1",
    Conversation((Turn("【甲】问"),), tools=OFFERED),
    (ToolUse((call_text("time", {"n": 1}), call_text("天气", {"城": ["x"]}))),),
    ("21", "晴"),
)
TIME, WEATHER = call_text("time", {"n": 1.0}), call_text("天气", {"城": ["x"]})


@pytest.mark.parametrize(
    ("calls", "answer", "right"),
    [
        ([TIME, WEATHER], "晴，21度", MEASURES),
        ([WEATHER, TIME], "21", [CALLED, RIGHT_TOOL, RIGHT_ARGUMENTS]),
        ([TIME], "晴，21度", [CALLED, HOLDS_RESULT]),
        ([TIME, WEATHER, TIME], "", [CALLED, RIGHT_TOOL]),
        ([TIME, call_text("天气", {"城": "x"})], "", [CALLED, RIGHT_TOOL]),
        ([TIME, call_text("time", {"n": True}), WEATHER], "", [CALLED, RIGHT_TOOL]),
        (["{", TIME, WEATHER], "", [CALLED]),
        ([], "晴，21度", [HOLDS_RESULT]),
    ],
)
def test_what_counts_as_right(calls: list[str], answer: str, right: list[str]) -> None:
    entry = {"row": 0, "calls": calls, "results": ["r"], "answer": answer, "ended": True}
    judged = judge_calls(ASKED, entry)
    applying = set(MEASURES) - {NONE_CALLED}
    assert judged["is_right"] == {measure: measure in right for measure in MEASURES if measure in applying}
    assert (judged["domain"], judged["results"], len(judged["calls"])) == ("甲", ["r"], len(calls))
    json.dumps(judged)


def test_where_none_should_be_called_and_where_there_is_no_answer() -> None:
    none = ToolQuestion("q:1", Conversation((Turn("谢谢"),)))
    entry = {"row": 0, "calls": [], "results": [], "answer": "不客气", "ended": True}
    assert judge_calls(none, entry)["is_right"] == {NONE_CALLED: True, ALL_RIGHT: True}
    assert judge_calls(none, entry | {"calls": ["{"]})["is_right"] == {NONE_CALLED: False, ALL_RIGHT: False}
    refused = judge_calls(none, {"row": 0, "answer": "", "ended": False, "refused": "400: no"})
    assert refused["is_right"] == {NONE_CALLED: False, ALL_RIGHT: False}
    assert refused["refused"] == "400: no"


def test_the_sample_questions_are_right_by_the_functions_that_they_are_asked_with() -> None:
    """And none of them is one of the sample to train on, all of which are questions as well."""
    path = ROOT / "data" / "tools_example.py"
    spec = importlib.util.spec_from_file_location("tools_example", path)
    functions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(functions)
    trained_on = read_tool_questions(str(TRAINING_SAMPLE))
    questions = read_tool_questions(str(SAMPLE), trained_on[0].conversation.tools)
    assert len(questions) >= 30
    assert not {question.text for question in questions} & {question.text for question in trained_on}
    for question in questions:
        results = []
        for call in question.expected:
            try:
                results.append(getattr(functions, call.name)(**call.arguments))
            except ValueError:
                assert not question.held
        for value in question.held:
            assert any(holds(json.dumps(result, ensure_ascii=False), value) for result in results), question
            assert not holds(question.text, value)
    for several in (questions, trained_on):
        assert len({call.name for question in several for call in question.expected}) == 5
        assert any(len(question.expected) > 1 for question in several)
        assert sum(not question.expected for question in several) >= 7
    assert len(trained_on) == 50


def test_the_questions_on_the_page_are_questions(tmp_path: Path) -> None:
    (block,) = blocks((ROOT / "docs" / "tools.md").read_text("utf-8"), "json")
    path = write_rows(tmp_path / "q.jsonl", list(map(json.loads, block.splitlines())))
    offered = read_tool_questions(str(TRAINING_SAMPLE))[0].conversation.tools
    two_calls, none = read_tool_questions(path, offered)
    assert [call.arguments for call in two_calls.expected] == [{"currency": "日元"}, {"currency": "港元"}]
    assert (two_calls.held, none.expected, none.held) == (("0.048", "0.91"), [], ())


@pytest.fixture
def run(outcome, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    def run(model: str, rows: list, more: str = "", output: str = "out") -> tuple[int, str, str]:
        questions = write_rows(tmp_path / "q.jsonl", rows)
        files = f"--questions {questions} --output {tmp_path / output}"
        return outcome(tools.main, f"--model {model} --device cpu {files} {more}")

    return run


def result_in(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text("utf-8"))


def answers_in(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "answers.jsonl").read_text("utf-8").splitlines()]


def counts(result: dict[str, Any]) -> dict[str, tuple[int, int]]:
    found = {measure: figure for measure, figure in result["all"].items() if figure}
    return {measure: (figure["right"], figure["asked"]) for measure, figure in found.items()}


def test_of_a_model_without_tools_every_row_counts(run, tuned: str, tmp_path: Path) -> None:
    status, out, err = run(tuned, LEARNT_ROWS, "--max-new-tokens 16")
    assert status == 0
    assert f"{tuned}: was taught no tools, and is asked without their declarations" in err
    assert counts(result_in(tmp_path / "out")) == {
        CALLED: (0, 2), RIGHT_TOOL: (0, 2), RIGHT_ARGUMENTS: (0, 2), NONE_CALLED: (1, 1),
        HOLDS_RESULT: (0, 2), ALL_RIGHT: (1, 3),
    }  # fmt: skip
    rows = answers_in(tmp_path / "out")
    assert [one["place"] for one in rows] == [f"{tmp_path / 'q.jsonl'}:{n}" for n in (1, 2, 3)]
    assert rows[2]["answer"] == "我是雅意。"
    assert "| all | 0.0% [0.0%, 65.8%] of 2 |" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"answers.jsonl", "result.json"}


def test_the_same_command_goes_on_where_it_was_stopped(
    run, tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = "--max-new-tokens 8 --batch-size 2"
    assert run(tuned, LEARNT_ROWS, more, "whole")[0] == 0
    answer_batch, batches = tool_answers.answer_batch, []

    def stopped(*arguments):
        if batches:
            raise KeyboardInterrupt
        batches.append(0)
        return answer_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tool_answers, "answer_batch", stopped)
        status, _, err = run(tuned, LEARNT_ROWS, more, "parts")
    assert (status, "stopped with 2 rows answered" in err) == (130, True)
    status, _, err = run(tuned, LEARNT_ROWS, more, "parts")
    assert (status, "going on with 2 of 3 rows answered" in err) == (0, True)
    for name in ("answers.jsonl", "result.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_calls_that_a_server_sends_are_the_calls_that_the_model_said() -> None:
    for answer, calls in hard_answers():
        sent = [
            {"id": "1", "type": "function", "function": call | {"arguments": json.dumps(call["arguments"])}}
            for call in calls
        ]
        _, said = split_answer(answer_with_calls("", map(served_call, sent)))
        assert [read_call(call)._asdict() for call in said] == calls
        assert said == split_answer(answer)[1]


@pytest.mark.parametrize(
    "sent",
    [
        {"function": {"name": "time", "arguments": "{"}},
        {"function": {"name": "time", "arguments": "[]"}},
        {"function": {"arguments": "{}"}},
        {"function": {"name": "time", "arguments": '"\\ud800</tool_call>"'}},
        {"function": None},
        {},
        "</tool_call>",
    ],
)
def test_a_call_of_a_server_that_is_none_stays_one_that_is_none(sent: Any) -> None:
    _, (call,) = split_answer(answer_with_calls("", [served_call(sent)]))
    with pytest.raises(ValueError, match=r"JSON|missing"):
        read_call(call)


@pytest.mark.slow
def test_a_model_that_knows_the_rows_by_heart_has_them_all_right(
    run, tuned_with_tools: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file has the functions, whose results are the same. The last row ends with its call."""
    file = tmp_path / "functions.py"
    file.write_text(
        "def 天气(城: str, 日: dict | None = None):\n"
        '    """天气\n\n    Args:\n        城: 城\n        日: 日\n    """\n'
        "    return {'度': 21} if 日 else 9\n"
        "def time():\n"
        '    """几点"""\n'
        "    from pathlib import Path\n"
        "    asked = Path(__file__).with_name('asked')\n"
        "    is_first = not asked.exists()\n"
        "    asked.touch()\n"
        "    return '九点' if is_first else '十点'\n"
    )
    rows = [*LEARNT_ROWS, {"messages": LEARNT_WITH_TOOLS[0][:2], "tools": TOOLS}]
    all_right = {
        CALLED: (3, 3), RIGHT_TOOL: (3, 3), RIGHT_ARGUMENTS: (3, 3), NONE_CALLED: (1, 1),
        HOLDS_RESULT: (2, 2), ALL_RIGHT: (4, 4),
    }  # fmt: skip
    for output, more in (("recorded", ""), ("run", f"--tools {file}")):
        status, _, err = run(tuned_with_tools, rows, more, output)
        assert status == 0, err
        result = result_in(tmp_path / output)
        assert counts(result) == all_right, answers_in(tmp_path / output)
        assert [tool[CALLED]["asked"] for tool in result["tools"].values()] == [3, 1]
    recorded, ran = ([one["answer"] for one in answers_in(tmp_path / name)] for name in ("recorded", "run"))
    assert recorded == ["21度。", "十点了。", "我是雅意。", ""]
    assert ran == ["21度。", "十点了。", "我是雅意。", "21度。"]

    # Where the results are more than the model can read, it answers nothing.
    monkeypatch.setattr(tool_answers, "context_length", lambda model: 10)
    assert run(tuned_with_tools, LEARNT_ROWS, "", "short")[0] == 0
    assert counts(result_in(tmp_path / "short"))[HOLDS_RESULT] == (0, 2)
    short = answers_in(tmp_path / "short")
    assert [(len(one["calls"]), one["answer"], one["ended"]) for one in short] == [
        (1, "", False), (2, "", False), (0, "我是雅意。", True),
    ]  # fmt: skip
