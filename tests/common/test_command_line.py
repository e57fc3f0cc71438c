import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import click
import pytest

from training.common.command_line import OptionsCommand, as_yaml, option, options_of


@dataclass
class Small:
    path: Path = option(Path("here"), "Files", "Where to write.", required=True)
    names: tuple[str, ...] = option((), "Files", "Names.", multiple=True, parse=str.upper, metavar="NAME")
    rate: float = option(0.5, "Numbers", "A rate.", above=0, below=2)
    count: int | None = option(None, "Numbers", "A count.", at_least=1)
    kind: Literal["a", "b"] = option("a", "Numbers", "A kind.")
    title: str = option("none", "Numbers", "A title.")
    loud: bool = option(False, "Switches", "Whether to be loud.")
    quick: bool = option(True, "Switches", "Whether to be quick.")


@click.command(cls=OptionsCommand, context_settings={"show_default": True})
@options_of(Small)
def main(**values) -> None:
    print(Small(**values))


def printed(outcome, arguments: str) -> Small:
    status, out, err = outcome(main, arguments)
    assert (status, err) == (0, "")
    return eval(out.replace("PosixPath", "Path"))


def test_each_field_is_an_option_with_its_default(outcome) -> None:
    assert printed(outcome, "--path x") == Small(Path("x"))
    everything = "--path x --names a --names b --rate 1 --count 3 --kind b --loud --no-quick"
    assert printed(outcome, everything) == Small(Path("x"), ("A", "B"), 1.0, 3, "b", "none", True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing option '--path'"),
        ("--path x --rate 0", "'--rate': 0.0 is not in the range 0<x<2"),
        ("--path x --count 0", "'--count': 0 is not in the range x>=1"),
        ("--path x --kind c", "'--kind': 'c' is not one of 'a', 'b'"),
        ("--path x --quick maybe", "'--quick': 'maybe' is not a valid boolean"),
        ("--path x --quick=2", "'--quick': '2' is not a valid boolean"),
        ("--path x --quick True False", "unexpected extra argument (False)"),
        ("--path x --fast", "No such option '--fast'"),
    ],
)
def test_a_wrong_value_is_one_line(outcome, arguments: str, message: str) -> None:
    status, _, err = outcome(main, arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("--quick", True),
        ("--no-quick", False),
        ("--quick True --loud", True),
        ("--quick False --loud", False),
        ("--quick=no", False),
        ("--quick 1", True),
        ("--no-quick --quick", True),
        ("--quick --rate 0.1 --quick off", False),
    ],
)
def test_a_switch_may_be_given_its_value(outcome, arguments: str, value: bool) -> None:
    assert printed(outcome, f"--path x {arguments}").quick is value


def test_help_shows_groups_helps_and_defaults(outcome) -> None:
    _, out, _ = outcome(main, "--help")
    for text in (
        "Files:",
        "Numbers:",
        "Switches:",
        "A rate.",
        "default: 0.5",
        "--quick / --no-quick",
        "required",
    ):
        assert text in out


def test_only_some_fields_can_be_offered(outcome) -> None:
    @click.command()
    @options_of(Small, only=("rate", "path"), required=("rate",))
    def less(**values) -> None:
        print(sorted(values))

    assert outcome(less, "--rate 1")[1] == "['path', 'rate']\n"
    assert "Missing option '--rate'" in outcome(less, "--path x")[2]


def test_a_file_gives_what_the_command_line_does_not(outcome, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "path: y\nnames: [a, b]\nrate: 1e-1\ncount:\nkind: b\nquick: no\nloud: true\n", encoding="utf-8"
    )
    assert printed(outcome, f"--config {config}") == Small(
        Path("y"), ("A", "B"), 0.1, None, "b", "none", True, False
    )
    both = f"--rate 0.7 --config {config} --names c --quick"
    assert printed(outcome, both) == Small(Path("y"), ("C",), 0.7, None, "b", "none", True, True)
    config.write_text("names: single\npath: y\n", encoding="utf-8")
    assert printed(outcome, f"--config {config}").names == ("SINGLE",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raet: 1", 'there is no option "raet"; the nearest is "rate"'),
        ("config: x", 'there is no option "config"; the nearest is "count"'),
        ("rate: fast", "rate: 'fast' is not a valid float"),
        ("rate: true", "rate: True is not a number"),
        ("rate: [1]", "rate: [1] is not a number"),
        ("count: 1.9", "count: 1.9 is not a whole number"),
        ("count: yes", "count: True is not a whole number"),
        ("title: 1.10", "title: 1.1 is not text; put it in quotes"),
        ("title: [a, b]", "title: ['a', 'b'] is not text; put it in quotes"),
        ("path: 5", "path: 5 is not text; put it in quotes"),
        ("quick: 0.5", "quick: 0.5 is not true or false"),
        ("loud: 1", "loud: 1 is not true or false"),
        ("names: [[a]]", "names: ['a'] is not NAME"),
        ("rate: 1\ncount: 2\nrate: 1", '"rate" stands there twice'),
        ("rate: 2", "rate: 2.0 is not in the range 0<x<2."),
        ("rate: .nan", "rate: nan is not a finite number."),
        ("kind: [a]", "kind: "),
        ("- rate", "not a mapping of option names to values"),
        ("rate: [", "cannot be read as YAML"),
        ("rate: \udcff", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name(outcome, tmp_path: Path, content: str, message: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content, encoding="utf-8", errors="surrogateescape")
    status, _, err = outcome(main, f"--path x --config {config}")
    assert status == 2
    assert err.startswith(f"error: {config}: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_file_is_one_line(outcome, tmp_path: Path) -> None:
    status, _, err = outcome(main, f"--path x --config {tmp_path / 'no.yaml'}")
    assert status == 2
    assert "does not exist" in err


def test_what_is_written_is_taken_back(outcome, tmp_path: Path) -> None:
    values = Small(Path("文件: x"), ("A", "B"), 5e-7, None, "b", "none", True, False)
    plain = {each.name: getattr(values, each.name) for each in fields(values)} | {"names": list(values.names)}
    (tmp_path / "config.yaml").write_text(as_yaml(plain), encoding="utf-8")
    assert printed(outcome, f"--config {tmp_path / 'config.yaml'}") == dataclasses.replace(values)
