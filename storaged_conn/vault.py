# SPDX-License-Identifier: LGPL-2.1-or-later
"""The records as they are kept: with their secrets encrypted, where the administrator wants that.

What cannot be decrypted stays as it is: the host may get its key back.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from storaged_conn.core.model import Record
from storaged_conn.errors import AttemptError, StoreError
from storaged_conn.store import Store
from storaged_conn.system.creds import decrypt, encrypt

logger = logging.getLogger(__name__)


class Vault:
    """See leaving.Records."""

    def __init__(self, store: Store, *, encrypts: bool) -> None:
        """Keep records in a store.

        Args:
            store: opened.
            encrypts: secrets that come from now on; those there may be either way.
        """
        self._store = store
        self._encrypts = encrypts

    async def read(self, records: Sequence[Record]) -> list[Record]:
        """Decrypt what the store has, and encrypt what it has not encrypted, if that is wanted.

        Returns:
            All of them in their order; what cannot be decrypted is still `sealed`.
        """
        found = await asyncio.gather(*map(self._open, records))
        for stored, record in zip(records, found, strict=True):
            if self._encrypts and stored.secrets:
                try:
                    await self.add(record)
                except StoreError as error:
                    logger.warning("%r: %s; they are kept as they were", record.cid, error)
        return found

    async def add(self, record: Record) -> None:
        """See leaving.Records."""
        await self._store.add(await self._seal(record))

    async def replace(self, cid: str, record: Record) -> None:
        """See leaving.Records."""
        await self._store.replace(cid, await self._seal(record))

    async def remove(self, cid: str) -> None:
        """See leaving.Records."""
        await self._store.remove(cid)

    async def _open(self, record: Record) -> Record:
        try:
            found = {name: await decrypt(name, one) for name, one in record.sealed.items()}
        except AttemptError as error:
            logger.warning("%r: its secrets cannot be decrypted: %s", record.cid, error)
            return record
        return replace(record, options={**record.options, **found}, sealed={}) if found else record

    async def _seal(self, record: Record) -> Record:
        """Encrypt a record's secrets.

        Raises:
            StoreError: this host cannot.
        """
        if not self._encrypts or not record.secrets:
            return record
        try:
            sealed = {name: await encrypt(name, one) for name, one in record.secrets.items()}
        except AttemptError as error:
            text = (
                f"the secrets cannot be encrypted: {error}; see Encrypt= in storaged-conn.conf(5)"
            )
            raise StoreError(text) from None
        return replace(record, options=record.shown, sealed={**record.sealed, **sealed})
