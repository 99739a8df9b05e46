# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every driver is: one file per scheme, which holds only what differs."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping
from typing import ClassVar

from storaged_conn.core.model import Foreign, Observation, Present, Target, Topic, Value
from storaged_conn.core.secret import Secret
from storaged_conn.errors import NotSupportedError

Options = tuple[tuple[str, Value], ...]
Secrets = tuple[tuple[str, Secret], ...]


def part(options: Mapping[str, Value]) -> tuple[Options, Secrets]:
    """Part what tells two targets apart from the secrets, as `Target` wants them."""
    pairs = [(name, options[name]) for name in sorted(options)]
    secrets = tuple((name, value) for name, value in pairs if isinstance(value, Secret))
    return tuple(pair for pair in pairs if not isinstance(pair[1], Secret)), secrets


class Driver(ABC):
    """Connects one kind of storage.

    Every method that touches the world is a coroutine, runs what may hang in a killable child with
    a deadline, raises `AttemptError`, and logs nothing. Already connected and already gone are
    success.

    Attributes:
        options: the names that Manage accepts for this scheme, each with its D-Bus signature; those
            of type `ay` are secrets, and `parse` puts them into the target's `secrets`.
    """

    options: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def serves(self, scheme: str) -> bool:
        """Say whether URIs of this scheme (in lower case) are this driver's."""

    @abstractmethod
    def schemes(self) -> tuple[str, ...]:
        """Name the schemes for the `Schemes` property."""

    @abstractmethod
    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """Make the same storage, written in two ways, the same target. Pure.

        Raises:
            InvalidArgumentError: it names the argument and says what to do.
        """

    @abstractmethod
    def topics(self, target: Target) -> frozenset[Topic]:
        """Say what news concerns this connection."""

    def clash(self, target: Target, other: Target) -> str:
        """Say why two targets cannot both be, of which a topic says that they are in one place.

        Args:
            target: of this driver.
            other: that is wanted already, of this driver or another.

        Returns:
            What is wrong with the options of the first, or nothing where they get along.
        """
        return f"options: 'mountpoint' is taken by {other.uri}"

    @abstractmethod
    async def observe(self, target: Target) -> Observation:
        """Read the kernel's truth; None where it cannot be known."""

    @abstractmethod
    async def connect(self, target: Target) -> Present:
        """Connect, or adopt what is there.

        Raises:
            AttemptError: it could not be connected.
        """

    @abstractmethod
    async def disconnect(self, target: Target, present: Present | None) -> None:
        """Disconnect what `connect` or `observe` returned last.

        Raises:
            AttemptError: the kernel still has it.
        """

    async def validate(self, target: Target) -> None:
        """Find out whether `connect` would succeed, without connecting.

        Raises:
            AttemptError: what would stop it.
        """
        raise NotSupportedError(f"{target.scheme}: validation is not supported")

    async def discover(
        self, uri: str, options: Mapping[str, Value], *, trusted: bool = False
    ) -> list[Mapping[str, Value]]:
        """List what a server offers, each with a `uri` that Manage accepts.

        Args:
            uri: the server.
            options: as for `parse`.
            trusted: see Target.

        Raises:
            NotSupportedError: this kind of storage has nothing to discover.
        """
        raise NotSupportedError(f"{uri.partition(':')[0]}: there is nothing to discover")

    def foreign(self, known: Container[str] = ()) -> Iterable[Foreign]:
        """List all connections of this kind that the kernel has, whoever made them.

        Args:
            known: the names of those that need not be listed, since somebody manages them.
        """
        return ()
