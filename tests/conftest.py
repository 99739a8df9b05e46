# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for all tests: how long hypothesis may take, no leaks, and no skips in CI."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings

STEPS: Final = pytest.StashKey[int]()

# A busy machine is slow, which is no failure: hence no deadline. To shrink one failing case well is
# worth more than to explain it, or to find others: either takes minutes.
settings.register_profile(
    "quick",
    max_examples=250,
    stateful_step_count=60,
    derandomize=True,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=set(Phase) - {Phase.explain},
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long",
    settings.get_profile("quick"),
    max_examples=2500,
    stateful_step_count=100,
    derandomize=False,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


class Ledger:
    """Counts what a session did and what it skipped; with CI set, to skip is to fail."""

    def __init__(self, config: pytest.Config) -> None:
        self.stash = config.stash
        self.stash[STEPS] = 0
        self.skips: list[str] = []
        self.strict = bool(os.environ.get("CI"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.skips.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.strict and self.skips:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.stash[STEPS]:
            terminalreporter.write_line(f"{self.stash[STEPS]} steps of the state machine were made")
        if self.strict and self.skips:
            terminalreporter.section("failed: CI is set, and these were skipped", red=True)
            terminalreporter.write_line("\n".join(self.skips))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Ledger(config))


@pytest.fixture
def count_steps(pytestconfig: pytest.Config) -> Callable[[int], None]:
    """Have the steps of a state machine printed when the session ends."""

    def count(steps: int) -> None:
        pytestconfig.stash[STEPS] += steps

    return count


def children() -> set[int]:
    """Give the child processes of this process, the dead ones that nobody waited for too.

    Source: proc(5), /proc/PID/task/TID/children (Linux 4.2, CONFIG_PROC_CHILDREN).
    """
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError, FileNotFoundError):  # the thread has ended
            found |= set(map(int, (task / "children").read_text().split()))
    return found


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a task or a child process behind."""
    before = children()
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_tasks_left")
    yield
    left = children() - before
    assert not left, f"child processes are left: {left}"


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task; one that is ending may do so."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=1)
    assert not left, f"tasks are left: {left}"
