import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import MULTI_TURN, SINGLE_TURN
from training.data.encoded import read_conversations
from training.text.conversation import Conversation, from_row

DOMAINS = ["媒体宣传", "舆情分析", "公共安全", "金融风控", "城市治理"]


def conversations(path: Path) -> list[Conversation]:
    return [conversation for _, conversation in read_conversations(str(path))]


def test_single_turn_rows() -> None:
    rows = [json.loads(line) for line in SINGLE_TURN.read_text("utf-8").splitlines()]
    assert len(rows) >= 120
    for row in rows:
        assert {"instruction", "output"} <= row.keys() <= {"instruction", "input", "output", "system"}
    assert len(set(map(from_row, rows))) == len(rows)
    assert len({row["output"] for row in rows}) == len(rows)
    assert len({(row["instruction"], row.get("input")) for row in rows}) == len(rows)


def test_the_model_is_taught_who_it_is() -> None:
    answers = [c.turns[0].yayi for c in conversations(SINGLE_TURN) if c.turns[0].human == "你是谁"]
    assert len(answers) == 1
    assert "雅意" in answers[0]
    assert "\n" not in answers[0]
    assert all(domain in answers[0] for domain in DOMAINS)


def test_all_five_domains_have_their_prefix() -> None:
    prefixes = Counter(
        match.group(1)
        for conversation in conversations(SINGLE_TURN)
        if (match := re.match("【(.+?)领域任务】", conversation.turns[0].human))
    )
    assert set(prefixes) == set(DOMAINS)
    assert min(prefixes.values()) >= 15


def test_multi_turn_dialogues() -> None:
    dialogues = conversations(MULTI_TURN)
    assert len(dialogues) >= 24
    assert {len(dialogue.turns) for dialogue in dialogues} == {2, 3, 4, 5}
    assert any(dialogue.system for dialogue in dialogues)
    assert any(not dialogue.system for dialogue in dialogues)


@pytest.mark.parametrize("path", [SINGLE_TURN, MULTI_TURN])
def test_texts_have_no_stray_white_space_and_no_control_tokens(path: Path) -> None:
    for conversation in conversations(path):
        for text in [
            conversation.system,
            *(t for turn in conversation.turns for t in (turn.human, turn.yayi)),
        ]:
            assert text == text.strip()
            assert "<|" not in text
