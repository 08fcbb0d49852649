"""A namespace for tests; and what failed is reported with the last words of every process that had to do with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from netweft_cli import netns

from tests.support import logs


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    """A network namespace that is not ours; it goes whatever happens, for pytest cannot remove a mount."""
    path = tmp_path / "space"
    netns.create(path)
    yield path
    netns.remove(path)


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
