# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stands in for a driver that this service does not have (any more), so that a record is kept."""

from collections.abc import Mapping

from storaged_conn.core.model import Observation, Present, Target, Topic, Value
from storaged_conn.drivers.base import Driver
from storaged_conn.errors import RequestError, UnusableError


class UnavailableDriver(Driver):
    """Fails every attempt with the reason why its record cannot be taken up."""

    def __init__(self, why: RequestError) -> None:
        """Remember why."""
        self._why = why

    def serves(self, scheme: str) -> bool:
        """See Driver."""
        return False

    def schemes(self) -> tuple[str, ...]:
        """See Driver."""
        return ()

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """See Driver."""
        raise self._why

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver."""
        return frozenset()

    async def observe(self, target: Target) -> Observation:
        """See Driver."""
        return None

    async def connect(self, target: Target) -> Present:
        """See Driver."""
        raise UnusableError(f"the record cannot be taken up: {self._why}")

    async def disconnect(self, target: Target, present: Present | None) -> None:
        """See Driver."""
