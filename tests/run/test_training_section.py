"""The model card of a run says what the run was."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import LEARNT
from tests.model.card_checks import checked_card, listed_names, unlisted
from tests.pages import blocks
from training.common.options import Options, Source
from training.run.training_section import data_table, findings, hub_data_sets


def test_the_card_of_a_run(tuned: str, capsys: pytest.CaptureFixture) -> None:
    run_dir, card = Path(tuned).parent, checked_card(Path(tuned))
    assert unlisted(run_dir, listed_names("serving.md")[1]) == {"model"}
    assert "\n# run\n" in card.text
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["sft"],
    }  # fmt: skip
    report = json.loads((run_dir / "report.json").read_text("utf-8"))
    losses = f"| training loss, first and last | {report['first_loss']:.4f}, {report['last_loss']:.4f} |"
    assert losses in card.text
    assert "| a step | 4 rows |" in card.text
    assert report["run"]["machine"]["host"] not in card.text
    ((path, summary),) = report["data"].items()
    kept = summary["kept"]
    digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    rows = f"| training | `{path}` | 4 | 4 | {kept['tokens']} | {kept['learnt']} | `{digest}` |"
    assert rows in card.text
    assert len(LEARNT) == 4
    assert "Examples an epoch: 4; held out for evaluation: 0." in card.text

    (shown,) = blocks(card.text, "yaml")
    written = yaml.safe_load((run_dir / "options.yaml").read_text("utf-8"))
    of_this_place = {"local-output-dir", "run-name", "cache-dir"}
    assert yaml.safe_load(shown) == {key: written[key] for key in written.keys() - of_this_place}

    (snippet,) = blocks(card.text, "python")
    exec(re.sub(r'(?m)^path = ".*"$', f"path = {tuned!r}", snippet), {})
    assert capsys.readouterr().out == "我是雅意。\n"


SUMMARY = {
    "hash": "f00",
    "rows": 1200,
    "kept": {"rows": 1100, "tokens": 90000, "learnt": 45000},
    "remarks": [],
    "unusable": {'"output" is empty': {"count": 60, "lines": [[3], [4], [9]]}},
    "notes": {"dropped": {"count": 40, "lines": [[7]]}, "cut": {"count": 1, "lines": [[8]]}},
    "not_learnt": {},
    "bookkeeping": {"id": 1200},
}


def test_every_file_has_its_counts_and_says_what_was_dropped_and_why() -> None:
    report = {"data": {"a|b.jsonl": SUMMARY}, "evaluation_data": {"test": {"test.csv": SUMMARY}}}
    assert list(data_table(report))[2:] == [
        "| training | `a\\|b.jsonl` | 1,200 | 1,100 | 90,000 | 45,000 | `f00` |",
        "| evaluation test | `test.csv` | 1,200 | 1,100 | 90,000 | 45,000 | `f00` |",
    ]
    said = list(findings(report))
    assert len(said) == 10
    assert said[:5] == [
        "a|b.jsonl: 1,100 rows of 90,000 tokens, 45,000 of them supervised",
        'DROPPED, cannot be used, "output" is empty: 60 rows (a|b.jsonl:3, a|b.jsonl:4, a|b.jsonl:9, ...)',
        "DROPPED, no answer to learn within --max-length: 40 rows (a|b.jsonl:7, ...)",
        "cut after the last turn within --max-length: 1 row (a|b.jsonl:8)",
        "bookkeeping, not learnt: id: 1,200",
    ]


def test_only_what_came_from_the_hub_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my", "folder").mkdir(parents=True)
    paths = [
        "my/folder",
        "gone/rows.jsonl",
        "owner/rows#zh/train",
        "owner/rows#en",
        "other/rows",
        "*/x",
        "/x/y",
    ]
    options = Options(tuple(map(Source, paths)), input_model="m", local_output_dir=tmp_path)
    assert hub_data_sets(options) == ["owner/rows", "other/rows"]
