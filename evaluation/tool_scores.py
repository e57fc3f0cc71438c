"""Which answers to questions for tools are right, in each of several ways, and the figures of that."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.objective_scores import accuracy, accuracy_text, share
from evaluation.tables import markdown
from evaluation.tool_questions import ToolQuestion, holds
from training.text.calls import Call, read_call
from training.text.conversation import domain_of

CALLED, RIGHT_TOOL, RIGHT_ARGUMENTS, NONE_CALLED, HOLDS_RESULT, ALL_RIGHT = MEASURES = (
    "called when it should",
    "right tool",
    "right arguments",
    "no call when none should be",
    "answer holds the result",
    "all of it right",
)

# What the table of scores calls them.
CHINESE = dict(
    zip(
        MEASURES,
        ("该调用时调用", "工具正确", "参数正确", "不该调用时不调用", "回答含结果", "全部正确率"),
        strict=True,
    )
)

# The name of all questions together.
EVERY = "all"


def judge_calls(question: ToolQuestion, entry: dict[str, Any]) -> dict[str, Any]:
    """A row of answers.jsonl: the question, what was called and answered, and which of it is right.

    entry: that of the journal, as of `tool_answers`. A measure that does not apply to the question is not in
    "is_right". Where a server gave no answer, nothing is right.
    """
    expected = question.expected
    said = entry.get("calls", [])
    made = [_call_or_none(call) for call in said]
    is_right: dict[str, bool] = {}
    if expected:
        is_right[CALLED] = bool(made)
        is_right[RIGHT_TOOL] = {call and call.name for call in made} == {call.name for call in expected}
        is_right[RIGHT_ARGUMENTS] = _are_same_calls(made, expected)
    else:
        is_right[NONE_CALLED] = not made
    if question.held:
        is_right[HOLDS_RESULT] = all(holds(entry["answer"], value) for value in question.held)
    no_answer = {name: entry[name] for name in ("refused", "failed") if name in entry}
    if no_answer:
        is_right = dict.fromkeys(is_right, False)
    is_right[ALL_RIGHT] = all(is_right.values())
    return {
        "place": question.place,
        "domain": domain_of(question.conversation),
        "question": question.text,
        "expected": [call._asdict() for call in expected],
        "held": question.held,
        "calls": [call._asdict() if call else text for call, text in zip(made, said, strict=True)],
        "results": entry.get("results", []),
        "answer": entry["answer"],
        "ended": entry["ended"],
        **no_answer,
        "is_right": is_right,
    }


def _call_or_none(text: str) -> Call | None:
    try:
        return read_call(text)
    except ValueError:  # no call, which is none of the expected ones
        return None


def _are_same_calls(made: Sequence[Call | None], expected: Sequence[Call]) -> bool:
    """Whether these are the same calls, in whatever order."""
    rest = list(expected)
    for call in made:
        found = next((at for at, other in enumerate(rest) if call and is_same_call(call, other)), None)
        if found is None:
            return False
        del rest[found]
    return not rest


def is_same_call(call: Call, other: Call) -> bool:
    """Whether two calls are of one tool with equal arguments."""
    return call.name == other.name and is_same_json(call.arguments, other.arguments)


def is_same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: numbers by their value, and objects whatever the order of keys.

    true is no number, and "1" is none.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def tool_figures(judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all questions, of each domain and of each tool, and how many answers are no answers.

    A question counts for each tool that it takes, and for its domain if it names one.
    """
    domains = dict.fromkeys(row["domain"] for row in judged if row["domain"])
    tools = dict.fromkeys(call["name"] for row in judged for call in row["expected"])
    return {
        "asked": len(judged),
        EVERY: _measured(judged),
        "domains": {name: _measured([row for row in judged if row["domain"] == name]) for name in domains},
        "tools": {
            name: _measured([row for row in judged if name in [call["name"] for call in row["expected"]]])
            for name in tools
        },
        "cut_off": share(not row["ended"] for row in judged),
        "refused": sum("refused" in row for row in judged),
        "failed": sum("failed" in row for row in judged),
    }


def _measured(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {measure: accuracy(measure, rows) for measure in MEASURES}


def tool_report(result: dict[str, Any]) -> str:
    """The result of an evaluation with questions for tools, as Markdown."""
    groups = {EVERY: result[EVERY], **result["domains"]}
    groups |= {f"`{name}`": figures for name, figures in result["tools"].items()}
    rows = [[name, *(accuracy_text(figures[one]) for one in MEASURES)] for name, figures in groups.items()]
    text = markdown(["share of questions, 95 % interval", *MEASURES], rows)
    text += f"\n{result['asked']:,} questions; {result['cut_off']:.1%} of the answers were cut off"
    for what in ("refused", "failed"):
        if result[what]:
            text += f"; {result[what]:,} questions {what}, of which nothing counts as right"
    return text + ".\n"


def tool_table(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of all questions as a table of scores, in the shape of the published ones."""
    *parts, whole = MEASURES
    overall = result[EVERY][whole]
    figures = [result[EVERY][part] for part in parts]
    row = {"model": result["model"], "rank": 1, "mean": overall["accuracy"], "interval": overall["interval"]}
    return {
        "title": f"工具调用 {Path(result['questions']).name}",
        "kind": "tools",
        "score": CHINESE[whole],
        "categories": [CHINESE[part] for part in parts],
        "rows": [row | {"scores": [figure and figure["accuracy"] for figure in figures]}],
    }
