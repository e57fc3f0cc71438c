"""Which rows go together, against a plain reading of the rule on the dialogues themselves."""

import numpy as np
import pytest

from training.data.duplicates import row_hashes
from training.data.groups import TRAINED, Prompts, groups
from training.data.split import split
from training.text.conversation import Conversation, Turn


def prompts_of(dialogues: list[str]) -> Prompts:
    """Dialogues of one-letter turns, "ab" being a question a with the answer A, then b with B."""
    whole, states, ends = [], [], []
    for dialogue in dialogues:
        turns = tuple(
            Turn(letter.lower(), letter.upper() if letter.islower() else "x") for letter in dialogue
        )
        hashes = row_hashes(Conversation(turns))
        whole.append(hashes.prompts[-1])
        states += [*hashes.beginnings, hashes.row]
        ends.append(len(states))
    return Prompts(np.array(whole, np.uint64), np.array(states, np.uint64), np.array(ends))


def test_the_drawing_of_the_module() -> None:
    opening, one, other, alone, longer = groups(prompts_of(["h", "hr", "hi", "r", "rd"])).tolist()
    assert opening == TRAINED
    assert one != other
    assert alone == longer != TRAINED
    assert len({one, other, alone}) == 3


@pytest.mark.parametrize("seed", range(30))
def test_random_dialogues_against_the_rule_on_the_texts(seed: int) -> None:
    random = np.random.default_rng(seed)
    dialogues = ["".join(random.choice(list("abA"), random.integers(1, 5))) for _ in range(25)]
    # Two dialogues go together if their prompts are equal, or if one begins the other and no third one that
    # begins so goes another way; what begins several that differ is trained on, with all that goes with it.
    # So is a beginning of one dialogue whose whole prompt is that of a row of another, or of several.
    count = len(dialogues)

    def dialogue_of(text: str) -> str:
        """The one that `text` begins, and nothing goes on from; `text` itself, where it begins several."""
        longer = [other for other in dialogues if other.startswith(text)]
        longest = {text for text in longer if not any(o != text and o.startswith(text) for o in longer)}
        return longest.pop() if len(longest) == 1 else text

    def whole_prompt(text: str) -> tuple[str, str]:
        return text[:-1], text[-1].lower()

    def is_trained(text: str) -> bool:
        if dialogue_of(text) == text:
            return any(other != text and other.startswith(text) for other in dialogues)
        return any(
            whole_prompt(other) == whole_prompt(text) and dialogue_of(other) != dialogue_of(text)
            for other in dialogues
        )

    same = np.eye(count, dtype=bool)
    for i in range(count):
        for j in range(count):
            is_beginning = dialogues[j].startswith(dialogues[i]) and not is_trained(dialogues[i])
            if whole_prompt(dialogues[i]) == whole_prompt(dialogues[j]) or is_beginning:
                same[i, j] = same[j, i] = True
    for _ in range(count):
        same = same @ same
    trained = np.array([is_trained(text) for text in dialogues])
    expected_trained = (same & trained).any(axis=1)

    found = groups(prompts_of(dialogues))
    assert (found == TRAINED).tolist() == expected_trained.tolist()
    free = found != TRAINED
    assert ((found[:, None] == found) & free[:, None] & free).tolist() == (
        same & free[:, None] & free
    ).tolist()


def test_no_rows_have_no_groups() -> None:
    assert groups(prompts_of([])).tolist() == []


def test_what_begins_several_dialogues_is_never_held_out() -> None:
    found = groups(prompts_of(["h", "hr", "hi", "a", "b", "c"]))
    for seed in range(10):
        chosen = split([found], [1], 5, seed)
        assert chosen.held_out == [1, 2, 3, 4, 5]


def test_dialogues_with_one_greeting_are_held_out_like_others() -> None:
    letters = [chr(0x4E00 + number) for number in range(200)]
    dialogues = [f"h{letter}" if number % 2 else f"{letter}b" for number, letter in enumerate(letters)]
    chosen = split([groups(prompts_of(dialogues))], [1], 20, seed=515)
    assert len(chosen.held_out) == 20
    assert 5 <= sum(number % 2 for number in chosen.held_out) <= 15


def test_prefix_rows_of_dialogues_with_one_greeting_are_held_out_like_others() -> None:
    letters = [chr(0x4E00 + number) for number in range(800)]
    whole = [
        (Turn("你好" if number % 2 else letters[number], letters[number + 200]), *(Turn("q", "a"),) * 2)
        for number in range(200)
    ]
    rows = [turns[:length] for turns in whole for length in (1, 2, 3)]
    all_hashes = [row_hashes(Conversation(turns)) for turns in rows]
    prompts = Prompts(
        np.array([hashes.prompts[-1] for hashes in all_hashes], np.uint64),
        np.array([state for hashes in all_hashes for state in (*hashes.beginnings, hashes.row)], np.uint64),
        np.cumsum([len(turns) for turns in rows]),
    )
    chosen = split([groups(prompts)], [1], 60, seed=515)
    assert 57 <= len(chosen.held_out) <= 60
    assert 10 <= sum(rows[number][0].human == "你好" for number in chosen.held_out) <= 50
    trained = set(prompts.whole[chosen.train].tolist())
    assert not trained & set(prompts.whole[chosen.held_out].tolist())
