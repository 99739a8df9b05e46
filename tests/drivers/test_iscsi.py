# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import stat
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import pytest

from storaged_conn.core.model import Absent, Given, Present
from storaged_conn.drivers import iscsi_recovery
from storaged_conn.drivers.iscsi_view import PENDING
from storaged_conn.errors import (
    AttemptError,
    AuthenticationError,
    BusyError,
    InitiatorError,
    InvalidArgumentError,
    MissingError,
    RefusedError,
    UnreachableError,
    UnusableError,
)
from tests import iscsi_target
from tests.conftest import children
from tests.drivers.iscsi_world import IQN, World, secret, text
from tests.iscsi_target import Account
from tests.system.ports import soon

PASSWORD = b"a password of 20 b"
FORCE: dict[str, Given] = {"force": ("b", True)}
CHAP: dict[str, Given] = {"username": text("me"), "password": secret(PASSWORD)}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    tasks: list[asyncio.Task[None]] = []

    def spawn(doing: Coroutine[object, object, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(doing))
        return tasks[-1]

    async with iscsi_target.portal({IQN: None, "": None}) as portal:
        yield World(tmp_path, portal, spawn)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await soon(lambda: not children())
    for _ in range(2):
        await asyncio.sleep(0)  # what they held is closed in the turn after


# coming


async def test_a_session_is_made_and_described(world: World) -> None:
    target = world.target()
    found = await world.driver.connect(target)
    host, port = world.portal.address
    node, link = "/dev/sd11", f"/dev/disk/by-path/ip-{host}:{port},1-iscsi-{IQN}-lun-1"
    assert (found.name, found.ours, found.responsive) == ("iscsi-session-1", True, True)
    assert (found.devices, found.pending) == ((node, link), "")
    assert found.info == {
        "hostname": host,
        "address": host,
        "port": port,
        "portal": 1,
        "iqn": IQN,
        "interface": "default",
        "session": 1,
    }
    assert world.argv() == [f"-m node -T {IQN} -p {host}:{port},1 -I default --login"]
    assert await world.driver.observe(target) == found
    assert await world.driver.connect(target) == found
    assert len(world.argv()) == 1


async def test_the_record_starts_nothing_by_itself_and_retries_nothing(world: World) -> None:
    await world.driver.connect(world.target())
    record = world.record()
    assert record["node.startup"] == record["node.conn[0].startup"] == "manual"
    assert record["node.session.initial_login_retry_max"] == "1"
    assert record["node.session.auth.authmethod"] == "None"
    assert record["node.session.cmds_max"] == "64"  # of iscsid.conf


async def test_the_options_are_in_the_record(world: World) -> None:
    account = Account("me", PASSWORD.decode(), "it", "what it knows")
    world.portal.targets[IQN] = account
    await world.driver.connect(
        world.target(
            given={
                **CHAP,
                "username-in": text("it"),
                "password-in": secret(b"what it knows"),
                "header-digest": text("crc32c"),
                "replacement-timeout": ("x", 20),
                "login-timeout": ("x", 7),
            }
        )
    )
    record = world.record()
    assert record["node.session.auth.authmethod"] == "CHAP"
    assert record["node.session.auth.username"] == "me"
    assert record["node.session.auth.password"] == PASSWORD.decode()
    assert record["node.session.auth.username_in"] == "it"
    assert record["node.session.auth.password_in"] == "what it knows"
    assert record["node.conn[0].iscsi.HeaderDigest"] == "CRC32C"
    assert record["node.session.timeo.replacement_timeout"] == "20"
    assert record["node.conn[0].timeo.login_timeout"] == "7"


async def test_a_secret_is_in_one_file_for_root_alone(world: World) -> None:
    await world.driver.connect(world.target(given=CHAP))
    (world.ground / "seen").unlink()
    holders = [
        path for path in world.ground.rglob("*") if path.is_file() and PASSWORD in path.read_bytes()
    ]
    (record,) = holders
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert world.records() == [str(record.relative_to(world.ground / "etc/nodes"))]
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700


async def test_an_interface_is_copied_from_its_record(world: World) -> None:
    target = world.target(given={"interface": text("eth7")})
    with pytest.raises(UnusableError, match="eth7"):
        await world.driver.connect(target)
    world.write("etc/ifaces/eth7", "# x\niface.iscsi_ifacename = eth7\niface.net_ifacename = eth7")
    await world.driver.connect(target)
    assert world.record()["iface.net_ifacename"] == "eth7"
    assert world.argv()[-1].endswith("-I eth7 --login")


async def test_a_target_that_is_not_there_says_so(world: World) -> None:
    del world.portal.targets[IQN]
    world.write("login", "19")
    with pytest.raises(MissingError):
        await world.driver.connect(world.target())
    assert not world.records()


async def test_the_target_is_asked_only_where_the_login_fails(world: World) -> None:
    await world.driver.connect(world.target())
    assert not world.portal.said


async def test_a_portal_that_is_down_is_not_asked_of_iscsid(world: World) -> None:
    world.servers.go_down(world.portal.address)
    with pytest.raises(UnreachableError):
        await world.driver.connect(world.target())
    assert not world.portal.said


async def test_another_portal_group_is_missing(world: World) -> None:
    world.portal.group = 2
    world.write("group", "2")
    with pytest.raises(MissingError, match="group 2, not 1"):
        await world.driver.connect(world.target(";portal=1"))
    await world.driver.connect(world.target(";portal=2"))
    assert all(",1/" not in record for record in world.records())


async def test_a_portal_group_that_is_not_given_is_that_of_the_portal(world: World) -> None:
    world.portal.group = 2
    world.write("group", "2")
    await world.driver.connect(world.target())
    (record,) = world.records()
    assert ",2/" in record


@pytest.mark.parametrize(
    ("status", "error"), [(24, AuthenticationError), (20, InitiatorError), (8, UnreachableError)]
)
async def test_a_login_that_fails_leaves_no_record(
    world: World, status: int, error: type[AttemptError]
) -> None:
    world.write("login", str(status))
    with pytest.raises(error, match="it was said"):
        await world.driver.connect(world.target(given=CHAP))
    assert not world.records()
    assert list((world.ground / "etc/nodes").iterdir()) == []


async def test_a_refusal_is_explained_by_the_target(world: World) -> None:
    world.portal.targets[IQN] = Account("me", PASSWORD.decode(), "it", "what it knows")
    world.write("login", "19")
    right, wrong = (CHAP | {"password-in": secret(one)} for one in (b"what it knows", b"another"))
    for given, error in ((right, RefusedError), (wrong, AuthenticationError)):
        with pytest.raises(error):
            await world.driver.connect(world.target(given=given))
        assert not world.records()


async def test_a_user_without_a_password_is_not_sent(world: World) -> None:
    with pytest.raises(AuthenticationError):
        await world.driver.connect(world.target(given={"username": text("me")}))
    assert not world.portal.said


# devices


async def test_a_session_without_its_disks_is_pending(world: World) -> None:
    world.write("luns", "")
    target = world.target()
    found = await world.driver.connect(target)
    assert (found.pending, found.devices) == (PENDING, ())
    world.make_disk(1, "3", udev=False)
    observed = await world.driver.observe(target)
    assert isinstance(observed, Present)
    assert observed.pending == PENDING
    world.make_disk(1, "3")
    observed = await world.driver.observe(target)
    assert isinstance(observed, Present)
    assert (observed.pending, observed.devices) == ("", ("/dev/sd13", "/dev/disk/by-path/lun-3"))


async def test_only_the_luns_that_are_asked_for_are_waited_for(world: World) -> None:
    whole, one, two = (
        world.target(),
        world.target(";lun=1"),
        world.target(given={"luns": ("as", ["1", "2"])}),
    )
    await world.driver.connect(whole)
    assert [(await world.driver.connect(each)).pending for each in (whole, one, two)] == [
        "", "", PENDING,
    ]  # fmt: skip
    world.make_disk(1, "2")
    assert [len((await world.driver.connect(each)).devices) for each in (whole, one, two)] == [
        4, 2, 4,
    ]  # fmt: skip


async def test_what_is_no_disk_is_not_waited_for(world: World) -> None:
    target = world.target()
    await world.driver.connect(target)
    world.write(f"{world.session()}/device/target1:0:0/1:0:0:0/type", "12")
    observed = await world.driver.observe(target)
    assert isinstance(observed, Present)
    assert not observed.pending


# what is there


async def test_a_session_of_others_is_adopted_and_left_alone(world: World) -> None:
    world.make_session()
    target = world.target()
    found = await world.driver.connect(target)
    assert not found.ours
    await world.driver.disconnect(target, found)
    assert world.numbers() == ["session1"]
    assert not world.argv()


async def test_somebody_who_was_faster_is_adopted(world: World) -> None:
    world.write("login", "15")
    world.make_session(luns="")
    world.fail(state="FREE")
    target = world.target()
    with pytest.raises(BusyError):
        await world.driver.connect(target)
    assert await world.driver.observe(target) is None
    world.fail(state="LOGGED_IN")
    assert not (await world.driver.connect(target)).ours


async def test_a_session_of_ours_is_known_after_a_restart(world: World) -> None:
    target = world.target(given=CHAP)
    await world.driver.connect(target)
    driver = world.start()
    found = await driver.connect(target)
    assert found.ours
    await driver.disconnect(target, found)
    assert world.numbers() == []
    assert world.records() == []


async def test_a_name_is_known_after_a_restart_where_nobody_resolves_it(world: World) -> None:
    target = world.target(host="target.example")
    first = await world.driver.connect(target)
    assert (first.info["hostname"], first.info["address"]) == ("target.example", "127.0.0.1")
    driver = world.start()
    world.servers.go_down(world.portal.address._replace(host="target.example"))
    assert await driver.connect(target) == first
    driver = world.start()
    await driver.observe(target)
    await driver.disconnect(target, first)
    assert world.numbers() == []


async def test_a_name_that_leads_elsewhere_leaves_no_old_record(world: World) -> None:
    target = world.target(host="target.example")
    await world.driver.connect(target)
    world.end_session()
    old = world.records()
    world.servers.address = "127.0.0.2"
    port = world.portal.address.port
    async with iscsi_target.serving(world.portal.serve, "127.0.0.2", port):
        found = await world.driver.connect(target)
    assert found.info["address"] == "127.0.0.2"
    assert len(world.records()) == 1
    assert world.records() != old
    await world.driver.disconnect(target, found)
    assert not world.records()


async def test_a_record_of_others_is_used_if_it_agrees_and_never_removed(world: World) -> None:
    host, port = world.portal.address
    name = f"etc/nodes/{IQN}/{host},{port},1/default"
    world.write(name, "node.name = x\nnode.session.auth.authmethod = CHAP")
    target = world.target()
    found = await world.driver.connect(target)
    assert not found.ours
    await world.driver.disconnect(target, found)
    assert world.numbers() == ["session1"]
    assert world.records() == [name.removeprefix("etc/nodes/")]


async def test_a_record_of_others_is_never_changed(world: World) -> None:
    host, port = world.portal.address
    name = f"etc/nodes/{IQN}/{host},{port},1/default"
    world.write(name, "node.name = x")
    with pytest.raises(UnusableError, match=r"node\.session\.auth"):
        await world.driver.connect(world.target(given=CHAP))
    assert (world.ground / name).read_text() == "node.name = x\n"
    assert not world.argv()


async def test_all_sessions_are_listed(world: World) -> None:
    assert list(world.driver.foreign()) == []
    world.make_session(7)
    (one,) = world.driver.foreign()
    assert one.uri == world.uri()
    assert one.place in world.driver.topics(world.target())
    assert one.present.name == "iscsi-session-7"
    assert one.present.responsive
    world.fail(7)
    world.sessions.refresh("session7")
    (one,) = world.driver.foreign()
    assert not one.present.responsive
    world.end_session(7)
    assert list(world.driver.foreign()) == []


# sharing


async def test_those_that_differ_in_the_lun_share_a_session(world: World) -> None:
    world.write("luns", "1 2")
    one, two = world.target(";lun=1"), world.target(";lun=2", FORCE)
    first, second = await asyncio.gather(world.driver.connect(one), world.driver.connect(two))
    assert first.name == second.name
    assert len(world.argv()) == 1
    assert [len(each.devices) for each in (first, second)] == [2, 2]
    await world.driver.disconnect(one, first)
    assert world.numbers() == ["session1"]
    await world.driver.disconnect(two, second)
    assert world.numbers() == []
    assert world.records() == []


async def test_one_that_has_lost_the_session_keeps_it_from_nobody(world: World) -> None:
    one, two = world.target(), world.target(";lun=1")
    first = await world.driver.connect(one)
    await world.driver.connect(two)
    world.end_session()
    assert await world.driver.observe(two) == Absent()
    first = await world.driver.connect(one)
    await world.driver.disconnect(one, first)
    assert world.numbers() == []


async def test_a_session_of_ours_is_not_shared_under_another_name(world: World) -> None:
    one, other = world.target(), world.target(host="target.example")
    first = await world.driver.connect(one)
    for _ in range(2):
        with pytest.raises(BusyError, match="another URI"):
            await world.driver.connect(other)
        assert len(world.records()) == 1
    assert await world.driver.observe(other) == Absent()
    await world.driver.disconnect(other, None)
    assert world.numbers() == ["session1"]
    await world.driver.disconnect(one, first)
    assert (world.numbers(), world.records()) == ([], [])
    await world.driver.connect(other)


async def test_after_a_restart_those_that_connect_share_again(world: World) -> None:
    one, two = world.target(), world.target(";lun=1")
    first = await world.driver.connect(one)
    await world.driver.connect(two)
    driver = world.start()
    await asyncio.gather(driver.connect(two), driver.disconnect(one, first))
    assert world.numbers() == ["session1"]


def test_other_options_clash(world: World) -> None:
    driver, plain = world.driver, world.target()
    for rest, given in (
        ("", CHAP),
        (";portal=1", {}),
        ("", {"login-timeout": ("x", 9)}),
    ):
        other = world.target(rest, given)
        assert "same session" in driver.clash(other, plain)
        assert driver.topics(other) & driver.topics(plain) >= {
            one for one in driver.topics(plain) if one.kind == "session"
        }
    for rest, given in ((";lun=1", {}), ("", {"luns": ("as", ["1"]), "force": ("b", True)})):
        assert not driver.clash(world.target(rest, given), plain)
    apart = world.target(given={"interface": text("eth7")})
    assert not {one for one in driver.topics(apart) & driver.topics(plain) if one.kind == "session"}


# going


async def test_a_session_whose_disk_is_in_use_is_kept(world: World) -> None:
    target = world.target()
    found = await world.driver.connect(target)
    world.mount("8:11")
    world.write("sys/class/block/sd11/dev", "8:11")
    with pytest.raises(BusyError, match="/mnt/x is mounted"):
        await world.driver.disconnect(target, found)
    assert world.numbers() == ["session1"]
    forced = world.target(given=FORCE)
    await world.driver.disconnect(forced, found)
    assert world.numbers() == ["session1"], "another still has it"
    world.unmount()
    await world.driver.disconnect(target, found)
    assert world.numbers() == []


async def test_force_pulls_it_away(world: World) -> None:
    target = world.target(given=FORCE)
    found = await world.driver.connect(target)
    world.mount("8:11")
    world.write("sys/class/block/sd11/dev", "8:11")
    await world.driver.disconnect(target, found)
    assert world.numbers() == []


async def test_a_logout_that_fails_keeps_the_record(world: World) -> None:
    target = world.target()
    found = await world.driver.connect(target)
    world.write("logout", "32")
    with pytest.raises(UnreachableError):
        await world.driver.disconnect(target, found)
    assert len(world.records()) == 1
    world.write("logout", "0")
    with pytest.raises(BusyError):
        await world.driver.disconnect(target, found)
    (world.ground / "logout").unlink()
    await world.driver.disconnect(target, found)
    assert (world.numbers(), world.records()) == ([], [])


async def test_what_cannot_be_made_again_leaves_no_record(world: World) -> None:
    target = world.target()
    await world.driver.connect(target)
    world.end_session()
    assert world.records()
    del world.portal.targets[IQN]
    world.write("login", "19")
    with pytest.raises(MissingError):
        await world.driver.connect(target)
    assert not world.records()


async def test_what_is_gone_already_leaves_no_record(world: World) -> None:
    target = world.target()
    found = await world.driver.connect(target)
    world.end_session()
    await world.driver.disconnect(target, found)
    assert not world.records()
    await world.driver.disconnect(target, None)


# failing


async def test_a_failed_session_is_unresponsive_until_it_is_back(world: World) -> None:
    target = world.target()
    await world.driver.connect(target)
    world.fail()
    for found in (await world.driver.observe(target), await world.driver.connect(target)):
        assert isinstance(found, Present)
        assert (found.responsive, found.pending) == (False, "")
    world.fail(state="LOGGED_IN")
    found = await world.driver.observe(target)
    assert isinstance(found, Present)
    assert found.responsive
    assert len(world.argv()) == 1


async def test_a_session_that_does_not_come_back_is_made_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(iscsi_recovery, "PATIENCE", 0.02)
    target = world.target()
    await world.driver.connect(target)
    world.mount("8:11")
    world.write("sys/class/block/sd11/dev", "8:11")
    world.servers.go_down(world.portal.address)
    world.fail()
    await world.driver.observe(target)
    await asyncio.sleep(0.1)  # to see that it is let be: the portal is down
    assert not caplog.records
    world.servers.come_back(world.portal.address)
    await asyncio.sleep(0.1)  # to see that it is let be: it is in use
    assert world.numbers() == ["session1"]
    world.unmount()
    await soon(lambda: not world.numbers())
    assert await world.driver.observe(target) == Absent()
    assert [record.getMessage() for record in caplog.records] == [
        "session1: iscsid has not brought it back in 0.02 s"
    ]
    found = await world.driver.connect(target)
    assert (found.name, found.ours, found.responsive) == ("iscsi-session-2", True, True)


async def test_a_session_of_others_that_does_not_come_back_is_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iscsi_recovery, "PATIENCE", 0.01)
    world.make_session()
    world.fail()
    await world.driver.connect(world.target())
    await asyncio.sleep(0.1)  # to see that it is let be
    assert world.numbers() == ["session1"]


