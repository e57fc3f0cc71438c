import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from inference import dialogue as dialogues
from inference.dialogue import Dialogue, load_dialogue
from tests.conftest import LEARNT_WITH_TOOLS, TOOLS, write_rows
from training.common.errors import UserError
from training.text import encoding
from training.text.calls import call_text, declaration
from training.text.conversation import Turn
from training.text.encoding import encode_prompt
from training.text.tokenizer import load_tokenizer
from training.text.turns import ToolUse


def length_of(dialogue: Dialogue, human: str, tokenizer) -> int:
    return len(Dialogue(dialogue.system, dialogue.turns).prompt(human, tokenizer, room=10_000).input_ids)


def test_the_ids_of_a_prompt_are_those_of_encode_prompt(base: str) -> None:
    """That holds while turns leave and are taken back, while the system text changes, and between calls."""
    tokenizer = load_tokenizer(base, tools=True)
    tools = (declaration({"name": "time"}),)
    use = ToolUse(("{<|End|>",), ("<|Tool|>",), "a\n")
    chance = random.Random(0)
    texts = ["你是谁", "a\n", "\n b", "<|End|>", "List two fruits.\n\nred", "。" * 20]
    dialogue = Dialogue(tools=tools)
    for _ in range(200):
        act = chance.random()
        if act < 0.1 and dialogue.turns:
            dialogue.take_back()
        elif act < 0.15:
            dialogue.system = chance.choice(["", "短", "Be brief.\n"])
        elif act < 0.2:
            dialogue.go_on_from(dialogue.turns[: len(dialogue.turns) // 2])
        human = chance.choice(texts)
        uses = (use,) * chance.randint(0, 2)
        prompt = dialogue.prompt(human, tokenizer, room=200, tool_uses=uses)
        asked = Turn(human, tool_uses=uses)
        assert prompt.conversation.turns == (*dialogue.turns[dialogue.left_out :], asked)
        assert prompt.conversation.tools == tools
        assert dialogue.fits(human, tokenizer, 200, uses)
        assert prompt.conversation.system == dialogue.system
        assert prompt.input_ids == encode_prompt(prompt.conversation, tokenizer)
        assert len(prompt.input_ids) <= 200
        dialogue.add(replace(asked, yayi=chance.choice(texts)))
    assert dialogue.left_out > 0
    assert not dialogue.fits("very long " * 500, tokenizer, 200, ())


def test_each_turn_is_tokenized_once(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Counter()
    text_ids = encoding._text_ids

    def counting(tokenizer, texts: list[str]) -> list[list[int]]:
        read.update(texts)
        return text_ids(tokenizer, texts)

    dialogue = Dialogue("你是一名记者。")
    # Some things are computed once for a tokenizer, whatever the dialogue; they are not counted below.
    dialogue.prompt("before", tokenizer, room=200)
    monkeypatch.setattr(encoding, "_text_ids", counting)
    left_out = set()
    for number in range(40):
        dialogue.prompt(f"question {number}", tokenizer, room=200)
        left_out.add(dialogue.left_out)
        dialogue.add(Turn(f"question {number}", f"answer {number}"))
    assert len(left_out) > 2
    answers = {text: count for text, count in read.items() if "answer" in text}
    assert len(answers) == 39  # the last was not read yet
    assert set(answers.values()) == {1}
    # A question is read when it is asked, and with its answer.
    assert max(count for text, count in read.items() if "question" in text) == 2
    assert not any("记者" in text for text in read)


def test_more_turns_leave_than_must(tokenizer) -> None:
    dialogue = Dialogue("", tuple(Turn(f"question {number}", "answer") for number in range(20)))
    whole = length_of(dialogue, "new", tokenizer)
    assert dialogue.prompt("new", tokenizer, room=whole).input_ids
    assert dialogue.left_out == 0
    prompt = dialogue.prompt("new", tokenizer, room=whole - 1)
    assert dialogue.left_out > 1
    assert len(prompt.input_ids) <= dialogues.USED_AFTER_LEAVING * (whole - 1)


def test_a_question_that_is_too_long_changes_nothing(tokenizer) -> None:
    dialogue = Dialogue("", (Turn("你是谁", "我是雅意。"),) * 5)
    room = length_of(dialogue, "new", tokenizer)
    with pytest.raises(UserError, match=rf"too long: [\d,]+ tokens, and there is room for {room}; say it in"):
        dialogue.prompt("very long " * 500, tokenizer, room)
    assert dialogue.left_out == 0
    assert len(dialogue.prompt("new", tokenizer, room).input_ids) == room


def test_calls_of_a_dialogue_that_no_row_can_hold_are_left_out_and_counted(tmp_path: Path) -> None:
    tools = tuple(declaration(tool) for tool in TOOLS)
    good, unknown = call_text("time", {}), call_text("date", {})
    uses = (
        ToolUse((good, '{"name": "ti', unknown), ("九点", "?", "??"), "看。"),
        ToolUse((unknown,), ("!",)),
    )
    dialogue = Dialogue("短", (Turn("几点？", "九点。", tool_uses=uses),), tools)
    assert dialogue.save(tmp_path / "d.jsonl") == 3
    kept = replace(dialogue.turns[0], tool_uses=(ToolUse((good,), ("九点",), "看。"),))
    loaded, waiting = load_dialogue(tmp_path / "d.jsonl")
    assert (loaded.system, loaded.turns, loaded.tools, waiting) == ("短", (kept,), tools, None)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 7])
def test_a_dialogue_goes_on_from_wherever_its_file_ends(tmp_path: Path, length: int) -> None:
    """A call without its result is asked for again; results are read, and the answer follows."""
    messages = LEARNT_WITH_TOOLS[1][:length]
    row = {"messages": messages, "tools": TOOLS}
    dialogue, waiting = load_dialogue(Path(write_rows(tmp_path / "d.jsonl", [row])))
    turn = waiting or dialogue.turns[-1]
    assert [use.results for use in turn.tool_uses] == [("九点", "9"), ("十点",)][
        : (length > 3) + (length > 5)
    ]
    assert (turn.yayi, len(dialogue.turns)) == (("十点了。", 1) if length == 7 else (None, 0))


def test_the_home_of_a_user_who_does_not_exist_is_no_file() -> None:
    path = Path("~no-such-user/d.jsonl")
    with pytest.raises(UserError, match=r"~no-such-user/d\.jsonl: no such file"):
        load_dialogue(path)
    with pytest.raises(UserError, match=r"~no-such-user/d\.jsonl: No such file"):
        Dialogue("", (Turn("a", "b"),)).save(path)
