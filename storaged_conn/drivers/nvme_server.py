# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an NVMe server says for itself: whether it lets us in, and what else it has."""

from collections.abc import Mapping

from storaged_conn.core.model import Target, Value
from storaged_conn.drivers.nvme_exclusions import excluded_by
from storaged_conn.drivers.nvme_host import Host
from storaged_conn.drivers.nvme_remote import DISCOVERY, PORT, Remote, read_server_uri, read_uri
from storaged_conn.errors import (
    AttemptError,
    AuthenticationError,
    InvalidArgumentError,
    NotSupportedError,
    RefusedError,
    TroubleError,
)
from storaged_conn.system import nvme_tcp
from storaged_conn.system.nvme_tcp import Entry, Who
from storaged_conn.system.sentinel import Address


def check_allowed(target: Target, remote: Remote, address: str, host: Host) -> None:
    """See that the administrator has not excluded it.

    Raises:
        RefusedError: it is.
    """
    fields = {
        "transport": remote.transport,
        "traddr": address,
        "nqn": remote.nqn,
        "hostnqn": host.nqn,
        "hostid": host.id,
        **({"trsvcid": str(remote.port)} if remote.port else {}),
    }
    for name in ("host-traddr", "host-iface"):
        if value := target.option(name):
            fields[name] = str(value)
    if entry := excluded_by(fields):
        raise RefusedError(
            f"{remote.uri} is excluded by {entry!r} in /etc/nvme/exclusions.conf; remove that entry"
        )


async def knock(target: Target, remote: Remote, address: str, host: Host) -> bool:
    """See that a subsystem would let us in, as far as it says; True where it wants a key.

    With TLS it says nothing to us: the kernel has the keys.

    Raises:
        AttemptError: it would not.
        NotSupportedError: it can only be asked over TCP.
    """
    if target.option("tls"):
        return False
    if remote.transport != "tcp":
        raise NotSupportedError(f"{target.scheme}: only nvme+tcp can be asked without connecting")
    server, who = Address(address, remote.port), Who(host.nqn, host.id, remote.nqn)
    wanted = await nvme_tcp.knock(server, who)
    if wanted and not target.secret("dhchap-secret"):
        raise AuthenticationError(
            f"{remote.nqn} wants a DH-HMAC-CHAP key from this host; give 'dhchap-secret'"
        )
    return wanted


async def explain(target: Target, remote: Remote, address: str, host: Host) -> AttemptError | None:
    """Find out why a connect was refused; the kernel has one error for all that a server says.

    Returns:
        None where the server does not say.
    """
    try:
        wanted = await knock(target, remote, address, host)
    except AttemptError as error:
        return error
    except NotSupportedError:
        return None
    if target.option("tls"):
        return TroubleError(f"{remote.uri}: TLS failed, or more; see tlshd(8) and the kernel's log")
    if wanted:
        return AuthenticationError(
            f"{remote.nqn} and this host do not agree on the DH-HMAC-CHAP keys; see both sides'"
        )
    return None


def check_discovery(remote: Remote) -> Address:
    """See that a URI names a server to ask.

    Raises:
        InvalidArgumentError: it names a subsystem.
        NotSupportedError: it can only be asked over TCP.
    """
    if remote.server is None:
        raise NotSupportedError("uri: only nvme+tcp can be asked what there is")
    if remote.nqn not in {"", DISCOVERY}:
        raise InvalidArgumentError("uri: write it as nvme+tcp://HOST[:PORT], without an NQN")
    return remote.server


async def list_subsystems(address: str, port: int, host: Host) -> list[Mapping[str, Value]]:
    """Ask a discovery service what there is.

    Raises:
        AttemptError: it does not say.
    """
    entries = await nvme_tcp.discover(Address(address, port), Who(host.nqn, host.id, DISCOVERY))
    return [found for entry in entries if (found := describe(entry))]


def describe(entry: Entry) -> Mapping[str, Value] | None:
    """Give the members of Discover's answer; None for an entry that no URI can be made of."""
    port = int(entry.service) if entry.service.isdecimal() and entry.transport != "fc" else 0
    referral = entry.kind == "referral"
    remote = Remote(entry.transport, entry.address, port, "" if referral else entry.nqn)
    uri = remote.uri.rstrip("/")
    try:
        if remote != (read_server_uri(uri, PORT) if referral else read_uri(uri)):
            return None
    except InvalidArgumentError:
        return None
    return {
        "uri": uri,
        "nqn": entry.nqn,
        "kind": entry.kind,
        "transport": entry.transport,
        "address": entry.address,
        "port": port,
    }
