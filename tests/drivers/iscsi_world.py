# SPDX-License-Identifier: LGPL-2.1-or-later
"""A world for the iSCSI driver: a portal on loopback, an iscsiadm, and the kernel's side of it.

The portal is real as far as the login phase goes. iscsiadm is a program that makes what it would
have the kernel make: directories like those in /sys.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from storaged_conn.core.model import Given, Target, read_options
from storaged_conn.drivers.iscsi import IscsiDriver
from storaged_conn.drivers.iscsi_recovery import Recovery
from storaged_conn.drivers.iscsi_view import SessionView
from storaged_conn.system.iscsi import Sessions
from storaged_conn.system.iscsi_nodes import Nodes
from storaged_conn.system.iscsiadm import Iscsiadm
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.servers import Spawn
from tests.drivers.nfs_world import ROOT, FakeServers
from tests.iscsi_target import Portal

IQN: Final = "iqn.2003-01.org:disk"

NONE: Final[Mapping[str, Given]] = MappingProxyType({})

PROGRAM: Final = """\
#!/bin/sh
set -eu
cd {ground}
printf '%s\\n' "$*" >>argv
env >>environ
case "$*" in
*"-m iface"*)
    echo "iSCSI DEBUG: Got 0 iface from {ground}/etc/ifaces folder   # iface.c"
    exit 0 ;;
*--logout*)
    if [ -e logout ]; then exit "$(cat logout)"; fi
    while [ "$1" != -r ]; do shift; done
    [ -e "sys/class/iscsi_session/session$2" ] || exit 21
    rm -r "sys/class/iscsi_session/session$2"
    exit 0 ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
    -T) iqn=$2 ;;
    -p) portal=$2 ;;
    -I) iface=$2 ;;
    esac
    shift