async def test_one_that_comes_back_late_or_cannot_be_ended_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(iscsi_recovery, "PATIENCE", 0.01)
    target = world.target()
    await world.driver.connect(target)
    world.write("logout", "20")
    world.fail()
    await world.driver.observe(target)
    await soon(lambda: len(world.argv()) > 3)
    assert "iscsid does not run" in caplog.text
    world.fail(state="LOGGED_IN")
    found = await world.driver.observe(target)
    assert isinstance(found, Present)
    assert found.responsive
    assert world.numbers() == ["session1"]


# asking


async def test_validation_tells_authentication_from_a_target_that_is_not_there(
    world: World,
) -> None:
    await world.driver.validate(world.target())
    world.portal.targets[IQN] = Account("me", PASSWORD.decode())
    await world.driver.validate(world.target(given=CHAP))
    for options in ({}, CHAP | {"password": secret(b"another")}):
        with pytest.raises(AuthenticationError):
            await world.driver.validate(world.target(given=options))
    del world.portal.targets[IQN]
    with pytest.raises(MissingError):
        await world.driver.validate(world.target())
    assert not world.argv()
    assert not world.records()
    assert world.portal.sessions == world.portal.logouts == 2


HOSTS_OWN = {"authmethod": "CHAP", "username": "me", "password": PASSWORD.decode()}


