"""What failed is reported with the last words of every process that had to do with it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.support import logs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what processes said; their run directory may be gone before anybody could look."""
    report = yield
    if report.failed:
        report.sections += logs.tails().items()
        logs.copy(item.nodeid.partition("::")[2])
    if call.when == "teardown":
        logs.forget_ended()
    return report
