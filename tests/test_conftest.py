# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules for all tests bite."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).with_name("conftest.py").read_text()


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Give an empty directory with the same conftest.py, outside of CI."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nasyncio_mode = auto\naddopts = -p no:cacheprovider")
    return pytester


def test_a_task_that_is_left_fails_its_test(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import asyncio

        async def test_leaves_a_task():
            global task
            task = asyncio.create_task(asyncio.Event().wait())

        async def test_leaves_a_task_that_ends():
            global task
            task = asyncio.create_task(asyncio.sleep(0))
    """)
    result = session.runpytest_subprocess()
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines("*tasks are left: *Event.wait*")


def test_a_child_process_that_is_left_fails_its_test(session: pytest.Pytester) -> None:
    session.makepyfile("""
        import subprocess

        def test_leaves_a_child():
            global child
            child = subprocess.Popen(["sleep", "60"])

        def test_knows_a_child_from_before():
            child.kill()

        def test_waits_for_its_child():
            child.wait()
    """)
    result = session.runpytest_subprocess()
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines("*child processes are left: {*}*")


def test_a_skip_fails_the_session_in_ci_alone(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.makepyfile(
        test_one="import pytest\ndef test_one(): pytest.skip('no bus here')",
        test_all="import pytest\npytest.skip('no mounts here', allow_module_level=True)",
        test_bug="import pytest\n@pytest.mark.xfail\ndef test_bug(): raise ValueError",
    )
    result = session.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*failed: CI is set*")

    monkeypatch.setenv("CI", "1")
    result = session.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("*failed: CI is set, and these were skipped*")
    result.stdout.fnmatch_lines("test_one.py::test_one: Skipped: no bus here")
    result.stdout.fnmatch_lines("test_all.py: Skipped: no mounts here")
    result.stdout.no_fnmatch_line("test_bug.py*:*")
