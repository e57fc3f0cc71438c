"""pytest hooks: where CI is set, a test that is skipped has failed, unless its reason is a known one.

`.ci/run` installs whatever the tests need, so a test that it skips would otherwise stay unrun without a word.
"""

import os
from collections.abc import Generator

import pytest

# How the reasons begin for which a test may be skipped: no installation helps against them.
MAY_BE_SKIPPED = ("needs a card", "mounting a small disk takes root")


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn the report of a skipped test into one of a failed test, where CI is set."""
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    _, _, message = report.longrepr
    reason = message.removeprefix("Skipped: ")
    if not reason.startswith(MAY_BE_SKIPPED):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped although CI is set: {reason}\n"
            "Let .ci/run install what is missing, or add the reason to MAY_BE_SKIPPED in tests/skips.py."
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report
