import itertools

import numpy as np

from training.consts import INTRO
from training.data.duplicates import RowHashes, conflicts, duplicates, row_hashes
from training.text.conversation import Conversation, Turn
from training.text.turns import ToolUse


def groups(found) -> list[list[int]]:
    return sorted(group.tolist() for group in found)


def test_equal_rows_and_only_those_have_equal_hashes() -> None:
    texts = ["", "a", "b", "ab", "ba", "你"]
    conversations = {
        Conversation((Turn(human, yayi),), system)
        for human, yayi, system in itertools.product(texts[1:], texts[1:], texts)
    } | {Conversation((Turn("a", "b"), Turn(human, "b"))) for human in texts[1:]}
    rows = {row_hashes(conversation).row for conversation in conversations}
    assert len(rows) == len(conversations)
    assert row_hashes(Conversation((Turn("a", "b"),))) == row_hashes(Conversation((Turn("a", "b"),), INTRO))


def test_a_turns_prompt_is_all_that_is_said_before_its_answer() -> None:
    one = row_hashes(Conversation((Turn("q1", "a1"), Turn("q2", "a2"))))
    other = row_hashes(Conversation((Turn("q1", "a1"), Turn("q2", "b2"))))
    third = row_hashes(Conversation((Turn("q1", "b1"), Turn("q2", "a2"))))
    assert one.prompts == other.prompts
    assert (one.answers[0], one.answers[1]) == (other.answers[0], third.answers[1])
    assert one.answers[1] != other.answers[1]
    assert (one.prompts[0] == third.prompts[0], one.prompts[1] == third.prompts[1]) == (True, False)


def test_an_answer_after_tools_has_their_results_before_it() -> None:
    def hashes(call: str, result: str, yayi: str) -> RowHashes:
        return row_hashes(Conversation((Turn("q", yayi, tool_uses=(ToolUse((call,), (result,)),)),)))

    one, other, later, called = (
        hashes(*texts) for texts in (("c", "21", "a"), ("c", "21", "b"), ("c", "22", "b"), ("d", "21", "a"))
    )
    assert one.prompts == other.prompts == later.prompts == called.prompts == one.before_answers[:1]
    assert one.before_answers == other.before_answers
    assert other.before_answers[1] not in (later.before_answers[1], called.before_answers[1])
    assert one.answers[0] == other.answers[0] != called.answers[0]
    assert one.answers[1] != other.answers[1] == later.answers[1]


def test_sets_of_equal_rows() -> None:
    rows = np.array([5, 6, 5, 7, 6, 5], dtype=np.uint64)
    assert groups(duplicates(rows, np.arange(1, 7))) == [[1, 3, 6], [2, 5]]
    assert groups(duplicates(rows[:2], np.arange(1, 3))) == []
    assert groups(duplicates(rows[:0], np.arange(0))) == []


def test_one_prompt_with_different_answers() -> None:
    prompts = np.array([1, 2, 1, 1, 2, 3], dtype=np.uint64)
    answers = np.array([8, 9, 8, 7, 9, 9], dtype=np.uint64)
    lines = np.array([10, 20, 30, 40, 50, 60])
    assert groups(conflicts(prompts, answers, lines)) == [[10, 40, 30]]
