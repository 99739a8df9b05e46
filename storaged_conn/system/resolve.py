# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns a server's name into addresses, in a child that may hang and be killed.

getaddrinfo(3) blocks for as long as a name server keeps silent, and a thread that waits for it
cannot be ended; getent(1) asks exactly the same sources and can.
"""

import ipaddress
from collections.abc import Iterable
from itertools import zip_longest
from typing import Final

from storaged_conn.errors import AttemptError, NameResolutionError
from storaged_conn.system.run import run

DEADLINE: Final = 10.0
"""Seconds. Source: resolv.conf(5): two name servers with the default timeout of 5 s each."""


async def resolve(host: str) -> list[str]:
    """Give a server's addresses in the order in which to try them.

    Args:
        host: a name, or an address, which is given back as it is.

    Raises:
        NameResolutionError: there is no such name, or nobody answers.
    """
    if is_address(host):
        return [str(ipaddress.ip_address(host))]
    try:
        result = await run(["/usr/bin/getent", "ahosts", "--", host], deadline=DEADLINE)
    except AttemptError as error:
        raise NameResolutionError(f"{host}: {error}") from None
    found = dict.fromkeys(line.split()[0] for line in result.stdout.splitlines() if line.split())
    if result.returncode or not found:
        raise NameResolutionError(f"the name {host} cannot be resolved; see DNS and /etc/hosts")
    return interleave(found)


def is_address(host: str) -> bool:
    """Say whether this is an address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def interleave(addresses: Iterable[str]) -> list[str]:
    """Alternate the families, beginning with that of the first address.

    Source: RFC 8305 section 4, so that one broken family does not delay the other.
    """
    known = list(addresses)
    first = [one for one in known if (":" in one) == (":" in known[0])]
    other = [one for one in known if one not in first]
    pairs = zip_longest(first, other)
    return [one for pair in pairs for one in pair if one]
