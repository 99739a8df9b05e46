# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m tests.bench [NAME...]: runs the benchmarks, all or those named, and prints tables.

Times are never a failure: the exit status is not 0 only where something broke.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tests.bench import fairness, latency, network, scale, storms, umount

BENCHMARKS: Final[Mapping[str, Callable[[], Awaitable[None]]]] = {
    "fairness": fairness.main,
    "latency": latency.main,
    "network": network.main,
    "scale": scale.main,
    "storms": storms.main,
    "umount": umount.main,
}


async def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser("python -m tests.bench", description="Runs the benchmarks.")
    parser.add_argument("name", nargs="*", help=f"one of {', '.join(BENCHMARKS)}; default: all")
    names = parser.parse_args().name or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}")
    for name in names:
        await BENCHMARKS[name]()


if __name__ == "__main__":
    asyncio.run(main())
