# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets as systemd-creds(1) keeps them: encrypted with a key of this host.

They go in and out by pipes, so that nobody sees them. What is encrypted is bound to the option that
it is for. A secret may be any bytes and the tool's output is read as text, so it goes in as base64.
"""

import re
from base64 import b64decode, b64encode
from typing import Final

from storaged_conn.core.secret import Secret
from storaged_conn.errors import TroubleError
from storaged_conn.system.run import run

PROGRAM: Final = "/usr/bin/systemd-creds"

KEY: Final = "--with-key=host"
"""The key in /var/lib/systemd/credential.secret, made at the first use: a TPM would be one more
device in the sandbox, takes up to a second for each, and may refuse after an upgrade of firmware.
Source: systemd-creds(1)."""

DEADLINE: Final = 30.0
"""Seconds for what takes 5 ms: only a machine that is stuck takes longer."""

_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")
"""What options are called."""


async def encrypt(name: str, secret: Secret) -> bytes:
    """Encrypt a secret; gives text in base64.

    Args:
        name: of the option that it is for.
        secret: the secret.

    Raises:
        AttemptError: this host cannot.
    """
    return (await _ask(["encrypt", KEY], name, b64encode(secret.reveal()))).encode()


async def decrypt(name: str, sealed: bytes) -> Secret:
    """Decrypt what `encrypt` gave.

    Raises:
        AttemptError: this host cannot, or it was encrypted by another, or for something else.
    """
    try:
        return Secret(b64decode(await _ask(["decrypt"], name, sealed), validate=True))
    except ValueError:
        raise TroubleError("systemd-creds: what it decrypts is no secret of ours") from None


async def _ask(verb: list[str], name: str, stdin: bytes) -> str:
    if not _NAME.fullmatch(name):
        raise TroubleError(f"{name!r} is the name of no secret")
    argv = [PROGRAM, *verb, f"--name=storaged-conn.{name}", "-", "-"]
    done = await run(argv, deadline=DEADLINE, stdin=stdin)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise TroubleError(f"systemd-creds: {said[-1]}")
    return done.stdout
