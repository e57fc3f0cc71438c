import builtins
import io
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from prompt_toolkit.input import PipeInput
from transformers import GenerationMixin

from inference import chat, generation, talk
from inference.screen import Screen
from tests.conftest import write_rows
from tests.inference.test_terminal import CTRL_D, ENTER
from training.common.errors import run_command
from training.consts import INTRO
from training.data.reader import read_rows
from training.text.conversation import Conversation, from_row
from training.text.encoding import encode_prompt
from training.text.tokenizer import load_tokenizer
from training.tiny_bloom import random_bloom

GREEDY = "--temperature 0 --repetition-penalty 1"


def type_lines(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str | type[BaseException]]) -> None:
    """Type lines as a person does, and then Ctrl-D; an exception stands for the key that raises it."""
    typed = iter([*lines, EOFError])

    def typed_input(label: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", typed_input)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """The conversations that the model was asked to continue."""
    conversations = []
    stream = talk.stream

    def recording(model, tokenizer, conversation, **how):
        conversations.append(conversation)
        assert how["input_ids"] == encode_prompt(conversation, tokenizer)
        return stream(model, tokenizer, conversation, **how)

    monkeypatch.setattr(talk, "stream", recording)
    return conversations


def test_one_prompt_prints_the_answer_alone(outcome, tuned: str) -> None:
    for directory in (tuned, Path(tuned).parent):  # the model's, and that of its run
        arguments = f"--model {directory} {GREEDY} --prompt 你是谁"
        assert outcome(chat.main, arguments)[:2] == (0, "我是雅意。\n")


def test_what_a_model_in_few_bits_takes_is_printed(outcome, tuned: str) -> None:
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} --prompt 你是谁 --load-in-8bit")
    assert (status, out) == (0, "我是雅意。\n")
    assert re.search(r"\[layers in 8 bits; the model takes \d\.\d MB\]", err)


def test_an_answer_cut_by_the_limit_is_said_on_stderr(outcome, tuned: str) -> None:
    _, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} --prompt 你是谁 --max-new-tokens 3")
    assert "我是雅意。".startswith(out.strip())
    assert "[cut off at --max-new-tokens 3]" in err


def test_the_dialogue_is_remembered(outcome, tuned: str, monkeypatch, asked: list) -> None:
    type_lines(monkeypatch, ["标题？", "  ", "再短一点。"])
    status, out, _ = outcome(chat.main, f"--model {tuned} {GREEDY} --system 你是一名记者。")
    assert status == 0
    assert out == "YaYi: 大桥通车\nYaYi: 通车\n\n"
    assert [(turn.human, turn.yayi) for turn in asked[1].turns] == [
        ("标题？", "大桥通车"),
        ("再短一点。", None),
    ]
    assert asked[1].system == "你是一名记者。"


def test_memory_that_runs_out_is_one_line_and_keeps_the_dialogue(
    outcome, tuned, monkeypatch, asked: list
) -> None:
    generate, calls = GenerationMixin.generate, itertools.count()

    def fails_at_the_second(*args, **kwargs) -> torch.Tensor:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return generate(*args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", fails_at_the_second)
    type_lines(monkeypatch, ["标题？", "你是谁", "再短一点。"])
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} --system 你是一名记者。")
    assert (status, out.replace("YaYi: ", "").split()) == (0, ["大桥通车", "通车"])
    assert "[the memory does not suffice for an answer after " in err
    assert "Traceback" not in err
    assert [turn.human for turn in asked[-1].turns] == ["标题？", "再短一点。"]


def test_ctrl_c_stops_the_answer_and_keeps_the_dialogue(outcome, tuned, monkeypatch, asked: list) -> None:
    class StoppedAfterOnePiece(generation.Answer):
        def __iter__(self):
            for piece in super().__iter__():
                signal.raise_signal(signal.SIGINT)
                yield piece

    class Unhurried(generation._TokenQueue):
        """Waits, or else the tiny model may have said all before its first piece is read."""

        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            time.sleep(0.05)

    monkeypatch.setattr(generation, "_TokenQueue", Unhurried)
    answers = iter([StoppedAfterOnePiece, generation.Answer])
    monkeypatch.setattr(generation, "Answer", lambda *args: next(answers)(*args))
    type_lines(monkeypatch, ["你是谁", "标题？"])
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY}")
    assert status == 0
    assert "[stopped]" in err
    partial = asked[1].turns[0].yayi
    assert partial
    assert "我是雅意。".startswith(partial)
    assert len(asked[1].turns) == 2
    assert out.startswith(f"YaYi: {partial}")


def test_ctrl_c_at_the_prompt_only_drops_the_line(outcome, tuned: str, monkeypatch) -> None:
    type_lines(monkeypatch, [KeyboardInterrupt, "你是谁"])
    assert outcome(chat.main, f"--model {tuned} {GREEDY}")[:2] == (0, "YaYi: 我是雅意。\n\n")


def test_a_line_in_another_encoding_is_not_sent(outcome, tuned: str, monkeypatch, asked: list) -> None:
    type_lines(monkeypatch, ["\udcc4\udce3", "你是谁"])
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY}")
    assert (status, out) == (0, "YaYi: 我是雅意。\n\n")
    assert "[not UTF-8, not sent]" in err
    assert len(asked) == 1


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], list[io.BytesIO]]:
    """A function that gives this process a stdin with those bytes, and returns its stdout and stderr.

    All three have the encoding.
    """

    def given(encoding: str, typed: bytes) -> list[io.BytesIO]:
        streams = [io.BytesIO(typed), io.BytesIO(), io.BytesIO()]
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding))
        return streams[1:]

    return given


def test_a_terminal_in_another_encoding_shows_what_it_can(tuned: str, streams, monkeypatch) -> None:
    out, err = streams("gbk", "笑一个\n".encode("gbk") + b"\xff\n" + "/不\n".encode("gbk"))
    monkeypatch.setattr(sys, "argv", ["chat", "--model", tuned, *GREEDY.split()])
    with pytest.raises(SystemExit) as exit_:
        run_command(chat.main)
    assert not exit_.value.code
    assert out.getvalue().decode("gbk") == "YaYi: \\U0001f600\\U0001f004\\U00020bb7 好\n\n"
    assert err.getvalue().decode("gbk").splitlines()[-2:] == [
        "[not GBK, not sent]",
        "[there is no /不; /help shows what there is]",
    ]


def test_where_nobody_reads_the_answers_any_longer_the_chat_ends(
    outcome, tuned: str, monkeypatch, asked: list
) -> None:
    """As in `inference.chat ... | head -3`."""
    reading, writing = os.pipe()
    os.close(reading)
    type_lines(monkeypatch, ["你是谁", "标题？"])
    with open(writing, "w", encoding="utf-8") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        monkeypatch.setattr(sys, "argv", ["chat", "--model", tuned, *GREEDY.split()])
        with pytest.raises(SystemExit) as exit_:
            run_command(chat.main)
    assert not exit_.value.code
    assert len(asked) == 1


TITLE = ["标题？", "再短一点。"]


def test_the_system_text_of_a_model_trained_with_one_is_shown(base: str, capsys) -> None:
    shown = talk.Talk(random_bloom(8), load_tokenizer(base, "你是一名编辑。"), "", {}, screen=Screen())
    shown.system("")
    shown.system("你是一名记者。")
    assert capsys.readouterr().out == "你是一名编辑。\n你是一名记者。\n"


SYSTEM = "--system 你是一名记者。"


def said(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(turn.human, turn.yayi) for turn in conversation.turns]


def test_undo_takes_the_last_turn_back(outcome, tuned: str, monkeypatch, asked: list) -> None:
    type_lines(monkeypatch, ["/undo", *TITLE, "/undo", "再短一点。"])
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM}")
    assert (status, out) == (0, "YaYi: 大桥通车\nYaYi: 通车\nYaYi: 通车\n\n")
    assert err.count("[nothing was said yet]") == 1
    assert "[taken back: 再短一点。]" in err
    assert said(asked[2]) == said(asked[1]) == [("标题？", "大桥通车"), ("再短一点。", None)]


class StoppedAtOnce(generation.Answer):
    """An answer that Ctrl-C stopped before its first token."""

    def __iter__(self):
        self.stop()
        return iter(())


def test_retry_asks_again_and_keeps_the_answer_where_no_other_comes(
    outcome, tuned: str, monkeypatch, asked: list
) -> None:
    answers = iter([generation.Answer, generation.Answer, StoppedAtOnce, generation.Answer])
    monkeypatch.setattr(generation, "Answer", lambda *args: next(answers)(*args))
    type_lines(monkeypatch, ["标题？", "/retry", "/retry", "再短一点。"])
    _, out, _ = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM}")
    assert out == "YaYi: 大桥通车\nYaYi: 大桥通车\nYaYi: \nYaYi: 通车\n\n"
    assert said(asked[0]) == said(asked[1]) == said(asked[2]) == [("标题？", None)]
    assert said(asked[3]) == [("标题？", "大桥通车"), ("再短一点。", None)]


def test_retry_asks_the_question_again_that_got_no_answer(
    outcome, tuned: str, monkeypatch, asked: list
) -> None:
    answers = iter([generation.Answer, StoppedAtOnce, StoppedAtOnce, generation.Answer])
    monkeypatch.setattr(generation, "Answer", lambda *args: next(answers)(*args))
    type_lines(monkeypatch, [TITLE[0], TITLE[1], "/retry", "/retry", "长" * 3000, "/retry", "/undo", "/undo"])
    _, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM}")
    assert out == "YaYi: 大桥通车\nYaYi: \nYaYi: \nYaYi: 通车\n\n"
    assert said(asked[1]) == said(asked[2]) == said(asked[3]) == [("标题？", "大桥通车"), (TITLE[1], None)]
    assert len(asked) == 4
    assert err.count("too long") == 2
    assert [line for line in err.splitlines() if "taken" in line] == [
        f"[taken back: {text}]" for text in reversed(TITLE)
    ]


def test_reset_and_system(outcome, tuned: str, monkeypatch, asked: list) -> None:
    type_lines(monkeypatch, ["/system", "/system 你是一名记者。", "标题？", "/reset", "标题？"])
    _, out, _ = outcome(chat.main, f"--model {tuned} {GREEDY}")
    assert out == f"{INTRO}\n你是一名记者。\nYaYi: 大桥通车\nYaYi: 大桥通车\n\n"
    assert said(asked[1]) == [("标题？", None)]
    assert asked[1].system == "你是一名记者。"


def test_a_saved_dialogue_can_be_trained_on_and_gone_on_with(
    outcome, tuned: str, monkeypatch, asked: list, tmp_path: Path
) -> None:
    file = tmp_path / "dialogue.jsonl"
    type_lines(monkeypatch, [f"/save {file}", "标题？", f"/save {file}", f"/save {file}", "/save"])
    _, _, err = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM}")
    assert err.splitlines() == [
        "[nothing was said yet]",
        f"[saved {file}]",
        f"[{file}: is there already; name another file]",
        "[name a file]",
    ]
    [(_, row)] = read_rows(str(file))
    assert said(from_row(row, answered=True)) == [("标题？", "大桥通车")]
    type_lines(monkeypatch, [f"/load {file}", "再短一点。"])
    _, out, _ = outcome(chat.main, f"--model {tuned} {GREEDY}")
    assert out == "Human: 标题？\nYaYi: 大桥通车\nYaYi: 通车\n\n"
    assert asked[-1].system == "你是一名记者。"


def test_a_loaded_prompt_is_answered(outcome, tuned: str, monkeypatch, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "prompt.jsonl", [{"instruction": "你是谁"}])
    type_lines(monkeypatch, [f"/load {file}"])
    _, out, _ = outcome(chat.main, f"--model {tuned} {GREEDY}")
    assert out == "Human: 你是谁\nYaYi: 我是雅意。\n\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("[]", "0 rows"),
        ('{"instruction": "a"}\n{"instruction": "b"}', "2 rows; a dialogue is a file with one"),
        ('{"output": "a"}', ":1: a row needs one of"),
        ("{", ":1: not JSON"),
    ],
)
def test_what_cannot_be_loaded_leaves_the_dialogue_as_it_is(
    outcome, tuned: str, monkeypatch, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "file.json"
    if content is not None:
        file.write_text(content)
    type_lines(monkeypatch, ["标题？", f"/load {file}", "再短一点。"])
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM}")
    assert (status, out) == (0, "YaYi: 大桥通车\nYaYi: 通车\n\n")
    assert message in err


def test_stats_and_help_and_exit(outcome, tuned: str, monkeypatch) -> None:
    type_lines(monkeypatch, ["标题？", "/stats", "/help", "/exit", "你是谁"])
    status, out, _ = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM}")
    assert status == 0
    assert "1 turn(s), 0 left out" in out
    assert re.search(r"latest answer: \d+ tokens, the first after \d+\.\d\d s", out)
    for command in (*talk.COMMANDS.keys() - {"help"}, "exit"):
        assert f"\n/{command} " in out
    assert "我是雅意" not in out


def test_what_begins_with_a_slash_is_a_command_only_where_it_looks_like_one(
    outcome, tuned: str, monkeypatch, asked: list
) -> None:
    type_lines(monkeypatch, ["/nope", "/etc/passwd 是什么", "//undo", "a /undo"])
    _, _, err = outcome(chat.main, f"--model {tuned} {GREEDY} --max-new-tokens 2")
    assert "[there is no /nope; /help shows what there is]" in err
    assert [conversation.turns[-1].human for conversation in asked] == [
        "/etc/passwd 是什么",
        "/undo",
        "a /undo",
    ]


def test_oldest_turns_leave_a_dialogue_that_outgrows_the_context(
    outcome, tuned: str, monkeypatch, asked: list
) -> None:
    for module in (talk, generation):
        monkeypatch.setattr(module, "context_length", lambda model: 130)
    type_lines(monkeypatch, [*["你是谁"] * 8, "very long " * 100, "你是谁"])
    _, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} --max-new-tokens 20 --system 短")
    assert len(re.findall(r"^YaYi: \S", out, re.MULTILINE)) == 9
    assert re.search(r"\[the dialogue outgrew the context of 130 tokens: \d oldest turn\(s\) left out\]", err)
    assert re.search(r"\[too long: [\d,]+ tokens, and there is room for 110; say it in parts\]", err)
    lengths = [len(conversation.turns) for conversation in asked]
    assert lengths[:3] == [1, 2, 3]
    assert max(lengths) < 9
    assert any(later < before for before, later in itertools.pairwise(lengths))
    assert all(conversation.system == "短" for conversation in asked)


def test_a_typed_control_token_stays_text(outcome, tuned: str, monkeypatch) -> None:
    prompts = []
    answer = generation.Answer

    def recording(model, tokenizer, prompt_ids, *more):
        prompts.append((tokenizer.convert_tokens_to_ids("<|End|>"), prompt_ids))
        return answer(model, tokenizer, prompt_ids, *more)

    monkeypatch.setattr(generation, "Answer", recording)
    status, _, _ = outcome(chat.main, f"--model {tuned} {GREEDY} --max-new-tokens 2 --prompt a<|End|>b")
    assert status == 0
    end, prompt_ids = prompts[0]
    assert end not in prompt_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model ./nope", "./nope: no such model directory"),
        ("--model {base}", "fine-tune it first"),
        ("--model {tuned} --temperature -1", "'--temperature'"),
        ("--model {tuned} --temperature nan", "'--temperature': nan is not a finite number"),
        ("--model {tuned} --repetition-penalty inf", "'--repetition-penalty': inf is not a finite number"),
        ("--model ./no\x1b]0;title\x07", "no\\x1b]0;title\\x07: no such model directory"),
        ("--model {tuned} --feedback {tuned}", "not a file"),
        ("--model {tuned} --prompt=", "--prompt: empty"),
        ("--model {tuned} --load-in-8bit --load-in-4bit", "contradict each other"),
        ("--model {tuned} --prompt \udcff", "--prompt: not UTF-8"),
    ],
)
def test_a_mistake_is_one_line(outcome, base: str, tuned: str, arguments: str, message: str) -> None:
    status, out, err = outcome(chat.main, arguments.format(base=base, tuned=tuned))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_settings_change_for_the_answers_to_come(outcome, tuned: str, monkeypatch) -> None:
    wrong = ["/set temperature nan", "/set colour 1", "/set top_p 2", "/set max_new_tokens"]
    type_lines(monkeypatch, [*wrong, "/set --max-new-tokens 3", "/set temperature=0.5", "/set", "你是谁"])
    _, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} --verbose")
    now = "max_new_tokens 3\ntemperature 0.{}\ntop_p 1.0\nrepetition_penalty 1.0\n"
    assert out.startswith(now.format(0) + now.format(5) * 2 + "YaYi: ")
    assert "[temperature: nan is not a finite number.]" in err
    assert "[there is no setting colour; there are max_new_tokens, temperature, top_p, rep" in err
    assert "[top_p: 2.0 is not in the range 0<x<=1.]" in err
    assert "[max_new_tokens: '' is not a valid integer range.]" in err
    assert re.search(r"\[3 tokens, the first after \d.\d\d s, [\d.]+ tokens/s after that\]", err)


def test_feedback_becomes_rows_to_train_on(outcome, tuned: str, monkeypatch, tmp_path, asked: list) -> None:
    file = tmp_path / "said.jsonl"
    lines = ["/good", "标题？", "/good", "/bad", "/fix", "/fix 大桥通车", "/fix 桥通了", "再短一点。", "/bad"]
    type_lines(monkeypatch, lines)
    _, _, err = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM} --feedback {file}")
    assert err.splitlines() == [
        "[nothing was said yet]",
        f"[written to {file}]",
        f"[that was said already; take its line out of {file} to say something else]",
        "[give the corrected answer: /fix TEXT]",
        "[the answer is as it was; /good calls it a good one]",
        f"[written to {file}]",
        f"[written to {file}]",
    ]
    rows = [row for _, row in read_rows(str(file))]
    assert [row.get("label") for row in rows] == [True, None, False]
    assert [said(from_row(row)) for row in rows[:2]] == [[("标题？", "大桥通车")], [("标题？", "桥通了")]]
    assert said(asked[1])[0] == ("标题？", "桥通了")
    assert said(from_row(rows[2]))[0] == ("标题？", "桥通了")
    assert rows[2]["messages"][2] == {"role": "assistant", "content": "桥通了", "weight": 0}


def test_an_empty_answer_is_not_rated_and_neither_is_the_one_before(
    outcome, tuned: str, monkeypatch, tmp_path: Path
) -> None:
    answers = iter([generation.Answer, StoppedAtOnce])
    monkeypatch.setattr(generation, "Answer", lambda *args: next(answers)(*args))
    file = tmp_path / "said.jsonl"
    type_lines(monkeypatch, ["标题？", "你是谁", "/good", "/bad", "/fix 通车", "/undo", "/bad"])
    _, _, err = outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM} --feedback {file}")
    assert err.splitlines() == [
        "[stopped]",
        *["[the answer is empty]"] * 4,
        "[taken back: 标题？]",
        "[nothing was said yet]",
    ]
    assert not file.exists()


def test_a_row_of_feedback_has_the_system_text_that_the_model_read(
    outcome, tuned: str, monkeypatch, tmp_path: Path, asked: list
) -> None:
    file = tmp_path / "said.jsonl"
    lines = [
        "标题？",
        "再短一点。",
        "/system 你是一名编辑。",
        "/good",
        "/fix 桥通了",
        "/good",
        "/undo",
        "/bad",
    ]
    type_lines(monkeypatch, lines)
    outcome(chat.main, f"--model {tuned} {GREEDY} {SYSTEM} --feedback {file}")
    rows = [row for _, row in read_rows(str(file))]
    assert [row.get("label") for row in rows] == [True, None, False]
    assert [from_row(row).system for row in rows] == ["你是一名记者。"] * 3
    assert said(from_row(rows[0]))[:-1] == said(asked[1])[:-1]


def test_feedback_without_a_file_says_how_to_give_one(outcome, tuned: str, monkeypatch) -> None:
    type_lines(monkeypatch, ["你是谁", "/good"])
    assert "start the chat with --feedback FILE" in outcome(chat.main, f"--model {tuned} {GREEDY}")[2]


def test_a_row_of_feedback_is_what_the_model_read(outcome, tuned, monkeypatch, tmp_path, asked: list) -> None:
    """Turns that have left the context are not in it: training would cut the answer off their end."""
    for module in (talk, generation):
        monkeypatch.setattr(module, "context_length", lambda model: 130)
    type_lines(monkeypatch, [*["你是谁"] * 8, "/good"])
    file = tmp_path / "said.jsonl"
    outcome(chat.main, f"--model {tuned} {GREEDY} --max-new-tokens 20 --feedback {file}")
    [(_, row)] = read_rows(str(file))
    assert len(from_row(row).turns) == len(asked[-1].turns) < 8


def test_a_terminal_gets_colours_and_words_for_programs_are_not_sent(
    outcome,
    tuned: str,
    monkeypatch,
    asked: list,
    keyboard: PipeInput,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    file = tmp_path / "said.jsonl"
    keyboard.send_text("".join(text + ENTER for text in ("exit", " Help ", '"""', "exit", '"""', "你是谁")))
    keyboard.send_text(f"/fix{ENTER}！{ENTER}{CTRL_D}")
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY} --max-new-tokens 9 --feedback {file}")
    assert status == 0
    assert [conversation.turns[-1].human for conversation in asked] == ["exit", "你是谁"]
    assert "\x1b[1;36mYaYi:\x1b[0m\n" in out
    assert re.search(r"model: [\d,]+ weights in \w+ on cpu, a context of 2,048 tokens\n", err)
    assert 'not sent: /exit leaves, /help shows the commands, """Help""" sends it' in err
    [(_, row)] = read_rows(str(file))
    assert row["messages"][-1]["content"].endswith("！")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_text_steers_the_terminal(outcome, tuned, monkeypatch, tmp_path, is_terminal: bool) -> None:
    """What is no terminal, such as a file, gets the text as it is."""
    steering = "a\x1b]0;title\x07\x9b2J\u202e"
    row = {"instruction": steering, "output": f"{steering}\tb\n"}
    file = write_rows(tmp_path / "no\x1b]0;.jsonl", [row])
    type_lines(monkeypatch, [f"/load {file}", "/undo", f"/load {file}x"])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    _, out, err = outcome(chat.main, f"--model {tuned} {GREEDY}")
    assert ("\x1b" in out) == (not is_terminal)
    assert ("a\\x1b]0;title\\x07\\x9b2J\\u202e\tb\n" in out) == is_terminal
    assert "[taken back: a\\x1b]0;title\\x07\\x9b2J\\u202e]" in err
    assert "no\\x1b]0;.jsonlx: no such file" in err


def test_defaults_are_the_originals() -> None:
    params = chat.main.make_context("chat", ["--model", "x"]).params
    assert (params["temperature"], params["repetition_penalty"]) == (0.3, 1.1)
    assert (params["dtype"], params["device"]) == ("auto", "auto")
