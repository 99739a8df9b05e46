# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.model import Target, Value, read_options
from storaged_conn.drivers.nfs_options import (
    FLAGS,
    OPTIONS,
    describe,
    error_after_ms,
    mount_flags,
    read_own,
)
from storaged_conn.drivers.nfs_remote import read_uri
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.mountinfo import parse

REMOTE = read_uri("nfs://host/x")

# As Linux 6.1 shows mounts that nfs-utils 2.6.2 made.
SHOWN = {
    "4.2": "rw,vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,"
    "sec=sys,clientaddr=10.9.0.1,local_lock=none,addr=10.9.0.2",
    "3": "rw,vers=3,rsize=262144,wsize=262144,namlen=255,soft,proto=tcp,nconnect=2,timeo=50,"
    "retrans=2,sec=sys,mountaddr=10.9.0.2,mountvers=3,mountport=42002,mountproto=udp,"
    "local_lock=none,addr=10.9.0.2",
    "softerr": "ro,vers=4.2,rsize=262144,wsize=262144,namlen=255,softerr,softreval,proto=tcp6,"
    "timeo=600,retrans=2,sec=sys,clientaddr=fd09::1,local_lock=none,addr=fd09::2",
}


def flags_of(**options: Value) -> tuple[str, ...]:
    own = read_own({name.replace("_", "-"): value for name, value in options.items()})
    return mount_flags(Target(REMOTE.uri, tuple(sorted(own.items()))), REMOTE, "10.9.0.2")


def test_by_default_nothing_is_lost_and_nobody_retries_but_us() -> None:
    assert flags_of() == ("retry=0", "proto=tcp", "port=2049", "hard")


def test_what_is_given_is_handed_on() -> None:
    given = flags_of(
        version="4.1",
        softerr=True,
        timeo=50,
        retrans=0,
        sec="krb5p",
        nconnect=4,
        mount_options=("noatime", "actimeo=3"),
    )
    assert given[3:] == (
        "softerr",
        "vers=4.1",
        "timeo=50",
        "retrans=0",
        "sec=krb5p",
        "nconnect=4",
        "actimeo=3",
        "noatime",
    )


def test_the_family_is_that_in_which_the_server_answers() -> None:
    assert "proto=tcp6" in mount_flags(Target(REMOTE.uri), REMOTE, "fd09::2")


def test_read_only_is_last_but_for_our_own_flags() -> None:
    target = Target(REMOTE.uri, (("read-only", True),))
    assert mount_flags(target, REMOTE, "10.9.0.2")[-1] == "ro"


@pytest.mark.parametrize(
    "options",
    [
        {"version": "auto"},
        {"hard": True},
        {"hard": False, "soft": False},
        {"stale": "remount-if-idle"},
        {"mount-options": ()},
        {"port": 2049},
    ],
)
def test_what_is_the_default_makes_no_difference(options: dict[str, Value]) -> None:
    assert read_own(options) == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "4"}, "'version' must be one of auto, 3, 4.0, 4.1, 4.2, not '4'"),
        ({"version": "4.2,nosharecache"}, "'version' must be one of"),
        ({"sec": "krb5,sys"}, "'sec' must be one of"),
        ({"stale": "often"}, "'stale' must be one of remount-if-idle, always, never"),
        ({"hard": True, "soft": True}, "one of hard, soft and softerr"),
        ({"timeo": 0}, "'timeo' must be from 1 to 6000, not 0"),
        ({"retrans": -1}, "'retrans' must be from 0"),
        ({"nconnect": 17}, "'nconnect' must be from 1 to 16"),
        ({"port": 65536}, "'port' must be from 1 to 65535"),
        ({"mount-options": ("vers=3",)}, "one of ac, "),
        ({"mount-options": ("timeo=5",)}, "give 'timeo' as an option"),
        ({"mount-options": ("ro",)}, "give 'read-only'"),
        ({"mount-options": ("addr=10.0.0.1",)}, "for nfs: one of"),
        ({"mount-options": ("proto=udp",)}, "for nfs: one of"),
        ({"mount-options": ("bg",)}, "for nfs: one of"),
        ({"mount-options": ("suid",)}, "for nfs: one of"),
        ({"mount-options": ("noatime,dev",)}, "malformed"),
        ({"mount-options": ("rsize=4096", "rsize=8192")}, "given twice"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Value], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        read_own(options)


@given(st.text(min_size=1))
def test_no_accepted_flag_smuggles_in_another(flag: str) -> None:
    try:
        own = read_own({"mount-options": (flag,)})
    except InvalidArgumentError:
        return
    assert own == {"mount-options": (flag,)}
    assert flag.partition("=")[0] in FLAGS
    assert not set(flag) & set(", \n\0\\\"'")


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_every_known_flag_is_accepted(flag: str) -> None:
    assert read_own({"mount-options": (flag,)})


def test_all_options_have_types_that_callers_can_send() -> None:
    given = {"b": True, "s": "", "x": 1, "as": ["x"]}
    sent: dict[str, tuple[str, object]] = {
        name: (signature, given[signature]) for name, signature in OPTIONS.items()
    }
    assert read_options(sent, OPTIONS, "nfs").keys() == OPTIONS.keys()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (
            SHOWN["4.2"],
            {
                "version": "4.2",
                "protocol": "tcp",
                "sec": "sys",
                "address": "10.9.0.2",
                "recovery": "hard",
                "timeo": 600,
                "retrans": 2,
                "errorAfterMs": 0,
            },
        ),
        (
            SHOWN["3"],
            {
                "version": "3",
                "protocol": "tcp",
                "sec": "sys",
                "address": "10.9.0.2",
                "recovery": "soft",
                "timeo": 50,
                "retrans": 2,
                "errorAfterMs": 15000,
            },
        ),
        (
            SHOWN["softerr"],
            {
                "version": "4.2",
                "protocol": "tcp6",
                "sec": "sys",
                "address": "fd09::2",
                "recovery": "softerr",
                "timeo": 600,
                "retrans": 2,
                "errorAfterMs": 180000,
            },
        ),
    ],
)
def test_what_the_kernel_made_of_it_is_described(shown: str, expected: dict[str, Value]) -> None:
    (mount,) = parse(f"2 1 0:40 / /x rw - nfs4 host:/x {shown}\n".encode()).values()
    assert describe(mount) == expected


def test_the_kernel_gives_up_after_ten_minutes_at_the_latest() -> None:
    assert error_after_ms(50, 2) == 15_000
    assert error_after_ms(600, 2) == 180_000
    assert error_after_ms(6000, 10) == 600_000
