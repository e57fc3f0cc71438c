"""One version of the project, wherever it is named."""

import re
import tomllib

import yaml

from tests.conftest import ROOT


def test_every_file_names_the_same_version_and_date() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = re.findall(r"^## (\S+) – (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert changes[0] == (version, str(citation["date-released"]))
    assert str(citation["version"]) == version


def test_the_citation_has_what_its_format_requires() -> None:
    """The required keys of version 1.2.0 (https://citation-file-format.github.io)."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    for entry in (citation, *citation["references"]):
        assert entry["title"]
        for author in entry["authors"]:
            assert author.keys() <= {"name", "family-names", "given-names"}
        assert entry.get("url", "https://").startswith("https://")
    assert citation["message"]
    assert all({"type", "title", "authors"} <= entry.keys() for entry in citation["references"])
