# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.model import check_uri
from storaged_conn.drivers.nfs_remote import Remote, read_host, read_mount, read_uri
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.mountinfo import Mount, parse
from storaged_conn.system.sentinel import Address


@pytest.mark.parametrize(
    ("written", "canonical", "source"),
    [
        ("nfs://host/export", "nfs://host/export", "host:/export"),
        ("NFS://Host.Example./export/", "nfs://host.example/export", "host.example:/export"),
        ("nfs://host:/export", "nfs://host/export", "host:/export"),
        ("nfs://host:export", "nfs://host/export", "host:/export"),
        ("nfs://host:export/a", "nfs://host/export/a", "host:/export/a"),
        ("nfs://host:2049/export", "nfs://host/export", "host:/export"),
        ("nfs://host:2050/export", "nfs://host:2050/export", "host:/export"),
        ("nfs://host:2050x/export", "nfs://host/2050x/export", "host:/2050x/export"),
        ("nfs://10.9.0.2//a/./b/../c", "nfs://10.9.0.2/a/c", "10.9.0.2:/a/c"),
        ("nfs://[FD09:0::2]/export", "nfs://[fd09::2]/export", "[fd09::2]:/export"),
        ("nfs://[fd09::2]:/export", "nfs://[fd09::2]/export", "[fd09::2]:/export"),
        ("nfs://[fd09::2]:2050/x", "nfs://[fd09::2]:2050/x", "[fd09::2]:/x"),
        ("nfs://host/with space/é", "nfs://host/with%20space/%C3%A9", "host:/with space/é"),
        ("nfs://host/with%20space/%C3%A9", "nfs://host/with%20space/%C3%A9", "host:/with space/é"),
        ("nfs://host/%ff", "nfs://host/%FF", "host:/\udcff"),
        ("nfs://host/a%3Fb%23", "nfs://host/a%3Fb%23", "host:/a?b#"),
        ("nfs://host/a:b,c@d", "nfs://host/a:b,c@d", "host:/a:b,c@d"),
        ("nfs://host/", "nfs://host/", "host:/"),
    ],
)
def test_every_spelling_is_one_remote(written: str, canonical: str, source: str) -> None:
    remote = read_uri(written)
    assert remote.uri == canonical
    assert remote.source == source
    assert read_uri(canonical) == remote


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("nfs:host:/export", "write it as nfs://HOST/EXPORT"),
        ("nfs:///export", "no host name"),
        ("nfs://host", "the export is missing"),
        ("nfs://host:2049", "the export is missing"),
        ("nfs://-host/x", "no host name"),
        ("nfs://a,b/x", "no host name"),
        ("nfs://host:99999/x", "the port must be"),
        ("nfs://fd09::2/x", "IPv6 as"),
        ("nfs://fd09:0:0:0:0:0:0:2/x", "IPv6 as"),
        ("nfs://[fd09::2/x", "no host name"),
        ("nfs://[fd09::2%25eth0]/x", "no server|IPv6"),
        ("nfs://host/x?version=3", "write '\\?' as %3F"),
        ("nfs://host/x%00", "control character"),
        ("nfs://host/x%0Ay", "control character"),
        ("nfs://host/" + "x" * 256, "a name of more than 255 bytes"),
    ],
)
def test_what_is_no_remote_is_refused(written: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        read_uri(written)


def test_the_port_may_be_an_option_and_must_agree() -> None:
    assert read_uri("nfs://host/x", 2050).server == Address("host", 2050)
    assert read_uri("nfs://host:2050/x", 2050).server == Address("host", 2050)
    with pytest.raises(InvalidArgumentError, match="'port' is 2051, and the uri says 2050"):
        read_uri("nfs://host:2050/x", 2051)


def test_a_server_alone_is_read_for_discovery() -> None:
    assert read_host("nfs://host") == (Address("host", 2049), "")
    assert read_host("nfs://[fd09::2]:2050") == (Address("fd09::2", 2050), "")


@given(st.text(min_size=1))
def test_whatever_is_accepted_is_canonical(rest: str) -> None:
    try:
        remote = read_uri(f"nfs://{rest}")
    except InvalidArgumentError:
        return
    assert check_uri(remote.uri) == "nfs"
    assert remote.uri.isascii()
    assert read_uri(remote.uri) == remote
    assert read_mount(shown(remote.source, remote.server.port)) == remote


def shown(source: str, port: int = 2049, fstype: str = "nfs4") -> Mount:
    """Give a mount as the kernel shows it, with its escapes."""
    raw = source.encode(errors="surrogateescape")
    what = b"".join(b"\\%03o" % byte if byte in b" \\#\t\n" else bytes([byte]) for byte in raw)
    place = b"" if port == 2049 else b",port=%d" % port
    text = b"2 1 0:40 / /x rw - %s %s rw,vers=4.2%s\n"
    (mount,) = parse(text % (fstype.encode(), what, place)).values()
    return mount


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("10.9.0.2:/export", "nfs://10.9.0.2/export"),
        ("[fd09::2]:/exp2/dir with space/é", "nfs://[fd09::2]/exp2/dir%20with%20space/%C3%A9"),
        ("host:/", "nfs://host/"),
    ],
)
def test_what_the_kernel_shows_has_a_uri(source: str, uri: str) -> None:
    remote = read_mount(shown(source))
    assert remote
    assert remote.uri == uri
    assert read_mount(shown(source, fstype="nfs")) == remote


@pytest.mark.parametrize("source", ["host", "host:relative", ":/x", "a b:/x", "host:/a//b"])
def test_what_has_no_uri_is_nobodys(source: str) -> None:
    assert read_mount(shown(source)) is None


def test_other_file_systems_are_not_ours() -> None:
    assert read_mount(shown("host:/x", fstype="ceph")) is None


def test_a_port_that_is_not_the_usual_one_is_shown_by_the_kernel() -> None:
    assert read_mount(shown("host:/x", 2050)) == Remote(Address("host", 2050), "/x")
