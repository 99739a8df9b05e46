# SPDX-License-Identifier: LGPL-2.1-or-later
"""All parsers of what others write: how to feed each, with what to begin, and its modules.

A feeder takes any bytes, and raises only where the parser did what it must not: another error than
the documented ones, an error that does not name what is wrong, or a value that means something else
than what was written. A new parser is a line in PARSERS, which test_parsers.py insists on.
"""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from storaged_conn import store
from storaged_conn.bus import wire
from storaged_conn.config import NAME, load
from storaged_conn.core.model import Given, Record, check_cid
from storaged_conn.ctl import arguments, options, screen
from storaged_conn.ctl.client import Failure
from storaged_conn.drivers import marks
from storaged_conn.drivers.nfs_remote import Remote, read_uri
from storaged_conn.drivers.nfs_server import _read_exports
from storaged_conn.errors import (
    AttemptError,
    InvalidArgumentError,
    NotSupportedError,
    RequestError,
    StoreError,
)
from storaged_conn.names import ROOT, connection_id, object_path
from storaged_conn.system.mounting import explain
from storaged_conn.system.rpc import Procedure, Reader, _port_of, _results
from storaged_conn.system.run import Result
from storaged_conn.system.sentinel import Address
from tests.fuzz import iscsi, netlink, nvme
from tests.fuzz.world import World, check_told
from tests.injections import INJECTIONS

DATA: Final = Path(__file__).parents[1] / "data"

FIELD, ITEM = "\x1e", "\x1f"
"""What parts the fields of an input, and the items of a field: no parser gives them a meaning."""

SERVER: Final = Address("192.0.2.1", 2049)


@cache
def world() -> World:
    """Give the drivers, made once."""
    return World()


def text_of(data: bytes) -> str:
    """Make any text of some bytes, with lone surrogates too."""
    try:
        return data.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return data.decode(errors="surrogateescape")


def names(error: Exception, *arguments: str) -> None:
    """See that an error begins with the argument that is wrong."""
    assert str(error).startswith(arguments), error


# what clients say


def feed_manage(data: bytes) -> None:
    """URI FIELD NAME=VALUE FIELD ...: what Manage is given."""
    uri, *written = text_of(data).split(FIELD)
    given = dict(map(_option, written))
    try:
        driver, target, taken = world().manager._parse(uri, given, 0)
    except (InvalidArgumentError, NotSupportedError) as error:
        names(error, "uri", "options")
        return
    assert target.uri.isascii()
    assert target.uri.isprintable()
    assert driver.topics(target)
    record = Record("x", target.uri, taken)
    assert world().manager._read(record) == (driver, target)
    check_told(world().mounted(target))
    if target.scheme.startswith("nvme+"):
        nvme.check_line(target)


def _option(written: str) -> tuple[str, Given]:
    name, _, value = written.partition("=")
    signature = world().signatures.get(name, "s")
    match signature:
        case "b":
            return name, ("b", value != "0")
        case "x":
            return name, ("x", int(value) if value.isascii() and value.isdigit() else -1)
        case "as":
            return name, ("as", value.split(ITEM))
        case "ay":
            return name, ("ay", value.encode(errors="replace"))
        case _:
            return name, (signature, value)


def feed_cid(data: bytes) -> None:
    """A connection id, and an object path."""
    text = text_of(data)
    found = connection_id(f"{ROOT}/{text}")
    assert found is None or object_path(found) == f"{ROOT}/{text}"
    try:
        check_cid(text)
    except InvalidArgumentError as error:
        names(error, "connection_id")
        return
    assert connection_id(object_path(text)) == text


def feed_dbus(data: bytes) -> None:
    """One message of the bus."""
    if len(data) < wire.FIXED:
        return
    with contextlib.suppress(wire.MalformedError):
        start, total = wire.message_size(data, 0)
        assert wire.FIXED <= start <= total
        message = wire.parse(data[:start], data[start:total])
        assert isinstance(message.text(wire.Field.PATH), str)
        message.arguments()


def feed_ctl(data: bytes) -> None:
    """ARGUMENT FIELD ARGUMENT ...: the command line of storaged-connctl."""
    argv = text_of(data.replace(b"\0", b"")).split(FIELD)
    with contextlib.suppress(SystemExit, Failure), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            found = arguments.parse(argv)
        assert not said.getvalue()
        for text in (found.cid, found.uri, found.state):
            assert screen.escape(text.encode().decode()).isprintable()
        for signature, value in options.typed(found.options, world().signatures).values():
            wire.marshal(signature, [value])


# what servers say


