"""The chat with tools, on a model that was taught calls by heart."""

import itertools
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput

from inference import chat, options, talk
from inference.chat_tools import LONGEST_SHOWN, ChatTools, before_calls, in_one_line, unless_empty
from inference.screen import Screen
from inference.terminal import Inputs
from inference.tool_process import ToolFile
from tests.conftest import LEARNT_WITH_TOOLS, TOOLS
from tests.inference.test_chat import GREEDY, asked, type_lines  # noqa: F401, a fixture
from tests.inference.test_terminal import CTRL_C, CTRL_D, ENTER
from training.data.reader import read_rows
from training.text.calls import Call, declaration
from training.text.conversation import Conversation, from_row
from training.text.turns import Turn

# What the model was taught that these return; `time` is another at the second call.
FUNCTIONS = """
import os, signal, time as clock

def 天气(城, 日=None):
    return {"度": 21} if 日 else 9

def time():
    try:
        open("called", "x").close()
    except FileExistsError:
        return "十点"
    return "九点"
"""
WEATHER = "里昂几度？"
SHOWN_WEATHER = (
    '[天气 {"城": "里\\\\"昂\\\\"\\\\n<\\\\/tool_call>", "日": {"几": [1, 2.5]}}]'.replace("\\\\", "\\"),
    '[天气: {"度": 21}]',
)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolFile:
    """A file with the tools that the model knows; its declarations are there without a process."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tools.py"
    path.write_text(FUNCTIONS)
    file = ToolFile(path, tuple(declaration(tool) for tool in TOOLS), ("tools.py: f is not offered: why",))
    monkeypatch.setattr(options, "load_tools", lambda _: file)
    return file


def learnt(number: int) -> Turn:
    [turn] = from_row({"messages": LEARNT_WITH_TOOLS[number], "tools": TOOLS}).turns
    return turn


def arguments_of(model: str, tools: ToolFile) -> str:
    return f"--model {model} {GREEDY} --tools {tools.path} --yes --max-new-tokens 200"


def test_a_call_is_run_and_the_answer_follows(outcome, tuned_with_tools: str, tools: ToolFile) -> None:
    arguments = arguments_of(tuned_with_tools, tools)
    status, out, err = outcome(chat.main, f"{arguments} --prompt {WEATHER}")
    assert (status, out) == (0, "21度。\n")
    assert err.splitlines() == ["[tools.py: f is not offered: why]", *SHOWN_WEATHER]
    assert outcome(chat.main, f"{arguments} --prompt 你是谁")[1:] == (
        "我是雅意。\n",
        "[tools.py: f is not offered: why]\n",
    )


def test_a_dialogue_with_calls_is_taken_back_asked_again_saved_and_gone_on_with(
    outcome,
    tuned_with_tools: str,
    tools: ToolFile,
    monkeypatch,
    asked: list[Conversation],  # noqa: F811
) -> None:
    arguments = arguments_of(tuned_with_tools, tools)
    type_lines(monkeypatch, [WEATHER, "/undo", "现在呢", "/save d.jsonl"])
    status, out, err = outcome(chat.main, arguments)
    assert (status, out) == (0, "YaYi: 21度。\nYaYi: 十点了。\n\n")
    assert err.splitlines()[3] == f"[taken back: {WEATHER}]"
    assert err.splitlines()[4:] == [
        "[time {}]",
        '[天气 {"城": "x"}]',
        "[time: 九点]",
        "[天气: 9]",
        "[time {}]",
        "[time: 十点]",
        "[saved d.jsonl]",
    ]
    turn = learnt(1)
    assert [conversation.turns[-1].tool_uses for conversation in asked] == [
        *[learnt(0).tool_uses[:count] for count in range(2)],
        *[turn.tool_uses[:count] for count in range(3)],
    ]
    [(_, row)] = read_rows("d.jsonl")
    assert from_row(row, answered=True) == Conversation((turn,), tools=tools.declarations)

    os.remove("called")
    asked.clear()
    type_lines(monkeypatch, ["/load d.jsonl", "/retry"])
    status, out, _ = outcome(chat.main, arguments)
    assert (status, out) == (0, "Human: 现在呢\nYaYi: 十点了。\nYaYi: 十点了。\n\n")
    assert [conversation.turns[-1].tool_uses for conversation in asked] == [
        turn.tool_uses[:count] for count in range(3)
    ]


def test_prompts_after_calls_are_read_from_where_the_model_stopped(
    outcome, tuned_with_tools: str, tools: ToolFile, monkeypatch
) -> None:
    """All that it has read and said stays in the KV cache, but for the last token, which it has not read."""
    answers = []
    stream = talk.stream

    def recording(*args, **how):
        answers.append(stream(*args, **how))
        return answers[-1]

    monkeypatch.setattr(talk, "stream", recording)
    outcome(chat.main, f"{arguments_of(tuned_with_tools, tools)} --prompt 现在呢")
    assert len(answers) == 3
    for before, after in itertools.pairwise(answers):
        assert after.recalled_tokens == before.prompt_tokens + before.tokens - 1


def test_ctrl_c_stops_the_tool_and_the_model_reads_that(
    outcome,
    tuned_with_tools: str,
    tools: ToolFile,
    asked: list[Conversation],  # noqa: F811
) -> None:
    tools.path.write_text(
        f"import os, time as clock\n"
        f"def 天气(城, 日):\n    os.kill(os.getppid(), {int(signal.SIGINT)})\n    clock.sleep(1000)\n"
    )
    arguments = f"{arguments_of(tuned_with_tools, tools)} --max-calls 1 --prompt {WEATHER}"
    status, _, err = outcome(chat.main, arguments)
    assert status == 0
    assert '[天气: {"error": "stopped by the user"}]' in err
    assert asked[1].turns[-1].tool_uses[0].results == ('{"error": "stopped by the user"}',)


def test_a_result_that_does_not_fit_is_an_error_that_the_model_reads(
    outcome,
    tuned_with_tools: str,
    tools: ToolFile,
    asked: list[Conversation],  # noqa: F811
) -> None:
    tools.path.write_text('def 天气(城, 日):\n    return "天" * 50_000\n')
    arguments = f"{arguments_of(tuned_with_tools, tools)} --max-calls 1 --prompt {WEATHER}"
    status, _, err = outcome(chat.main, arguments)
    assert status == 0
    assert '[天气: {"error": "a result of 50,000 characters is too long"}]' in err
    assert len(asked) > 1


def test_calls_beyond_the_limit_are_not_run(outcome, tuned_with_tools: str, tools: ToolFile) -> None:
    arguments = f"{arguments_of(tuned_with_tools, tools)} --max-calls 1 --prompt 现在呢"
    status, _, err = outcome(chat.main, arguments)
    assert status == 0
    assert err.splitlines()[1:4] == [
        "[time {}]",
        "[time: 九点]",
        '[天气: {"error": "no more calls can be made for this question, and this one was not; answer it"}]',
    ]
    assert err.count("[time {}]") == 1


def test_a_rated_answer_has_its_calls(outcome, tuned_with_tools: str, tools: ToolFile, monkeypatch) -> None:
    type_lines(monkeypatch, [WEATHER, "/fix 二十一度。"])
    assert outcome(chat.main, f"{arguments_of(tuned_with_tools, tools)} --feedback said.jsonl")[0] == 0
    [(_, row)] = read_rows("said.jsonl")
    [turn] = from_row(row, answered=True).turns
    assert (turn.yayi, turn.is_context) == ("二十一度。", False)
    assert [(use.results, use.is_context) for use in turn.tool_uses] == [(('{"度": 21}',), True)]


def test_tools_are_refused_in_one_line_where_they_cannot_work(
    outcome, tuned: str, tuned_with_tools: str, tools: ToolFile
) -> None:
    untaught = f"{tuned} was taught no tools, its tokenizer has no <|Tool|>"
    lines = {
        arguments_of(
            tuned, tools
        ): f"error: --tools {tools.path}: {untaught}; leave --tools out, or train a model on rows with tools",
        f"--model {tuned_with_tools} --tools {tools.path}": (
            "error: --tools: there is no terminal on which to ask about a call; --yes runs all of them"
        ),
    }
    for arguments, line in lines.items():
        status, out, err = outcome(chat.main, f"{arguments} --prompt 你是谁")
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == line


def test_a_person_allows_a_call_or_all_calls_of_a_tool(keyboard: PipeInput, tools: ToolFile, capsys) -> None:
    asking = ChatTools(tools, 8, Screen(), Inputs("Human: "))
    keyboard.send_text(f"what{ENTER}{ENTER}Y{ENTER}n{ENTER}{CTRL_C}{CTRL_D}always{ENTER}n{ENTER}")
    first, second = Call("time", {}), Call("天气", {"城": "\x1b[31m"})
    assert [asking.allow(call) for call in (first,) * 7] == [True, False, False, False, True, True, True]
    assert not asking.allow(second)
    assert asking.allow(first)
    assert "天气" in (shown := capsys.readouterr().err)
    assert "\\x1b[31m" in shown or "\\u001b[31m" in shown


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("我查。<tool_call>\n{}\n</tool_call>", "我查。"),
        ("<tool_call>\n{}\n</tool_call>\n<tool_call>", ""),
        ("1 < 2, <tool>, <tool_", "1 < 2, <tool>, <tool_"),
        ("<<tool_call>", "<"),
        ("<tool_<tool_call>", "<tool_"),
        ("", ""),
    ],
)
def test_an_answer_is_shown_up_to_its_first_call(answer: str, shown: str) -> None:
    cuts = range(len(answer) + 1)
    for first, second in itertools.combinations_with_replacement(cuts, 2):
        pieces = [answer[:first], answer[first:second], answer[second:]]
        taken: list[str] = []

        def noting(pieces: Iterable[str] = pieces, taken: list[str] = taken) -> Iterable[str]:
            for piece in pieces:
                taken.append(piece)
                yield piece

        yielded = unless_empty(before_calls(noting()))
        assert ("" if yielded is None else "".join(yielded)) == shown
        assert taken == pieces


def test_what_is_shown_of_a_result_is_one_line() -> None:
    assert in_one_line("a\nb") == "a\\nb"
    assert re.fullmatch(r"x{400}\.\.\. \(10,000,000 characters\)", in_one_line("x" * 10_000_000))
    assert in_one_line("x" * LONGEST_SHOWN) == "x" * LONGEST_SHOWN
