# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets that the host encrypts: nothing readable is kept, and nothing is ever lost."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from storaged_conn.core.model import Record
from storaged_conn.core.secret import Secret
from storaged_conn.errors import StoreError
from storaged_conn.system import creds
from storaged_conn.system.run import ENVIRONMENT
from storaged_conn.vault import Vault
from tests.hostkey import host_key
from tests.stores import PLAIN, edit, opened, records

CANARY = b"canary-hunter2"
KNOWN = Record(
    "known", "iscsi://host/iqn", {"username": "me", "password": Secret(CANARY)}, owner=1000
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "connections.db"


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return host_key(tmp_path / "key", monkeypatch)


async def keep(path: Path, *some: Record, encrypts: bool = True) -> None:
    async with opened(path) as store:
        vault = Vault(store, encrypts=encrypts)
        for record in some:
            await vault.add(record)


async def start(path: Path, *, encrypts: bool = True) -> Sequence[Record]:
    """Do what a start of the service does."""
    found = records(path)
    async with opened(path) as store:
        return await Vault(store, encrypts=encrypts).read(found)


def content(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


async def test_what_is_kept_shows_no_secret_and_comes_back(path: Path) -> None:
    await keep(path, PLAIN, KNOWN)
    assert CANARY not in content(path)
    before = records(path)
    assert await start(path) == [KNOWN, PLAIN]
    assert records(path) == before  # it would be other bytes if it were encrypted again
    assert await start(path, encrypts=False) == [KNOWN, PLAIN]


async def test_by_default_nothing_is_encrypted(path: Path) -> None:
    await keep(path, KNOWN, encrypts=False)
    assert CANARY in content(path)
    assert await start(path, encrypts=False) == [KNOWN]


async def test_what_was_there_is_encrypted_at_a_start_and_leaves_no_trace(path: Path) -> None:
    await keep(path, KNOWN, encrypts=False)
    assert await start(path) == [KNOWN]
    assert CANARY not in content(path)
    assert await start(path) == [KNOWN]


async def test_both_kinds_live_side_by_side(path: Path) -> None:
    other = Record("other", "iscsi://host/iqn", {"password": Secret(b"plain")})
    await keep(path, KNOWN)
    await keep(path, other, encrypts=False)
    assert await start(path, encrypts=False) == [KNOWN, other]


async def test_without_its_key_a_record_stays_as_it_is_until_the_key_is_back(
    path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await keep(path, KNOWN)
    before = records(path)
    with monkeypatch.context() as patch:
        patch.setattr(creds, "PROGRAM", "/nonexistent/systemd-creds")
        assert (await start(path))[0].sealed
    host_key(key.with_name("other"), monkeypatch)
    (found,) = await start(path)
    assert found.sealed.keys() == {"password"}
    assert "password" not in found.options
    assert "'known': its secrets cannot be decrypted: systemd-creds: " in caplog.text
    assert records(path) == before
    monkeypatch.setitem(ENVIRONMENT, "SYSTEMD_CREDENTIAL_SECRET", str(key))
    assert await start(path) == [KNOWN]


async def test_what_cannot_be_decrypted_is_kept_beside_what_is_encrypted_now(
    path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(path, KNOWN)
    edit(path, "INSERT INTO secrets (cid, name, value) VALUES ('known', 'password-in', x'3132')")
    host_key(key.with_name("other"), monkeypatch)
    (before,) = records(path)
    await start(path)
    (after,) = records(path)
    assert after.sealed.keys() == {"password", "password-in"}
    assert after.sealed["password"] == before.sealed["password"]


async def test_what_cannot_be_encrypted_is_not_taken_and_what_was_there_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await keep(path, KNOWN, encrypts=False)
    monkeypatch.setattr(creds, "PROGRAM", "/nonexistent/systemd-creds")
    with pytest.raises(StoreError, match=r"cannot be encrypted: .*install"):
        await keep(path, Record("new", "iscsi://host/iqn", {"password": Secret(b"x")}))
    await keep(path, PLAIN)
    assert await start(path) == [KNOWN, PLAIN]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "they are kept as they were" in caplog.text


async def test_a_record_takes_the_place_of_another_and_goes(path: Path) -> None:
    await keep(path, KNOWN)
    async with opened(path) as store:
        vault = Vault(store, encrypts=True)
        await vault.replace("known", KNOWN)
        await vault.remove("known")
    assert records(path) == []
