# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd-creds(1) itself, with a key of the test's own."""

from pathlib import Path

import pytest

from storaged_conn.core.secret import MAX_SECRET_BYTES, Secret
from storaged_conn.errors import TroubleError, UnusableError
from storaged_conn.system import creds
from storaged_conn.system.creds import decrypt, encrypt
from tests.hostkey import host_key

SECRETS = (b"a password", b"\0\xff any byte\n", b"x" * MAX_SECRET_BYTES)


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return host_key(tmp_path / "key", monkeypatch)


@pytest.mark.parametrize("value", SECRETS)
async def test_what_is_encrypted_is_decrypted_and_shows_nothing(value: bytes) -> None:
    sealed = await encrypt("password", Secret(value))
    assert value not in sealed
    assert sealed != await encrypt("password", Secret(value))
    assert await decrypt("password", sealed) == Secret(value)


async def test_it_is_for_one_option_alone() -> None:
    sealed = await encrypt("password", Secret(b"x"))
    with pytest.raises(TroubleError, match=r"systemd-creds: .*name"):
        await decrypt("password-in", sealed)


async def test_another_host_and_none_at_all_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = await encrypt("password", Secret(b"x"))
    host_key(tmp_path / "other", monkeypatch)
    with pytest.raises(TroubleError, match="systemd-creds: Decryption failed"):
        await decrypt("password", sealed)
    (tmp_path / "other").unlink()
    with pytest.raises(TroubleError, match=r"systemd-creds: .*key: No such file"):
        await decrypt("password", sealed)
    monkeypatch.setattr(creds, "PROGRAM", str(tmp_path / "systemd-creds"))
    with pytest.raises(UnusableError, match="install"):
        await decrypt("password", sealed)


@pytest.mark.parametrize("sealed", [b"x", b"no base64 \xff", b"QUJD" * 100])
async def test_what_is_nonsense_is_told(sealed: bytes) -> None:
    with pytest.raises(TroubleError, match="systemd-creds: "):
        await decrypt("password", sealed)


@pytest.mark.parametrize("name", ["", "../x", "a\0b", "x" * 65])
async def test_a_name_that_no_option_has_is_given_to_no_program(name: str) -> None:
    with pytest.raises(TroubleError, match="the name of no secret"):
        await encrypt(name, Secret(b"x"))
