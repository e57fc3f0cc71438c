import builtins
from collections.abc import Iterable

import pytest

from inference import chat, generation

GREEDY = "--temperature 0 --repetition-penalty 1"


def type_lines(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str | type[BaseException]]) -> None:
    """What a person types, line by line; an exception stands for the key that raises it. Then Ctrl-D."""
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
    stream = chat.stream

    def recording(model, tokenizer, conversation, **sampling):
        conversations.append(conversation)
        return stream(model, tokenizer, conversation, **sampling)

    monkeypatch.setattr(chat, "stream", recording)
    return conversations


def test_one_prompt_prints_the_answer_alone(outcome, tuned: str) -> None:
    assert outcome(chat.main, f"--model {tuned} {GREEDY} --prompt 你是谁")[:2] == (0, "我是雅意。\n")


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


def test_ctrl_c_stops_the_answer_and_keeps_the_dialogue(outcome, tuned, monkeypatch, asked: list) -> None:
    class StoppedAfterOnePiece(generation.Answer):
        def __iter__(self):
            yield next(super().__iter__())
            raise KeyboardInterrupt

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
    assert outcome(chat.main, f"--model {tuned} {GREEDY}")[:2] == (0, "\nYaYi: 我是雅意。\n\n")


def test_a_line_in_another_encoding_is_not_sent(outcome, tuned: str, monkeypatch, asked: list) -> None:
    type_lines(monkeypatch, ["\udcc4\udce3", "你是谁"])
    status, out, err = outcome(chat.main, f"--model {tuned} {GREEDY}")
    assert (status, out) == (0, "YaYi: 我是雅意。\n\n")
    assert "[not UTF-8, not sent]" in err
    assert len(asked) == 1


def test_a_typed_control_token_stays_text(outcome, tuned: str, monkeypatch) -> None:
    prompts = []
    answer = generation.Answer

    def recording(model, tokenizer, prompt_ids, config):
        prompts.append((tokenizer.convert_tokens_to_ids("<|End|>"), prompt_ids))
        return answer(model, tokenizer, prompt_ids, config)

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
        ("--model {tuned} --prompt=", "--prompt: empty"),
        ("--model {tuned} --prompt \udcff", "--prompt: not UTF-8"),
    ],
)
def test_a_mistake_is_one_line(outcome, base: str, tuned: str, arguments: str, message: str) -> None:
    status, out, err = outcome(chat.main, arguments.format(base=base, tuned=tuned))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_defaults_are_the_originals() -> None:
    params = chat.main.make_context("chat", ["--model", "x"]).params
    assert (params["temperature"], params["repetition_penalty"]) == (0.3, 1.1)
    assert (params["dtype"], params["device"]) == ("auto", "auto")