done
record=etc/nodes/$iqn/$(echo "$portal" | tr ':' ',')/$iface
cp "$record" seen
if [ -e login ]; then echo "iscsiadm: it was said" >&2; exit "$(cat login)"; fi
IFS=:, read -r address port group <<END
$portal
END
if [ -e group ] && [ "$(cat group)" != "$group" ]; then exit 19; fi
for one in sys/class/iscsi_session/*; do
    if [ -e "$one" ]; then
        [ "$(cat "$one/targetname")" != "$iqn" ] || exit 15
    fi
done
number=$(($(cat number) + 1))
echo $number >number
{make}
"""

MAKE: Final = """\
session=sys/class/iscsi_session/session$number
connection=sys/class/iscsi_connection/connection$number:0
mkdir -p $session $connection
echo $iqn >$session/targetname
echo $group >$session/tpgt
echo $iface >$session/ifacename
echo $(cat state) >$session/state
echo $address >$connection/persistent_address
echo $port >$connection/persistent_port
for lun in $(cat luns); do
    disk=$session/device/target$number:0:0/$number:0:0:$lun
    mkdir -p $disk/block/sd$number$lun
    echo 0 >$disk/type
    echo 8:$number$lun >$disk/block/sd$number$lun/dev
    echo "S:disk/by-path/ip-$portal-iscsi-$iqn-lun-$lun" >udev/b8:$number$lun
done
"""


class World:
    """All of it."""

    def __init__(self, ground: Path, portal: Portal, spawn: Spawn) -> None:
        self.ground = ground
        self.portal = portal
        self._spawn = spawn
        for name in ("sys/class", "udev", "etc/ifaces", "locks"):
            (ground / name).mkdir(parents=True)
        self.write("number", "0")
        self.write("luns", "1")
        self.write("state", "LOGGED_IN")
        self.write("etc/initiatorname.iscsi", "InitiatorName=iqn.1993-08.org.debian:01:abc")
        self.write("etc/iscsid.conf", "node.startup = automatic\nnode.session.cmds_max = 64")
        self.write("table", ROOT)
        program = ground / "iscsiadm"
        program.write_text(PROGRAM.format(ground=ground, make=MAKE))
        program.chmod(0o755)
        self.servers = FakeServers()
        self.driver = self.start()

    def start(self) -> IscsiDriver:
        """Start the driver, as after a restart."""
        iscsiadm = Iscsiadm(str(self.ground / "iscsiadm"))
        nodes = Nodes(iscsiadm, config=self.ground / "etc", locks=self.ground / "locks")
        self.sessions = Sessions(self.ground / "sys", self.ground / "udev")
        self.table = MountTable(self.ground / "table")
        self.table.refresh()
        self.recovery = Recovery(self.servers, self._spawn)
        view = SessionView(self.sessions, nodes, self.table)
        self.driver = IscsiDriver(view, iscsiadm, nodes, self.servers, self.recovery)
        return self.driver

    def write(self, name: str, text: str) -> None:
        """Write what the world is like."""
        path = self.ground / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def target(
        self,
        rest: str = "",
        given: Mapping[str, Given] = NONE,
        host: str = "",
        *,
        trusted: bool = True,
    ) -> Target:
        """Make a target at the portal, which root wants."""
        values = read_options(given, self.driver.options, "iscsi")
        return replace(self.driver.parse(self.uri(rest, host), values), trusted=trusted)

    def uri(self, rest: str = "", host: str = "") -> str:
        address = self.portal.address._replace(host=host or self.portal.address.host)
        return f"iscsi://{address.text}/{IQN}{rest}"

    def argv(self) -> list[str]:
        """Give what iscsiadm was asked to do, without that for its database."""
        lines = (self.ground / "argv").read_text().splitlines() if self.was_asked() else []
        return [line for line in lines if "-m iface" not in line]

    def was_asked(self) -> bool:
        return (self.ground / "argv").exists()

    def records(self) -> list[str]:
        """Give the node records that there are."""
        nodes = self.ground / "etc/nodes"
        return sorted(str(path.relative_to(nodes)) for path in nodes.rglob("*") if path.is_file())

    def record(self) -> dict[str, str]:
        """Read the record that the last login has seen."""
        lines = (self.ground / "seen").read_text().splitlines()
        return dict(line.split(" = ", 1) for line in lines if not line.startswith("#"))

    def session(self, number: int = 1) -> Path:
        return self.ground / f"sys/class/iscsi_session/session{number}"

    def numbers(self) -> list[str]:
        sessions = self.ground / "sys/class/iscsi_session"
        return sorted(path.name for path in sessions.iterdir()) if sessions.exists() else []

    def make_session(self, number: int = 1, *, luns: str = "1") -> None:
        """Make a session as somebody else would."""
        host, port = self.portal.address
        self.write(f"sys/class/iscsi_session/session{number}/targetname", IQN)
        for name, value in (("tpgt", "1"), ("ifacename", "default"), ("state", "LOGGED_IN")):
            self.write(f"sys/class/iscsi_session/session{number}/{name}", value)
        for name, value in (("persistent_address", host), ("persistent_port", str(port))):
            self.write(f"sys/class/iscsi_connection/connection{number}:0/{name}", value)
        for lun in luns.split():
            self.make_disk(number, lun)

    def make_disk(self, number: int, lun: str, *, udev: bool = True) -> None:
        disk = f"{self.session(number)}/device/target{number}:0:0/{number}:0:0:{lun}"
        self.write(f"{disk}/type", "0")
        self.write(f"{disk}/block/sd{number}{lun}/dev", f"8:{number}{lun}")
        if udev:
            self.write(f"udev/b8:{number}{lun}", f"S:disk/by-path/lun-{lun}\nS:disk/by-uuid/x")

    def end_session(self, number: int = 1) -> None:
        shutil.rmtree(self.session(number))

    def fail(self, number: int = 1, state: str = "FAILED") -> None:
        self.write(f"sys/class/iscsi_session/session{number}/state", state)

    def mount(self, device: str) -> None:
        self.write("table", f"{ROOT}\n50 1 {device} / /mnt/x rw - ext4 /dev/sd rw")
        self.table.refresh()

    def unmount(self) -> None:
        self.write("table", ROOT)
        self.table.refresh()


def secret(value: bytes) -> Given:
    return "ay", value


def text(value: str) -> Given:
    return "s", value
