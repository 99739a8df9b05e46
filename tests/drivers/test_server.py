# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.drivers.server import read_server
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.sentinel import Address

LONGEST = ".".join(["a" * 50] * 5)

READ = {
    "host:1": ("host", 1),
    "HOST.Example.ORG.:65535": ("host.example.org", 65535),
    "my_nas-2:2049": ("my_nas-2", 2049),
    "192.0.2.1:080": ("192.0.2.1", 80),
    "[::1]:80": ("::1", 80),
    "[2001:DB8:0::0:1]:80": ("2001:db8::1", 80),
    f"{LONGEST}:1": (LONGEST, 1),
}


@pytest.mark.parametrize(("authority", "expected"), READ.items())
def test_the_same_server_is_the_same_in_every_spelling(
    authority: str, expected: tuple[str, int]
) -> None:
    assert read_server(f"x://{authority}/rest:1") == Address(*expected)


BAD_HOSTS = ["", "-x", "x-", "a b", ".", "..", "a/b", "ä", "%41", "*", "$(id)", "a,b", "a@b", "a?b"]
BAD_HOSTS += ["::1", "[]", "[::1", "::1]", "[::g]", "[1.2.3.4]", "[::1]x", "x[::1]", "[fe80::1%lo]"]
BAD_HOSTS += ["[[::1]]", "a#b", "a\\b", f"{LONGEST}.x"]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^uri: .* is no |^uri: the port is missing"):
        read_server(f"x://{host}:80/")


@pytest.mark.parametrize("port", ["0", "70000", "65536", "00000"])
def test_a_port_that_there_cannot_be_is_refused(port: str) -> None:
    for default in (None, 2049):
        with pytest.raises(InvalidArgumentError, match="the port must be from 1 to 65535"):
            read_server(f"x://host:{port}/", default)


@pytest.mark.parametrize("port", ["x", "-1", "+1", " 1", "1 ", "٣", "1:2", "1?q", "100000"])
def test_what_is_no_port_is_refused(port: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is no server; write HOST:PORT"):
        read_server(f"x://host:{port}/")


@pytest.mark.parametrize("authority", ["host", "host:"])
def test_a_missing_port_is_the_default_or_is_asked_for(authority: str) -> None:
    assert read_server(f"x://{authority}/", 2049) == Address("host", 2049)
    with pytest.raises(InvalidArgumentError, match="the port is missing"):
        read_server(f"x://{authority}/")


@given(st.text() | st.text(alphabet="ab-._:[]0%@?# "))
def test_any_text_is_read_or_refused_and_what_is_read_reads_the_same_again(text: str) -> None:
    try:
        address = read_server(f"x://{text}/")
    except InvalidArgumentError:
        return
    assert read_server(f"x://{address.text}/") == Address.read(address.text) == address
    assert not address.host.startswith("-")
    assert address.text.isascii()
    assert not set(address.text) & set(" /?#@%")
