# SPDX-License-Identifier: LGPL-2.1-or-later
"""A server to watch, names that lead where a test says, and times that suit it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from storaged_conn.system import sentinel as module
from tests.system.ports import DEADLINE, Port


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with Port() as port:
        yield port


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have silence noticed sooner, where it does not matter when."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "HEARING", 0)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pauses last longer than any test: what does not wait for them is at once."""
    monkeypatch.setattr(module, "FIRST_RETRY", 5 * DEADLINE)
    monkeypatch.setattr(module, "LONGEST_RETRY", 5 * DEADLINE)


@pytest.fixture
def lookup(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Have names resolved as told: to addresses, to an error, or never."""
    answer: object = None

    async def fake(_: str) -> list[str]:
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.get_running_loop().create_future()
        assert isinstance(answer, list)
        return answer

    def tell(new: object) -> None:
        nonlocal answer
        answer = new

    monkeypatch.setattr(module, "resolve", fake)
    return tell
