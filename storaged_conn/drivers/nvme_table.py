# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which controller of the kernel's is connected to which target, and how it is."""

from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from storaged_conn.core.model import Absent, Foreign, Observation, Present, Target, Value
from storaged_conn.drivers.mount import key_of
from storaged_conn.drivers.nvme_options import IDENTITY
from storaged_conn.drivers.nvme_registry import Registry
from storaged_conn.drivers.nvme_remote import Remote, read_uri, same_address
from storaged_conn.errors import BusyError
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.nvme import CONNECTING, LEAVING, LIVE, Controller, Controllers
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers
from storaged_conn.system.usage import who_uses

WAITING: Final = "waiting-for-devices"

NUMBERS: Final = {"keepAlive": "kato", "controllerId": "cntlid", "queues": "queue_count"}
WORDS: Final = {"ctrlLossTimeout": "ctrl_loss_tmo", "reconnectDelay": "reconnect_delay"}
"""ConnectionInfo, and the attributes that it is read from; the last two may be "off"."""


class Table:
    """The controllers at a fabric, and whose they are.

    A plan is a file that is there while a controller is being made: where a crash came between, the
    controller that is found then is ours.
    """

    def __init__(
        self, controllers: Controllers, registry: Registry, servers: Servers, plans: Path
    ) -> None:
        """Take up the plans from before.

        Raises:
            OSError: their directory cannot be used.
        """
        self._controllers = controllers
        self._registry = registry
        self._servers = servers
        self._plans = plans
        self._plans.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._addresses: dict[str, str] = {}
        self._making: dict[Target, tuple[str, str]] = {}

    # finding

    def find(self, target: Target) -> Controller | None:
        """Give the controller that is connected to a target: ours, if there are several.

        Raises:
            OSError: it cannot be known.
        """
        remote = read_uri(target.uri)
        found = [one for one in self._controllers.all() if self._matches(one, remote, target)]
        return next(iter(sorted(found, key=lambda one: not self._is_ours(one, target))), None)

    def look_up(self, target: Target) -> Observation:
        """Say how a target is; None while it is going, or cannot be known."""
        try:
            controller = self.find(target)
        except OSError:
            return None
        if controller is None:
            return Absent()
        return self._present(
            controller, read_uri(target.uri), ours=self._is_ours(controller, target)
        )

    def foreign(self, known: Container[str]) -> Iterator[Foreign]:
        """List all controllers, whoever made them, but for those that are known or being made."""
        try:
            found = self._controllers.all()
        except OSError:
            return
        for controller in found:
            remote = _remote(controller)
            made = (controller.nqn, remote.host) in self._making.values()
            if made or controller.name in known:
                continue
            if present := self._present(
                controller, remote, ours=self._registry.is_ours(controller)
            ):
                yield Foreign(self._registry.uri(controller) or remote.uri, present)

    def waiting(self, server: Address) -> set[str]:
        """Give the addresses at which the kernel tries to reach a server for us."""
        known = self._addresses.get(server.host, server.host)
        try:
            found = self._controllers.all()
        except OSError:
            return set()
        return {
            one.address["traddr"]
            for one in found
            if one.transport == "tcp"
            and same_address(one.address.get("traddr", ""), known)
            and one.address.get("trsvcid") == str(server.port)
            and self._controllers.state(one) == CONNECTING
            and self._registry.is_ours(one)
        }

    def learn(self, host: str, address: str) -> None:
        """Learn at which address a name's server is."""
        self._addresses[host] = address

    # whose it is

    def plan(self, target: Target, address: str) -> None:
        """Say that a controller will be made."""
        (self._plans / key_of(target)).touch()
        self._making[target] = (read_uri(target.uri).nqn, address)

    def settle(self, target: Target, made: str = "") -> None:
        """Make what was planned ours, if it came about.

        Where it cannot be claimed, the plan stays, and says the same to us alone.

        Args:
            target: that it was planned for.
            made: the controller that the kernel has just made for us, if that is known: whoever is
                said to own it had one of its name before.
        """
        self._making.pop(target, None)
        with suppress(OSError):
            controller = self.find(target) if self._is_planned(target) else None
            if controller and (made == controller.name or not self._registry.owner(controller)):
                self._registry.claim(controller, target.uri)
            self._forget_plan(target)

    def drop(self, target: Target) -> None:
        """Forget what is gone, or was not made by us."""
        self._making.pop(target, None)
        self._registry.tidy(self._controllers.serial)
        self._forget_plan(target)

    def is_there(self, controller: Controller) -> bool:
        """Say whether it is not gone yet."""
        return bool(self._controllers.state(controller))

    def check_unused(self, controller: Controller, mounts: MountTable) -> None:
        """See that nothing would be lost with a controller: no namespace's only way, and in use.

        Raises:
            BusyError: something would.
        """
        others = [one for one in self._controllers.all() if one != controller]
        elsewhere = {
            head
            for one in others
            if self._controllers.state(one) == LIVE
            for head in self._controllers.heads(one)
        }
        for head in set(self._controllers.heads(controller)) - elsewhere:
            if why := who_uses(head, mounts.mounts or {}, self._controllers.sys):
                raise BusyError(f"{controller.nqn}: {why}; free it, or give 'force'")

    # inside

    def _forget_plan(self, target: Target) -> None:
        (self._plans / key_of(target)).unlink(missing_ok=True)

    def _is_planned(self, target: Target) -> bool:
        return (self._plans / key_of(target)).exists()

    def _is_ours(self, controller: Controller, target: Target) -> bool:
        if self._registry.is_ours(controller):  # perhaps by another name of the same server
            return self._registry.uri(controller) == target.uri
        return not self._registry.owner(controller) and self._is_planned(target)

    def _matches(self, controller: Controller, remote: Remote, target: Target) -> bool:
        if (controller.transport, controller.nqn) != (remote.transport, remote.nqn):
            return False
        if self._registry.uri(controller) != target.uri and not self._is_at(controller, remote):
            return False
        there = {
            "host-nqn": controller.host_nqn,
            "host-id": self._controllers.read(controller, "hostid"),
            "host-traddr": controller.address.get("host_traddr", ""),
            "host-iface": controller.address.get("host_iface", ""),
        }
        wanted = {name: target.option(name) for name in IDENTITY}
        return all(there[name] == value for name, value in wanted.items() if value is not None)

    def _is_at(self, controller: Controller, remote: Remote) -> bool:
        address = controller.address.get("traddr", "")
        port = controller.address.get("trsvcid", "0") if remote.port else "0"
        known = self._addresses.get(remote.host, remote.host)
        return same_address(address, known) and port == str(remote.port)

    def _present(self, controller: Controller, remote: Remote, *, ours: bool) -> Present | None:
        state = self._controllers.state(controller)
        if not state or state in LEAVING:
            return None
        namespaces = self._controllers.namespaces(controller)
        silent = bool(remote.server and self._servers.failure(remote.server))
        return Present(
            controller.name,
            ours=ours,
            responsive=state == LIVE and not silent,
            pending="" if namespaces and all(one.ready for one in namespaces) else WAITING,
            devices=tuple(one.path for one in namespaces),
            info=self._info(controller, remote, state)
            | {"namespaces": tuple(one.name for one in namespaces)},
        )

    def _info(self, controller: Controller, remote: Remote, state: str) -> dict[str, Value]:
        read = self._controllers.read
        numbers = {key: read(controller, name) for key, name in NUMBERS.items()}
        return {
            "hostname": remote.host,
            "address": controller.address.get("traddr", ""),
            "port": remote.port,
            "transport": controller.transport,
            "nqn": controller.nqn,
            "hostNqn": controller.host_nqn,
            "controller": controller.name,
            "kernelState": state,
            "owner": self._registry.owner(controller),
            **{key: int(text) for key, text in numbers.items() if text.isdecimal()},
            **{key: read(controller, name) for key, name in WORDS.items()},
        }


def _remote(controller: Controller) -> Remote:
    """Say where a controller is connected to, as a URI would."""
    port = controller.address.get("trsvcid", "")
    host = quote(controller.address.get("traddr", ""), safe=":%")
    number = int(port) if port.isdecimal() and controller.transport != "fc" else 0
    return Remote(controller.transport, host, number, controller.nqn)