def set_for_all(world: World) -> None:
    """Have the host's own credentials in iscsid.conf, which the target wants."""
    world.portal.targets[IQN] = Account("me", PASSWORD.decode(), "it", "known")
    lines = [f"node.session.auth.{key} = {value}" for key, value in HOSTS_OWN.items()]
    world.write("etc/iscsid.conf", "\n".join(lines))


async def test_validation_takes_what_the_administrator_has_set_for_all(world: World) -> None:
    set_for_all(world)
    await world.driver.validate(world.target())
    await world.driver.connect(world.target())
    assert world.record()["node.session.auth.password"] == PASSWORD.decode()


async def test_nobody_but_root_has_the_host_prove_what_it_knows(world: World) -> None:
    """Else who may manage could have it do so to a portal of his own."""
    set_for_all(world)
    target = world.target(trusted=False)
    with pytest.raises(AuthenticationError):
        await world.driver.validate(target)
    assert not any("CHAP_N" in said for said in world.portal.said)
    world.portal.targets[IQN] = None
    await world.driver.connect(target)
    told = {key for key in world.record() if key.startswith("node.session.auth.")}
    assert told == {"node.session.auth.authmethod"}
    assert world.record()["node.session.auth.authmethod"] == "None"


async def test_his_own_credentials_are_used_and_nothing_is_added_to_them(world: World) -> None:
    set_for_all(world)
    target = world.target(given=CHAP, trusted=False)
    await world.driver.validate(target)
    await world.driver.connect(target)
    assert world.record()["node.session.auth.authmethod"] == "CHAP"
    assert "node.session.auth.password_in" not in world.record()


