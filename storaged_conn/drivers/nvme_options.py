# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options of NVMe over Fabrics, and what becomes of them for /dev/nvme-fabrics.

A comma ends a field there, so no text may have one. Source: drivers/nvme/host/fabrics.c,
nvmf_parse_options.
"""

import re
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from storaged_conn.core.model import Target, Value
from storaged_conn.core.secret import Secret
from storaged_conn.drivers.nvme_host import Host
from storaged_conn.drivers.nvme_remote import Remote, check_nqn
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.resolve import is_address

OPTIONS: Final = {
    "host-nqn": "s",
    "host-id": "s",
    "host-traddr": "s",
    "host-iface": "s",
    "nr-io-queues": "x",
    "keep-alive": "x",
    "ctrl-loss-timeout": "x",
    "reconnect-delay": "x",
    "hdr-digest": "b",
    "data-digest": "b",
    "tls": "b",
    "dhchap-secret": "ay",
    "dhchap-ctrl-secret": "ay",
    "force": "b",
}

IDENTITY: Final = ("host-nqn", "host-id", "host-traddr", "host-iface")
"""With another one of these it is another controller. Source: drivers/nvme/host/fabrics.c,
nvmf_ctlr_matches_baseopts and nvmf_ip_options_match."""

RANGES: Final = {
    "nr-io-queues": range(1, 1025),
    "keep-alive": range(1, 3601),
    "ctrl-loss-timeout": range(-1, 86401),
    "reconnect-delay": range(1, 3601),
}
"""Counts and seconds; -1 is for ever."""

FOR_EVER: Final = -1
"""Seconds after which the kernel gives a lost controller up. Its own default is 600, after which
the devices are gone for ever under whoever uses them (needs 48)."""

RECONNECT_DELAY: Final = 1
"""Seconds between the kernel's attempts at a lost server, the least that it takes. With its own
default, 10, it was back 7 to 9 s after the server's return, with this one 0.5 to 1.2 s
(kernel-events.md 1), and an attempt a second hurts no server: it is one SYN."""

FIELDS: Final = {
    "ctrl-loss-timeout": "ctrl_loss_tmo",
    "reconnect-delay": "reconnect_delay",
    "nr-io-queues": "nr_io_queues",
    "keep-alive": "keep_alive_tmo",
    "host-traddr": "host_traddr",
    "host-iface": "host_iface",
}

FLAGS: Final = {"hdr-digest": "hdr_digest", "data-digest": "data_digest", "tls": "tls"}

KEYS: Final = {"dhchap-secret": "dhchap_secret", "dhchap-ctrl-secret": "dhchap_ctrl_secret"}

TCP_ONLY: Final = ("host-iface", "hdr-digest", "data-digest", "tls")

_DEFAULTS: Final = {"ctrl-loss-timeout": FOR_EVER, "reconnect-delay": RECONNECT_DELAY}
_KEY: Final = re.compile(rb"DHHC-1:0[0-3]:[A-Za-z0-9+/]{36,200}={0,2}:")
_IFACE: Final = re.compile(r"[^\s/,:]{1,15}")


def read_own(remote: Remote, options: Mapping[str, Value]) -> dict[str, Value]:
    """Check the options, and leave out what is the default.

    Raises:
        InvalidArgumentError: it names the option, and never repeats a secret.
    """
    own = {name: value for name, value in options.items() if value is not False}
    for name, value in own.items():
        if remote.transport != "tcp" and name in TCP_ONLY:
            raise InvalidArgumentError(f"options: {name!r} is for nvme+tcp alone")
        own[name] = _read(name, value)
    if "dhchap-ctrl-secret" in own and "dhchap-secret" not in own:
        raise InvalidArgumentError("options: 'dhchap-ctrl-secret' needs 'dhchap-secret', too")
    return {name: value for name, value in own.items() if _DEFAULTS.get(name) != value}


def fabrics_line(target: Target, remote: Remote, address: str, host: Host) -> bytes:
    """Give what is written to /dev/nvme-fabrics; it holds the secrets.

    Args:
        target: whose options have been read.
        remote: where it is.
        address: at which the server answers; for fc as in the URI.
        host: who we are.
    """
    fields = {"transport": remote.transport, "traddr": address}
    if remote.port:
        fields["trsvcid"] = str(remote.port)
    fields |= {"nqn": remote.nqn, "hostnqn": host.nqn, "hostid": host.id}
    for name, field in FIELDS.items():
        value = target.option(name)
        value = _DEFAULTS.get(name) if value is None else value
        if value is not None:
            fields[field] = str(value)
    words = [f"{field}={value}".encode() for field, value in fields.items()]
    words += [field.encode() for name, field in FLAGS.items() if target.option(name)]
    for name, field in KEYS.items():
        if secret := target.secret(name):
            words.append(f"{field}=".encode() + secret.reveal())
    return b",".join(words)


def _read(name: str, value: Value) -> Value:
    if name in RANGES and value not in RANGES[name]:
        low, high = RANGES[name][0], RANGES[name][-1]
        raise InvalidArgumentError(f"options: {name!r} must be from {low} to {high}, not {value}")
    if isinstance(value, Secret):
        if not _KEY.fullmatch(value.reveal()):
            raise InvalidArgumentError(
                f"options: {name!r} is no key; write it as DHHC-1:NN:BASE64:, see"
                " nvme-gen-dhchap-key(1)"
            )
    elif name == "host-nqn":
        check_nqn(str(value), "options: 'host-nqn'")
    elif name == "host-id":
        return _read_uuid(str(value))
    elif name == "host-traddr":
        return _read_source(str(value))
    elif name == "host-iface" and not (_IFACE.fullmatch(str(value)) and str(value).isprintable()):
        raise InvalidArgumentError("options: 'host-iface' is no name of an interface")
    return value


def _read_uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise InvalidArgumentError("options: 'host-id' must be a UUID") from None


def _read_source(text: str) -> str:
    if not is_address(text) and not text.startswith("nn-0x"):
        raise InvalidArgumentError("options: 'host-traddr' must be an address of this host")
    if "," in text or not text.isprintable():
        raise InvalidArgumentError("options: 'host-traddr' must not have a comma")
    return text
