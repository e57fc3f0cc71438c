"""Names on ModelScope. In place of its package, functions of the same names copy what they would download."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inference.generation import load, reply
from tests.conftest import SINGLE_TURN
from training import check
from training.common.errors import UserError
from training.common.hub import check_base_model
from training.common.modelscope import local_path
from training.data.reader import read_rows
from training.model.context import longest_row
from training.model.lora import load_any
from training.run.resume import default_run_name
from training.text.conversation import Conversation, Turn
from training.text.tokenizer import load_tokenizer

STAND_IN = """
import json, shutil
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(__file__).parents[1]

def snapshot_download(model_id, *, ignore_patterns):
    return _download("models", model_id, ignore_patterns)

def dataset_snapshot_download(dataset_id):
    return _download("datasets", dataset_id, [])

def _download(kind, name, ignored):
    with open(HERE / "calls.jsonl", "a") as calls:
        print(json.dumps([kind, name]), file=calls)
    if not (HERE / "there" / kind / name).is_dir():
        from modelscope.hub.errors import HubError
        raise HubError(f"no {name}\\nnor anything like it")
    def left_out(directory, names):
        return [each for each in names if any(fnmatch(each, pattern) for pattern in ignored)]
    target = HERE / "cache" / kind / name / "snapshots" / "master"
    shutil.copytree(HERE / "there" / kind / name, target, ignore=left_out, dirs_exist_ok=True)
    return str(target)
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of what is on ModelScope, as models/OWNER/NAME and datasets/OWNER/NAME."""
    (tmp_path / "modelscope" / "hub").mkdir(parents=True)
    (tmp_path / "modelscope" / "__init__.py").write_text(STAND_IN)
    (tmp_path / "modelscope" / "hub" / "errors.py").write_text("class HubError(Exception): pass\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "modelscope"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    local_path.cache_clear()
    yield tmp_path / "there"
    local_path.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "modelscope"]:
        del sys.modules[name]


@pytest.fixture
def calls(there: Path) -> Callable[[], list]:
    return lambda: [json.loads(line) for line in (there.parent / "calls.jsonl").read_text().splitlines()]


def test_a_model_and_rows_are_named_and_downloaded_once(there: Path, calls, base: str, outcome) -> None:
    shutil.copytree(base, there / "models" / "org" / "tiny.1")
    rows = there / "datasets" / "org" / "rows"
    rows.mkdir(parents=True)
    shutil.copy(SINGLE_TURN, rows / "train.json")
    for name in ("README.md", "configuration.json", "dataset_infos.json"):
        (rows / name).write_text("{}")
    status, out, err = outcome(
        check.main, "--data-path modelscope:org/rows:0.5 --input-model modelscope:org/tiny.1"
    )
    assert status == 0, err
    assert out.splitlines()[-2:] == [
        "usable: 132 of 132 rows can be trained on",
        "next: training.trainer with --data-path modelscope:org/rows:0.5 --max-length 2048",
    ]
    downloaded = there.parent / "cache" / "datasets" / "org" / "rows" / "snapshots" / "master"
    assert f"modelscope:org/rows: in {downloaded}\n" in err
    assert "not read, by their names: 3 files (README.md, configuration.json, dataset_infos.json)" in err
    assert sorted(calls()) == [["datasets", "org/rows"], ["models", "org/tiny.1"]]
    assert default_run_name("modelscope:org/tiny.1").startswith("tiny.1-sft-2")


def test_a_model_on_modelscope_answers(there: Path, tuned: str) -> None:
    shutil.copytree(tuned, there / "models" / "org" / "tuned")
    model, tokenizer = load("modelscope:org/tuned")
    question = Conversation((Turn("你是谁"),))
    assert reply(model, tokenizer, question, temperature=0, repetition_penalty=1.0) == "我是雅意。"


def test_weights_of_pytorch_are_downloaded_only_where_there_are_no_others(
    there: Path, calls, base: str
) -> None:
    directory = there / "models" / "org"
    for name in ("both", "old"):
        shutil.copytree(base, directory / name)
        (directory / name / "pytorch_model.bin").write_bytes(b"x" * 9)
        (directory / name / "consolidated.pth").write_bytes(b"x" * 9)
    (directory / "old" / "model.safetensors").unlink()
    found = {
        name: {file.name for file in Path(local_path(f"modelscope:org/{name}")).iterdir()}
        for name in ("both", "old")
    }
    assert {"pytorch_model.bin", "consolidated.pth"}.isdisjoint(found["both"])
    assert {"pytorch_model.bin", "tokenizer.json"} < found["old"]
    assert "consolidated.pth" not in found["old"]
    assert [name for _, name in calls()] == ["org/both", "org/old", "org/old"]


def test_an_adapter_on_modelscope_is_known_for_one(there: Path, base: str) -> None:
    directory = there / "models" / "org" / "adapter"
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/gone"}))
    with pytest.raises(UserError, match=r"^modelscope:org/adapter: an adapter; merge it"):
        check_base_model("modelscope:org/adapter")
    with pytest.raises(UserError, match=r"an adapter without adapter_model\.safetensors"):
        load_any("modelscope:org/adapter", load_tokenizer(base))
    assert longest_row("modelscope:org/adapter", None) == 2048  # an adapter says nothing about it


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "modelscope:org/none",
            r"has no such (model|dataset), or cannot be asked \(no org/none\); check the",
        ),
        ("modelscope:none", "not of the form modelscope:OWNER/NAME"),
        ("modelscope:org/rows#zh", "not of the form modelscope:OWNER/NAME"),
        ("modelscope:../../etc", "not of the form modelscope:OWNER/NAME"),
    ],
)
def test_what_is_not_there_is_one_line(there: Path, name: str, message: str) -> None:
    for use in (load_tokenizer, read_rows):
        with pytest.raises(UserError, match=f"^{name}: .*{message}") as error:
            use(name)
        assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    local_path.cache_clear()
    for use in (load_tokenizer, read_rows):
        with pytest.raises(UserError) as error:
            use("modelscope:org/any")
        needs = "needs ModelScope's package, as it is pinned: pip install -r requirements-modelscope.txt"
        assert str(error.value) == f"modelscope:org/any: {needs}"
