"""Data sets on the hub, which are folders here: loaded by the library itself, without a network."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from training.common.errors import UserError
from training.data import hub_rows
from training.data.reader import fingerprint, read_rows

ROW = '{"instruction": "q", "output": "a"}\n'
CONFIGS = """---
configs:
- config_name: zh
  data_files:
  - {split: train, path: zh.jsonl}
  - {split: test, path: en.jsonl}
- config_name: en
  data_files: en.jsonl
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Callable[..., str]:
    """Makes a data set of the files that it is given, and returns its name on the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub_rows, "check_on_hub", lambda name, kind: None)

    def make(**files: str) -> str:
        for name, text in files.items():
            path = tmp_path / "org" / "set" / name.replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return "org/set"

    return make


def load(name: str) -> list:
    """The rows of a name on the hub, although there is a folder of this name."""
    return list(hub_rows.load_hub_rows(name))


def refusal(name: str) -> str:
    with pytest.raises(UserError) as error:
        load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_configuration_and_a_split_are_named_behind_the_name(hub) -> None:
    name = hub(README_md=CONFIGS, zh_jsonl=ROW, en_jsonl=ROW * 2)
    assert load(f"{name}#zh") == [{"instruction": "q", "output": "a"}]
    assert [len(load(f"{name}#{choice}")) for choice in ("zh/train", "zh/test", "en")] == [1, 2, 2]
    there = "there are zh, en; name one, as in org/set#zh"
    assert refusal(name) == f"org/set: a configuration has to be chosen; {there}"
    assert refusal(f"{name}#fr") == f"org/set: no configuration fr; {there}"
    assert refusal(f"{name}#zh/dev") == (
        "org/set: no split dev; there are train, test; name one, as in org/set#zh/train"
    )


def test_the_only_split_is_read_and_of_several_one_has_to_be_chosen(hub) -> None:
    name = hub(test_jsonl=ROW)
    assert len(load(name)) == 1
    hub(validation_jsonl=ROW * 2)
    assert refusal(name) == (
        "org/set: no split train; there are validation, test; name one, as in org/set#default/validation"
    )
    assert len(load(f"{name}#default/validation")) == 2


def test_files_that_differ_in_their_columns_are_one_line_with_a_way_out(hub) -> None:
    message = refusal(hub(a_jsonl=ROW, b_jsonl='{"x": 1}\n'))
    assert message.startswith("org/set: the hub's data set cannot be read (")
    assert "column names don't match" in message
    assert message.endswith("--data-path FOLDER reads each file by itself")


def test_a_data_set_that_is_a_script_is_one_line(hub) -> None:
    assert refusal(hub(set_py="import datasets\n")).startswith("org/set: made by a script (set.py)")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'org/set' is a gated dataset on the Hub.\nmore"
            ),
            "org/set: a gated data set; ask for access on its page, and log in by `hf auth login`",
        ),
        (
            ConnectionError("Couldn't reach the Hub (ConnectTimeout)"),
            "org/set: the hub's data set cannot be read (Couldn't reach the Hub (ConnectTimeout))",
        ),
        (
            datasets.exceptions.ChecksumVerificationError("no\nmore"),
            "org/set: the hub's data set cannot be read (no)",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, monkeypatch, error: Exception, message: str) -> None:
    def load_dataset(*args, **kwargs) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert refusal("org/set") == message


def test_places_have_the_whole_name(hub) -> None:
    hub(README_md=CONFIGS, zh_jsonl=ROW, en_jsonl=ROW * 2)
    names = ["org/set#zh", "org/set#zh/test"]
    assert [place for name in names for place, _ in read_rows(name)] == [
        "org/set#zh:1",
        "org/set#zh/test:1",
        "org/set#zh/test:2",
    ]
    assert fingerprint(names[0]) != fingerprint(names[1])
