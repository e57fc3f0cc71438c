"""Whether a row holds its bound, what becomes of a part, and what the two pages say."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.card.page import BROKE_OFF, DONE, FAILS, HOLDS, NOT_JUDGED, NOT_POSSIBLE, Check, NotPossibleHere
from training.card.scale import CPU


def check_on(device: str, directory: Path) -> Check:
    return Check(directory, torch.device(device), CPU, is_quick=True)


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (5.0, {"at_most": 5.0}, HOLDS),
        (5.1, {"at_most": 5.0}, FAILS),
        (0.4, {"at_least": 0.4}, HOLDS),
        (0.3, {"at_least": 0.4}, FAILS),
        (math.nan, {"at_most": 5.0}, FAILS),
        (math.nan, {"at_least": 5.0}, FAILS),
        (5.1, {}, ""),
    ],
)
def test_a_row_holds_its_bound_or_fails_it(
    value: float, bound: dict[str, float], verdict: str, tmp_path: Path
) -> None:
    check = check_on("cpu", tmp_path)
    with check.part(0, "A part"):
        check.add("a row", value, "ms", **bound)
    assert check.parts[0].rows[0].verdict == verdict
    assert check.failures == (verdict == FAILS)


@pytest.mark.parametrize(("device", "verdict"), [("cpu", NOT_JUDGED), ("cuda:0", FAILS)])
def test_the_bound_of_a_card_is_judged_on_a_card_only(device: str, verdict: str, tmp_path: Path) -> None:
    check = check_on(device, tmp_path)
    with check.part(0, "A part"):
        check.add("a row", 77.0, "ms", at_most=5.0, of_card=True)
    assert check.parts[0].rows[0].verdict == verdict


def wants_a_new_argument() -> None:
    query = torch.ones(1, 1, 2, 8)
    torch.nn.functional.scaled_dot_product_attention(query, query, query, an_argument_of_tomorrow=1)


def wants_a_new_function() -> None:
    torch.nn.functional.attention_of_tomorrow()  # pyright: ignore


def wants_a_new_module() -> None:
    import torch.nn.attention_of_tomorrow  # pyright: ignore  # noqa: F401


def multiplies_wrong_shapes() -> None:
    torch.ones(2, 3) @ torch.ones(2, 3)


def has_no_such_attribute() -> None:
    Path().attribute_of_tomorrow  # pyright: ignore  # noqa: B018


def needs_two_cards() -> None:
    raise NotPossibleHere("there is one card, and two are needed")


def runs_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")


@pytest.mark.parametrize(
    ("work", "outcome", "said"),
    [
        (lambda: None, DONE, ""),
        (needs_two_cards, NOT_POSSIBLE, "there is one card, and two are needed"),
        (wants_a_new_module, NOT_POSSIBLE, "No module named 'torch.nn.attention_of_tomorrow'"),
        (wants_a_new_argument, NOT_POSSIBLE, "an_argument_of_tomorrow"),
        (wants_a_new_function, NOT_POSSIBLE, "attention_of_tomorrow"),
        (multiplies_wrong_shapes, BROKE_OFF, "mat1 and mat2 shapes cannot be multiplied"),
        (has_no_such_attribute, BROKE_OFF, "attribute_of_tomorrow"),
        (runs_out_of_memory, BROKE_OFF, "out of memory: CUDA out of memory. Tried to allocate 20.00 MiB."),
    ],
)
def test_a_part_that_cannot_run_says_why_and_the_next_one_runs(
    work: Callable[[], None], outcome: str, said: str, tmp_path: Path
) -> None:
    check = check_on("cpu", tmp_path)
    with check.part(0, "The first"):
        check.add("a row of it", 1, at_most=1)
        work()
    with check.part(1, "The second"):
        check.add("a row", 2, at_most=2)
    first, second = check.parts
    assert first.outcome == outcome
    assert said in first.reason
    assert "\n" not in first.reason
    assert [row.verdict for row in (*first.rows, *second.rows)] == [HOLDS, HOLDS]
    assert check.failures == (outcome == BROKE_OFF)


def test_the_pages_are_there_as_soon_as_a_part_has_ended(tmp_path: Path) -> None:
    check = check_on("cuda:0", tmp_path)
    with check.part(0, "The machine"):
        check.add("card", "H|100", note="132 multiprocessors")
    assert "all 0 bounds hold" in (tmp_path / "card.md").read_text("utf-8")
    with check.part(1, "Attention"):
        check.add("a new length", 450.0, "ms", at_most=5.0, of_card=True, note="median 0.2 ms")
        check.add("tokens", 1234.5, "tokens/s")
        check.add("calls", 0, at_most=0)
    page = (tmp_path / "card.md").read_text("utf-8")
    assert page.startswith("# What this machine does with our Bloom: 1 of 2 bounds FAIL\n")
    assert "`python -m training.card_check --quick`" in page
    assert "| card | H/100 |  |  |  | 132 multiprocessors |" in page
    assert "| a new length | 450 | ms | at most 5 | **FAILS** | median 0.2 ms |" in page
    assert "| tokens | 1,234 | tokens/s |  |  |  |" in page
    assert "| calls | 0 |  | at most 0 | holds |  |" in page
    content = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert content["failures"] == 1
    assert [row["value"] for row in content["parts"][1]["rows"]] == [450.0, 1234.5, 0]