def feed_rpc(data: bytes) -> None:
    """A reply, and in it a list of exports, or the address of a service."""
    for what in (Procedure(100005, 3, 5), Procedure(100000, 3, 3)):
        with contextlib.suppress(AttemptError):
            results = _results(SERVER, what, 0, Reader(data))
            if what.number == 3:
                _port_of(results.opaque().decode(errors="replace"))
                continue
            for export in _read_exports(results):
                uri = Remote(SERVER, export.path).uri
                assert read_uri(uri).path == export.path
                assert read_uri(uri).server == SERVER
                assert all(map(str.isprintable, export.clients))


# what the kernel and its tools say


def feed_mountinfo(data: bytes) -> None:
    """The table of mounts."""
    table = world().table
    world().path.write_bytes(data)
    table.refresh()
    for mount in (table.mounts or {}).values():
        table.at(mount.target)
        for driver in world().mounts:
            driver.present(mount)
    for driver in world().mounts:
        for foreign in driver.foreign():
            assert foreign.uri.isascii()
            assert foreign.present.mountpoint


def feed_words(data: bytes) -> None:
    """STATUS, a byte, and what mount(8) said."""
    status, said = data[:1] or b"\1", data[1:].decode(errors="replace")
    message = str(explain(Result(status[0] or 1, "", said)))
    assert message.isprintable()
    assert 0 < len(message) < 400


# what files have


def feed_config(data: bytes) -> None:
    """A file of the configuration."""
    file = world().directory / "etc/storaged-conn" / NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    config, complaints = load(world().directory)
    assert config.audit >= 0
    assert min(config.keepalive.idle, config.keepalive.interval, config.keepalive.count) >= 1
    assert not any("\n" in one for one in complaints)


def feed_record(data: bytes) -> None:
    """CID FIELD URI FIELD OPTIONS FIELD OWNER FIELD LIFETIME FIELD SCOPE: a row of the store."""
    fields = data.decode(errors="replace").split(FIELD, 5)  # SQLite gives UTF-8 alone
    cid, uri, written, owner, lifetime, scope = (*fields, *("",) * 5)[:6]
    number = int(owner) if owner.isascii() and owner.isdigit() and len(owner) < 19 else 0
    try:
        row = (cid, uri, written, number, lifetime, scope)
        record = store._record(row, store._Secrets(), Path("connections.db"))
    except StoreError:
        return
    wire.entry("Options", "a{sv}", record.shown)
    kept: Any = store._row(record)
    assert store._record(kept, store._Secrets(), Path()) == record
    sealed = store._record(kept, store._Secrets(sealed={"password": data}), Path())
    for one in (record, sealed):
        with contextlib.suppress(RequestError):
            world().manager._read(one)
            assert one is record


def feed_mark(data: bytes) -> None:
    """The file that says which mount is ours."""
    file = world().directory / "mark"
    file.write_bytes(data)
    assert isinstance(marks._read(file), marks.Mark)


@dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        feed: takes any bytes.
        modules: of the package, without its name.
        samples: to begin with.
    """

    feed: Callable[[bytes], None]
    modules: str
    samples: tuple[str | bytes, ...] = ()


_URIS: Final = (
    *("file:///srv/a%20b", "file://localhost/srv", "simulated:x", "simulated://[::1]:1/x"),
    *("posix+ext4:/dev/sdb1", "posix+cifs://server/share", "posix+fuse.sshfs:user@host:dir"),
    *("iscsi://h/iqn.2003-01.org:a;portal=1;lun=2", "iscsi://[::1]:860/eui.02004567A425678D"),
    *("nvme+tcp://[::1]:8009/nqn.2014-08.org.a:b", "nvme+rdma://h/nqn.2014-08.org.a"),
    "nvme+fc://nn-0x2000001000000001:pn-0x1000001000000001/nqn.2014-08.org.a",
    *("nfs://host/x", "nfs://[2001:db8::1]:20490/x", "nfs://host:/x", "nfs://host:x"),
)
_NFS: Final = "nfs://host/x"
_ISCSI: Final = "iscsi://h/iqn.2003-01.org:a"
_NVME: Final = "nvme+tcp://h/nqn.2014-08.org.a"
_MANAGE: Final = (
    *_URIS,
    *(f"{uri}{FIELD}mountpoint=/srv/root/x{FIELD}read-only=1" for uri in _URIS),
    *(f"{uri}{FIELD}mount-options=noatime{ITEM}uid=0{FIELD}lifetime=runtime" for uri in _URIS),
    *(f"{_NFS}{FIELD}{one}" for one in ("soft=1", "version=4.2", "sec=krb5", "timeo=1")),
    *(f"{_NFS}{FIELD}{one}" for one in ("port=1", "nconnect=2", "stale=never", "retrans=1")),
    *(f"{uri}{text}" for uri in ("nfs://host/", "posix+cifs:", "file:") for text in INJECTIONS),
    *(f"iscsi://h/iqn.2003-01.org:{text}" for text in INJECTIONS),
    *(f"{_ISCSI}{FIELD}{one}" for one in ("interface=../x", "header-digest=crc32c", "luns=1")),
    *(f"nvme+tcp://h/nqn.2014-08.org.{text}" for text in INJECTIONS),
    *(f"{_NVME}{FIELD}{one}" for one in ("host-nqn=nqn.2014-08.org.b,tls", "host-traddr=::1")),
    *(f"{_NVME}{FIELD}{one}" for one in ("dhchap-secret=DHHC-1:00:x:", "host-iface=eth0,tls")),
    f"simulated:x{FIELD}password=secret{FIELD}fail-with=Busy{FIELD}latency-ms=1",
)
_ROW: Final = FIELD.join(
    ["x", "nfs://host/x", json.dumps({"soft": True, "mount-options": ["rsize=1"]}), "0"]
)
_EXPORTS: Final = bytes(4) + bytes([0, 0, 0, 1]) + bytes(16) + bytes([0, 0, 0, 1, 0, 0, 0, 2])
_ARGV: Final = (
    *("list --json", "show x", "manage nfs://host/x x --wait -o soft=true -o timeo=1"),
    *("wait x connected --timeout 1", "manage file:///x y --secret password=-", "--help"),
)

PARSERS: Final[dict[str, Parser]] = {
    "manage": Parser(
        feed_manage,
        "core.model manager drivers.file drivers.flags drivers.nfs_options drivers.nfs_remote"
        " drivers.paths drivers.posix drivers.server drivers.simulated bus.systemd system.sentinel"
        " drivers.iscsi_options drivers.nvme_options drivers.nvme_remote",
        _MANAGE,
    ),
    "cid": Parser(feed_cid, "names", ("x", "_20x", "_", "\u00fc.1", *INJECTIONS.values())),
    "dbus": Parser(feed_dbus, "bus.wire", netlink.MESSAGES),
    "ctl": Parser(
        feed_ctl, "ctl.arguments ctl.options", tuple(map(FIELD.join, map(str.split, _ARGV)))
    ),
    "rpc": Parser(feed_rpc, "system.rpc drivers.nfs_server", (_EXPORTS + b"/x\0\0" + bytes(8),)),
    "mountinfo": Parser(
        feed_mountinfo, "system.mountinfo", ((DATA / "mountinfo-6.18").read_bytes(),)
    ),
    "words": Parser(feed_words, "system.mounting", tuple(map(Path.read_bytes, DATA.glob("*-2.*")))),
    "routes": Parser(netlink.feed_routes, "sources.routes", netlink.ROUTES),
    "iscsi": Parser(netlink.feed_iscsi, "sources.iscsi", netlink.SESSIONS),
    "iscsi-login": Parser(iscsi.feed_answers, "system.iscsi_pdu system.iscsi_login", iscsi.ANSWERS),
    "iscsi-nodes": Parser(iscsi.feed_records, "system.iscsi_nodes", iscsi.RECORDS),
    "iscsiadm": Parser(iscsi.feed_iscsiadm, "system.iscsiadm", ("\x18iscsiadm: no\n",)),
    "iscsi-sessions": Parser(iscsi.feed_sessions, "system.iscsi", iscsi.SESSIONS),
    "nvme-answers": Parser(nvme.feed_answers, "system.nvme_tcp", nvme.ANSWERS),
    "nvme-controllers": Parser(nvme.feed_controllers, "system.nvme", nvme.CONTROLLERS),
    "nvme-files": Parser(
        nvme.feed_files,
        "drivers.nvme_exclusions drivers.nvme_host drivers.nvme_registry",
        nvme.FILES,
    ),
    "uevents": Parser(netlink.feed_uevents, "sources.uevents", netlink.DEVICES),
    "config": Parser(
        feed_config,
        "config",
        ("[Audit]\nIntervalSec=15min\n[Keepalive]\nIdleSec=1", "[Secrets]\nEncrypt=yes"),
    ),
    "record": Parser(feed_record, "store", (f"{_ROW}{FIELD}persistent{FIELD}",)),
    "mark": Parser(feed_mark, "drivers.marks", ('[1, "/x", "0:1", "nfs", "h:/x", "/"]', "")),
}


def samples(name: str) -> list[bytes]:
    """Give what to begin with: samples, and what was found before."""
    given = [one if isinstance(one, bytes) else _raw(one) for one in PARSERS[name].samples]
    return [*given, *(path.read_bytes() for path in sorted((DATA / "fuzz" / name).glob("*")))]


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
