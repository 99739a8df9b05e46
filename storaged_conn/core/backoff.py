# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long to wait, and how often an event may start an attempt."""

from dataclasses import dataclass
from typing import Final

FIRST_WAIT: Final = 1.0
"""Seconds after the first failure. Source: nvme-stas 3af7506 waits 3 s, NVMe's own default is 10 s;
users ask for less than 2 s after a return (needs 22), and one attempt a second hurts no server."""

LONGEST_WAIT: Final = 60.0
"""Seconds at most. Source: nvme-stas retries every 60 s for ever; events cut the wait short."""

REFUSED_WAIT: Final = 600.0
"""Seconds after an answer that would come again, and at most where a server may have only begun.
Source: account lock-outs, and clusters with 14 300 failed logins an hour (needs 20 and 39)."""

BURST: Final = 60
"""Attempts that events may start at once: an administrator's loop that unmounts 50 times in a few
seconds is served each time."""

REFILL: Final = 1.0
"""Attempts a second that flapping is held to once the burst is spent; the same as FIRST_WAIT."""


def wait_seconds(failures: int, jitter: float, longest: float = LONGEST_WAIT) -> float:
    """Space out attempts so that a dead server is not hammered.

    Args:
        failures: attempts failed in a row, from 1.
        jitter: 0 to 1, drawn by the caller, so that the core stays pure.
        longest: seconds at most.

    Returns:
        Seconds: FIRST_WAIT doubled with each failure up to the longest, of which between a half and
        the whole is taken ("equal jitter"), so that many connections do not return in step.
    """
    doublings = min(failures - 1, 10)  # 2**10 is past REFUSED_WAIT already
    return spread(min(FIRST_WAIT * 2**doublings, longest), jitter)


def spread(seconds: float, jitter: float) -> float:
    """Take between a half and the whole of some seconds."""
    return seconds * (0.5 + jitter / 2)


@dataclass(slots=True)
class Allowance:
    """A token bucket: what keeps flapping from becoming a storm of attempts."""

    tokens: float = BURST
    since: float = 0.0

    def take(self, now: float) -> float:
        """Take one token.

        Returns:
            0 when there was one, else the seconds until there will be one (and takes none).
        """
        self.tokens = min(BURST, self.tokens + (now - self.since) * REFILL)
        self.since = now
        if self.tokens < 1:
            return (1 - self.tokens) / REFILL
        self.tokens -= 1
        return 0.0

    def spend(self, now: float) -> None:
        """Count an attempt that nothing may hold back; a token that is missing is not owed."""
        if self.take(now):
            self.tokens = 0.0
