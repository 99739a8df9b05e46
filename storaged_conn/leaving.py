# SPDX-License-Identifier: LGPL-2.1-or-later
"""What nobody wants any more and the kernel may still have, so that no crash forgets to end it.

When an id is unmanaged, a note takes its record's place in the store, in one transaction: what is
to end. It goes when that has ended, or somebody wants it again; the notes that a start finds are
taken up then. A note is a record with an id that no client can have.
"""

import logging
from typing import Final, Protocol
from uuid import uuid4

from storaged_conn.core.model import Record, Target
from storaged_conn.errors import StoreError
from storaged_conn.runner import Spawn

logger = logging.getLogger(__name__)

PREFIX: Final = "leaving/"
"""How the ids of notes begin; those of clients have no slash."""


class Records(Protocol):
    """Where records become durable; each method raises StoreError where that cannot be."""

    async def add(self, record: Record) -> None:
        """Return when it is durable."""

    async def remove(self, cid: str) -> None:
        """Return when it is durably gone."""

    async def replace(self, cid: str, record: Record) -> None:
        """Return when a record has durably taken the place of another."""


def is_note(record: Record) -> bool:
    """Say whether this is what is to end, and not what is managed."""
    return record.cid.startswith(PREFIX)


async def retire(records: Records, record: Record) -> Record:
    """Make a note of a record, without secrets; returns it when that is durable.

    Raises:
        StoreError: nothing was changed.
    """
    note = Record(f"{PREFIX}{uuid4().hex}", record.uri, record.shown, record.owner)
    await records.replace(record.cid, note)
    return note


class Leaving:
    """The notes, by what they are about."""

    def __init__(self, records: Records, spawn: Spawn) -> None:
        """There are none yet."""
        self._records = records
        self._spawn = spawn
        self._notes: dict[Target, list[str]] = {}

    def add(self, note: Record, target: Target) -> None:
        """Keep a note until `settle`."""
        self._notes.setdefault(target, []).append(note.cid)

    def settle(self, target: Target) -> None:
        """Forget all notes about what has ended, or is wanted again."""
        for cid in self._notes.pop(target, ()):
            self._spawn(self._remove(cid))

    async def _remove(self, cid: str) -> None:
        try:
            await self._records.remove(cid)
        except StoreError as error:  # the next start finds that there is nothing to do
            logger.warning("%s", error)
