"""A file is answered with tools. What the model says is written here, but for the one test that is slow."""

import json
from pathlib import Path

import pytest

from inference import batch, batch_tools, options
from inference.batch_answers import BatchAnswer
from inference.tool_loop import GOES_ON
from inference.tool_process import ToolFile
from tests.conftest import LEARNT_WITH_TOOLS, TOOLS, write_rows
from tests.inference.test_chat_tools import FUNCTIONS, WEATHER, answers, learnt
from training.text.calls import answer_with_calls, call_text, declaration, error_text
from training.text.tokenizer import load_tokenizer
from training.tiny_bloom import random_bloom


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolFile:
    monkeypatch.chdir(tmp_path)
    Path("tools.py").write_text(FUNCTIONS)
    file = ToolFile(Path("tools.py"), tuple(declaration(tool) for tool in TOOLS))
    monkeypatch.setattr(options, "load_tools", lambda _: file)
    return file


OWN = {"type": "function", "function": {"name": "date"}}
ROWS = [
    {"prompt": "你是谁"},
    {"messages": LEARNT_WITH_TOOLS[0], "tools": TOOLS},
    {"messages": [{"role": "user", "content": "几号？"}], "tools": [OWN]},
    {"prompt": "再算"},
]
ARGUMENTS = "--model m --input in.jsonl --output out.jsonl --tools tools.py --max-calls 2"


def rows_of(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@pytest.fixture
def rounds(base: str, tools: ToolFile, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A model that answers by a table; the last questions of the prompts of each round."""
    tokenizer = load_tokenizer(base, tools=True)
    model = random_bloom(len(tokenizer))
    monkeypatch.setattr(batch, "load_from_options", lambda _: (model, tokenizer))
    noted: list[list[str]] = []
    date, again = call_text("date", {}), call_text("time", {})
    table = {
        "你是谁": ["我是雅意。"],
        WEATHER: answers(learnt(0)),
        "几号？": [answer_with_calls("", [date, '{"name"']), "不知道。"],
        "再算": [answer_with_calls("算。", [again])] * 8,
    }

    def answer_batch(model, tokenizer, prompts: list[list[int]], config) -> list[BatchAnswer]:
        texts = [tokenizer.decode(ids) for ids in prompts]
        asked = [next(question for question in table if f"<|Human|>:\n{question}" in text) for text in texts]
        noted.append(asked)
        return [BatchAnswer(table[question].pop(0), True, 5) for question in asked]

    monkeypatch.setattr(batch_tools, "answer_batch", answer_batch)
    write_rows(Path("in.jsonl"), ROWS)
    return noted


def test_rows_are_answered_with_the_tools_of_the_file(outcome, rounds: list[list[str]]) -> None:
    status, _, err = outcome(batch.main, f"{ARGUMENTS} --batch-size 4")
    assert status == 0
    assert err.startswith("out.jsonl: 4 rows, 45 tokens; ")
    assert err.endswith(f"; 0 answers cut off at --max-new-tokens 512; 1: {GOES_ON}\n")
    assert [sorted(asked) for asked in rounds] == [
        sorted(["你是谁", WEATHER, "几号？", "再算"]),
        sorted([WEATHER, "几号？", "再算"]),
        ["再算"],
        ["再算"],
    ]
    who, weather, date, again = rows_of("out.jsonl")
    assert who == ROWS[0] | {"answer": "我是雅意。", "ended": True, "calls": []}
    [use] = learnt(0).tool_uses
    call = json.loads(use.calls[0])
    assert weather == ROWS[1] | {
        "answer": "21度。",
        "ended": True,
        "calls": [call | {"result": '{"度": 21}'}],
    }
    no_date = error_text("there is no tool 'date'; there are 天气, time")
    assert date["calls"][0] == {"name": "date", "arguments": {}, "result": no_date}
    assert date["calls"][1]["text"] == '{"name"'
    assert "not JSON" in date["calls"][1]["result"]
    assert (date["answer"], date["ended"]) == ("不知道。", True)
    assert [call["result"] for call in again["calls"]][:2] == ["九点", "十点"]
    assert (again["answer"], again["ended"], len(again["calls"])) == ("算。", False, 3)


def test_a_run_with_tools_goes_on_with_the_same_tools(
    outcome, rounds: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_batch = batch_tools.answer_batch

    def interrupted(*args) -> list[BatchAnswer]:
        if len(rounds) == 4:
            raise KeyboardInterrupt
        return answer_batch(*args)

    monkeypatch.setattr(batch_tools, "answer_batch", interrupted)
    assert outcome(batch.main, f"{ARGUMENTS} --batch-size 1")[0] == 130
    monkeypatch.setattr(batch_tools, "answer_batch", answer_batch)
    answered = len(rows_of("out.jsonl.partial")) - 1
    assert 0 < answered < 4

    status, _, err = outcome(batch.main, ARGUMENTS.replace("--max-calls 2", "--max-calls 3"))
    assert status == 2
    assert "begun with --max-calls 2, not --max-calls 3" in err
    tools = Path("tools.py").read_bytes()
    Path("tools.py").write_bytes(tools + b"\n")
    status, _, err = outcome(batch.main, ARGUMENTS)
    assert status == 2
    assert "begun with --tools" in err
    Path("tools.py").write_bytes(tools)

    rounds.clear()
    assert outcome(batch.main, f"{ARGUMENTS} --batch-size 1")[0] == 0
    assert len({question for asked in rounds for question in asked}) == 4 - answered
    assert [row["answer"] for row in rows_of("out.jsonl")] == ["我是雅意。", "21度。", "不知道。", "算。"]


def test_a_row_that_has_calls_already_is_an_error_with_tools_alone(outcome, rounds) -> None:
    write_rows(Path("in.jsonl"), [{"prompt": "你是谁", "calls": [1]}])
    status, _, err = outcome(batch.main, ARGUMENTS)
    assert status == 2
    assert 'in.jsonl:1: "calls" is there already, and would be written over' in err


@pytest.mark.slow  # the model has to be taught
def test_a_model_that_was_taught_calls_answers_a_file(
    outcome, tuned_with_tools: str, tools: ToolFile
) -> None:
    write_rows(Path("in.jsonl"), [{"messages": messages[:1]} for messages in LEARNT_WITH_TOOLS])
    arguments = ARGUMENTS.replace("--model m", f"--model {tuned_with_tools}").replace("--max-calls 2", "")
    status, _, _ = outcome(batch.main, f"{arguments} --temperature 0 --repetition-penalty 1 --batch-size 3")
    assert status == 0
    rows = rows_of("out.jsonl")
    assert [row["answer"] for row in rows] == ["21度。", "十点了。", "我是雅意。"]
    assert [[call["result"] for call in row["calls"]] for row in rows] == [
        ['{"度": 21}'],
        ["九点", "9", "十点"],
        [],
    ]
