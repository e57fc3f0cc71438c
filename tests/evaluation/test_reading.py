import re
from pathlib import Path

import pytest

from evaluation.letters import CLEANING
from evaluation.objective_questions import LETTERS
from evaluation.reading import compact, is_accepted, read_choice, read_choices
from evaluation.reading_rules import OPTIONS, RULES, Rule

CASES = Path(__file__).with_name("read_by_a_person.txt")

KINGS = ["秦始皇", "汉武帝", "唐太宗", "宋太祖"]


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("A", 0),
        ("B.", 1),
        ("\nC、唐太宗", 2),
        ("(C) 唐太宗", 2),
        ("Ｄ．宋太祖", 3),
        ("A\n因为他统一了六国。", 0),
        ("A 秦始皇", 0),
        ("答案是B", 1),
        ("答案是B，而不是A。", 1),
        ("正确答案：**C**", 2),
        ("正确的选项是 C", 2),
        ("选择D项", 3),
        ("根据题意选D", 3),
        ("我认为A不对，应选C", 2),
        ("选A。不对，选B", 1),
        ("A是错的，B是对的", 1),
        ("A选项不对，应选B", 1),
        ("The answer is (b).", 1),
        ("秦始皇", 0),
        ("统一六国的是秦始皇。", 0),
        # What cannot be read, or names several.
        ("", None),
        ("我不知道", None),
        ("A、B都对", None),
        ("A和B", None),
        ("AB", None),
        ("A,B", None),
        ("秦始皇和汉武帝", None),
        ("不选A", None),
        ("not A", None),
        ("A good idea is B", None),
        ("答案是E", None),
        ("E", None),
    ],
)
def test_the_option_that_an_answer_chooses(answer: str, index: int | None) -> None:
    assert read_choice(answer, KINGS) == index


def letters_of(answer: str, options: tuple[str, ...], rules: tuple[Rule, ...] = RULES) -> str:
    return "".join(LETTERS[index] for index in sorted(read_choices(answer, options, rules)))


def test_answers_are_read_as_a_person_reads_them() -> None:
    options: tuple[str, ...] = ()
    cases, wrong = 0, []
    for line in CASES.read_text("utf-8").split("\n\n", 1)[1].splitlines():
        if line.startswith("= "):
            options = tuple(line.removeprefix("= ").split(" | "))
        elif line:
            answer, _, expected = line.rpartition(" |")
            index = read_choice(answer.replace(r"\n", "\n"), options)
            read = "" if index is None else LETTERS[index]
            cases += 1
            if read != expected.strip():
                wrong.append(f"{answer!r} of {options} is read as {read!r}, not {expected!r}")
    assert not wrong
    assert cases > 1000


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.meaning}: {rule.example}")
def test_each_rule_reads_its_example_and_without_it_the_example_is_misread(rule: Rule) -> None:
    assert letters_of(rule.example, OPTIONS) == rule.reads
    others = tuple(other for other in RULES if other is not rule)
    assert letters_of(rule.example, OPTIONS, others) != rule.reads


@pytest.mark.parametrize("cleaning", CLEANING, ids=lambda cleaning: cleaning.example)
def test_the_form_of_an_answer_is_cleaned(cleaning) -> None:
    assert re.sub(cleaning.pattern, cleaning.replacement, cleaning.example) == cleaning.leaves


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("ABD", "ABD"),
        ("A、B、D", "ABD"),
        ("答案是A、B和D", "ABD"),
        ("选A、B，不选C", "AB"),
        ("A正确，B正确，C错误，D正确。", "ABD"),
        ("A. 秦始皇\nD. 宋太祖", "AD"),
        ("A, B and D are correct. C is wrong.", "ABD"),
        ("秦始皇和汉武帝", "AB"),
        ("答案是C", "C"),
        ("答案是AB，不是CD", "AB"),
        ("答案是AB。答案是CD。", ""),
        ("不选A和B", ""),
        ("我不知道", ""),
    ],
)
def test_several_letters_are_a_set(answer: str, expected: str) -> None:
    assert letters_of(answer, tuple(KINGS)) == expected


def test_options_that_contain_each_other_are_told_apart() -> None:
    assert read_choice("应该是25", ["2", "25", "5", "125"]) == 1
    assert read_choice("5 apples", ["5", "50", "15", "4"]) == 0
    assert read_choice("只有下雨才停", ["下雨", "只有下雨", "停", "雨"]) is None
    assert read_choice("是只有下雨", ["下雨", "只有下雨", "停", "雨"]) == 1


def test_a_wrong_answer_is_an_option_too() -> None:
    assert read_choice("B 错误", ["正确", "错误"]) == 1
    assert read_choice("错误", ["正确", "错误"]) == 1


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("一共有206块骨头。", "206", True),
        ("1206", "206", False),
        ("206.5", "206", False),
        ("3.12", "12", False),
        ("12.", "12", True),
        ("1,000", "1000", True),
        ("1000", "1,000", True),
        ("5 6", "56", False),
        ("是 ８：05 到的", "8:05", True),
        ("18:05", "8:05", False),
        ("Isaac Newton", "newton", True),
        ("Newtonian", "newton", False),
        ("The Old  Man and the Sea", "old man", True),
        ("《天涯·若比邻》", "天涯若比邻", True),
        ("", "12", False),
        ("<think>206？</think>不知道", "206", False),
        # A letter stands alone.
        ("血型是O型", "O", True),
        ("The group is o.", "O", True),
        ("**O**", "O", True),
        ("A", "A", True),
        ("H2O, or the Ohio", "O", False),
        ("It is a planet.", "A", False),
        ("A planet.", "A", False),
        ("I don't know", "I", False),
        ("don't", "T", False),
        ("B2", "B", False),
    ],
)
def test_an_accepted_answer_is_found_as_a_whole(answer: str, accepted: str, expected: bool) -> None:
    assert is_accepted(answer, [accepted]) == expected
    assert is_accepted(answer, ["别的", accepted]) == expected


def test_what_keeps_numbers_and_words_apart_stays() -> None:
    assert compact("《Old  Man》， 1,000 或 8:05") == "old man 1000或8:05"
