"""What every test shares: the fixtures, and the rule that CI skips no test without a name."""

import os
from collections.abc import Generator

import pytest

pytest_plugins = ["tests.support.fixtures"]

# A skip whose reason starts with one of these is let through in CI.
ALLOWED_SKIPS: tuple[str, ...] = ()


def refuse_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Turn a skip into a failure where ASYNCSESSION_KIT_NO_SKIP=1; an expected failure stays."""
    if os.environ.get("ASYNCSESSION_KIT_NO_SKIP") != "1":
        return
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = skip_reason(report)
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {reason}"


def skip_reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Return the reason of a skipped report, without the word that pytest puts before it."""
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return text.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Apply the rule to a test that is skipped by a mark, a fixture or its body."""
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Apply the rule to a module that is skipped whole."""
    report = yield
    refuse_skip(report)
    return report