async def test_nobody_but_root_uses_the_credentials_of_somebody_elses_record(world: World) -> None:
    host, port = world.portal.address
    name = f"etc/nodes/{IQN}/{host},{port},1/default"
    world.write(name, "node.name = x\nnode.session.auth.authmethod = CHAP")
    with pytest.raises(UnusableError, match="authmethod"):
        await world.driver.connect(world.target(trusted=False))
    await world.driver.connect(world.target())


async def test_only_root_discovers_with_the_hosts_own_credentials(world: World) -> None:
    set_for_all(world)
    world.portal.targets[""] = world.portal.targets[IQN]
    host, port = world.portal.address
    uri = f"iscsi://{host}:{port}"
    with pytest.raises(AuthenticationError):
        await world.driver.discover(uri, {})
    assert await world.driver.discover(uri, {}, trusted=True)


async def test_discovery_gives_what_manage_takes(world: World) -> None:
    host, port = world.portal.address
    (found,) = await world.driver.discover(f"iscsi://{host}:{port}", {})
    assert found == {"uri": world.uri(), "iqn": IQN, "hostname": host, "port": port, "portal": 1}
    assert world.driver.parse(str(found["uri"]), {}) == world.target()
    with pytest.raises(InvalidArgumentError):
        await world.driver.discover(world.uri(), {})
    assert not world.argv()


async def test_a_host_without_a_name_is_told(world: World) -> None:
    (world.ground / "etc/initiatorname.iscsi").unlink()
    with pytest.raises(UnusableError, match="initiator name"):
        await world.driver.connect(world.target())


async def test_a_host_without_open_iscsi_is_told(world: World) -> None:
    (world.ground / "iscsiadm").unlink()
    with pytest.raises(UnusableError, match="install"):
        await world.driver.connect(world.target())
    assert await world.driver.observe(world.target()) == Absent()
