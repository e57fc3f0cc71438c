"""What tests of whole runs share: one start of the launcher for many of them."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.forked_runs import ForkedRuns


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """A function like `tests.launching.launch`, see ForkedRuns.launch, that starts the launcher once only.

    It is for what a run computes. How the launcher starts, what it prints, and how it ends are tested with
    `launch`, and so is a run that gets a signal or is killed.
    """
    runs = {ranks: ForkedRuns(ranks, tmp_path_factory.mktemp(f"ranks-{ranks}-")) for ranks in (1, 2)}
    yield lambda ranks, *arguments, **more: runs[ranks].launch(*arguments, **more)
    for each in runs.values():
        each.end()
