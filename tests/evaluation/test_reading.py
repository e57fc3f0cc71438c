import pytest

from evaluation.reading import compact, is_accepted, read_choice

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
    ],
)
def test_an_accepted_answer_is_found_as_a_whole(answer: str, accepted: str, expected: bool) -> None:
    assert is_accepted(answer, [accepted]) == expected
    assert is_accepted(answer, ["别的", accepted]) == expected


def test_what_keeps_numbers_and_words_apart_stays() -> None:
    assert compact("《Old  Man》， 1,000 或 8:05") == "old man 1000或8:05"
