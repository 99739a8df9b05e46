# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real service asks NVMe subsystems over TCP; what it connects is in the guest."""

from pathlib import Path

from tests.caller import given, serving
from tests.nvme import NQN
from tests.nvme_target import Subsystem
from tests.nvme_target import serving as offering
from tests.system.test_nvme_tcp import discovery, entry, log


async def test_what_there_is_is_told(tmp_path: Path) -> None:
    other = entry(1, 3, "nqn.2014-08.org.nvmexpress.discovery", "10.0.0.2", "8009")
    subsystem = Subsystem(discovery(log(entry(2, 3, NQN, "10.0.0.1", "4420"), other)))
    async with serving(tmp_path) as service, offering(subsystem) as server:
        (found,) = await service.caller.call("Discover", "sa{sv}", f"nvme+tcp://{server.text}", {})
    assert {one["uri"]: one["kind"] for one in found} == {
        f"nvme+tcp://10.0.0.1/{NQN}": "subsystem",
        "nvme+tcp://10.0.0.2:8009": "referral",
    }


async def test_what_would_be_refused_is_told_apart(tmp_path: Path) -> None:
    answers = iter([(0x182, 1 << 16 | 256), (0x184, 1 << 16 | 512), (0, 1 | 1 << 17)])
    subsystem = Subsystem(lambda command, data: (*next(answers), b""))
    reasons = []
    async with serving(tmp_path) as service, offering(subsystem) as server:
        for _ in range(3):
            uri = f"nvme+tcp://{server.text}/{NQN}"
            (found,) = await service.caller.call("Validate", "sa{sv}", uri, given({}))
            reasons.append(found["reason"])
    assert reasons == ["not-offered", "access-denied", "authentication"]
