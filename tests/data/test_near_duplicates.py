import json
import random

import pytest

from tests.conftest import SINGLE_TURN
from training.data import near_duplicates
from training.data.duplicates import row_hashes
from training.data.near_duplicates import NearDuplicates
from training.text.conversation import Conversation, Turn, from_row

ROWS = [from_row(json.loads(line)) for line in SINGLE_TURN.read_text("utf-8").splitlines()]


def text_of(conversation: Conversation) -> str:
    return "\n".join(f"{turn.human}\n{turn.yayi}" for turn in conversation.turns)


def jaccard(one: str, other: str) -> float:
    one_set, other_set = ({text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (one, other))
    return len(one_set & other_set) / len(one_set | other_set)


def change(conversation: Conversation, changes: int, source: random.Random) -> Conversation:
    """The conversation with so many characters of its answer replaced."""
    (turn,) = conversation.turns
    answer = list(turn.yayi or "")
    for _ in range(changes):
        answer[source.randrange(len(answer))] = source.choice("一二三四五六")
    return Conversation((Turn(turn.human, "".join(answer)),), conversation.system)


def compare(conversations: list[Conversation], **options: int) -> NearDuplicates:
    near = NearDuplicates(**options)
    for line, conversation in enumerate(conversations, start=1):
        near.add(line, row_hashes(conversation).row, conversation)
    return near


def test_near_duplicates_are_those_that_comparing_all_pairs_finds() -> None:
    source = random.Random(0)
    conversations = list(ROWS)
    for changes in range(8):
        conversations += [change(row, changes, source) for row in source.sample(ROWS, 20)]
    texts = [text_of(conversation) for conversation in conversations]
    staying: list[int] = []
    gone: dict[int, list[int]] = {}
    seen: set[str] = set()
    for number, text in enumerate(texts):
        twins = [other for other in staying if jaccard(text, texts[other]) >= 0.8]
        if text not in seen and twins:
            gone[number + 1] = [other + 1 for other in twins]
        elif text not in seen:
            staying.append(number)
        seen.add(text)
    assert len(gone) > 20
    assert len(staying) > len(ROWS) + 20

    found = compare(conversations).found(most_lines=1000)
    assert found.count == len(found.lines) == len(gone)
    for twin, line in found.lines:
        assert twin in gone[line]
    assert compare(conversations).found().lines == found.lines[:3]


def test_equal_rows_and_rows_beyond_the_first_are_not_compared() -> None:
    changed = change(ROWS[0], 1, random.Random(0))
    conversations = [ROWS[0], ROWS[0], ROWS[1], changed]
    assert compare(conversations).found().lines == [[1, 4]]
    near = compare(conversations, most_rows=2)
    assert (near.found().count, near.compared, near.left_out) == (0, 2, 1)


def test_texts_shorter_than_a_shingle_and_no_rows() -> None:
    short = [
        Conversation((Turn("a", "b"),)),
        Conversation((Turn("a", "b"),), "s"),
        Conversation((Turn("", ""),)),
    ]
    assert compare(short).found().lines == [[1, 2]]
    assert compare([]).found().count == 0


def test_a_row_is_compared_with_few_others_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one template, of which two never share four fifths of their shingles."""
    source = random.Random(0)
    template = "".join(chr(0x4E00 + i) for i in range(200))
    numbers = ["".join(source.choices("0123456789", k=34)) for _ in range(300)]
    counted = []
    shingles = near_duplicates._shingles
    monkeypatch.setattr(near_duplicates, "_shingles", lambda text: counted.append(text) or shingles(text))
    rows = [Conversation((Turn(template, number),)) for number in numbers]
    assert 0.7 < jaccard(text_of(rows[0]), text_of(rows[1])) < 0.8
    assert compare(rows).found().count == 0
    assert 10 * len(rows) < len(counted) <= 17 * len(rows)
