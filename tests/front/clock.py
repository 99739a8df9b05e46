# SPDX-License-Identifier: LGPL-2.1-or-later
"""A loop whose time passes only where all wait for it, so that tests of time take none."""

import asyncio
import selectors
from collections.abc import Coroutine


class _Selector(selectors.DefaultSelector):
    """Has the time pass that it is asked to wait."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and for nothing"
        ready = super().select(0)
        if not ready:
            self.passed += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.passed


def play(scene: Coroutine[object, object, None]) -> None:
    """Run a scene; its time begins at 0."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(scene)
