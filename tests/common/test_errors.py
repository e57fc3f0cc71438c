import time

import click
import pytest

from training.common import errors
from training.common.errors import UserError


@click.command()
@click.option("--number", type=int, required=True)
@click.option("--raises")
def command(number: int, raises: str | None) -> None:
    if raises == "user":
        raise UserError("a.jsonl:3: bad\n  row")
    if raises == "many":
        raise UserError("2 rows are bad", ["a.jsonl:3: bad\n  row", "a.jsonl:7: worse"])
    if raises == "fault":
        raise ValueError("ours")
    print(number)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--number x", "error: Invalid value for '--number': 'x' is not a valid integer."),
        ("", "error: Missing option '--number'."),
        ("--number 1 --nope", "error: No such option '--nope'"),
        ("--number 1 --raises user", "error: a.jsonl:3: bad row"),
        ("--number 1 --\x1b[2J", r"error: No such option '--\x1b[2J'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(outcome, arguments: str, line: str) -> None:
    status, out, err = outcome(command, arguments)
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_many_mistakes_are_a_line_each(outcome) -> None:
    status, out, err = outcome(command, "--number 1 --raises many")
    assert (status, out) == (2, "")
    assert err == "error: a.jsonl:3: bad row\nerror: a.jsonl:7: worse\nerror: 2 rows are bad\n"


def test_the_first_line_of_a_librarys_error() -> None:
    assert errors.first_line(ValueError("\n what\nand more")) == "what"
    assert errors.first_line(ValueError()) == "ValueError"


def test_success_is_status_0(outcome) -> None:
    assert outcome(command, "--number 7") == (0, "7\n", "")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["command", "--number", "1", "--raises", "fault"])
    with pytest.raises(ValueError, match="ours"):
        errors.run_command(command)


def test_other_ranks_let_rank_0_speak_first(outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    status, _, err = outcome(command, "--number 1 --raises user")
    assert (status, waited) == (2, [errors.OTHER_RANK_PATIENCE_S])
    assert err == "error: rank 1: a.jsonl:3: bad row\n"
