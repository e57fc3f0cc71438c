"""The commands of the README run in their order, in a copy of the repository, on the demo's tiny model."""

import pytest

from tests.pages import README, text_of
from tests.walk_readme import Reader, steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("readme") / "YaYi")


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        pytest.param(block, shown, id=f"{number}: {block.splitlines()[-1].strip()[:50]}")
        for number, (block, shown) in enumerate(steps(text_of(README.english)), start=1)
    ],
)
def test_a_block_runs_after_those_before_it(block: str, shown: str, reader: Reader) -> None:
    printed = reader.follow(block)
    assert [line for line in shown.splitlines() if line not in printed.splitlines()] == []
