# SPDX-License-Identifier: LGPL-2.1-or-later
from pathlib import Path

import pytest

from storaged_conn.system.nvme import Controllers
from tests.nvme import HOST, NQN, Kernel

UUID = "/dev/disk/by-id/nvme-uuid.9e66cb56-ae14-4a89-81ee-a9167548d396"


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def names(kernel: Kernel) -> list[str]:
    return [one.name for one in kernel.controllers.all()]


def test_a_host_without_nvme_has_none(tmp_path: Path) -> None:
    assert Controllers(tmp_path).all() == []


def test_a_controller_is_read(kernel: Kernel) -> None:
    kernel.connect("nvme0")
    (one,) = kernel.controllers.all()
    assert (one.name, one.transport, one.nqn, one.host_nqn) == ("nvme0", "tcp", NQN, HOST)
    assert one.address == {"traddr": "10.0.0.1", "trsvcid": "4420", "src_addr": "10.0.0.9"}
    assert kernel.controllers.state(one) == "live"
    assert kernel.controllers.read(one, "kato") == "5"
    assert kernel.controllers.read(one, "nonesuch") == ""


def test_what_is_in_a_slot_or_a_loop_is_left_alone(kernel: Kernel) -> None:
    kernel.connect("nvme0", transport="pcie")
    kernel.connect("nvme1", transport="loop")
    kernel.connect("nvme10")
    kernel.connect("nvme2")
    (kernel.sys / "class/nvme/nvme-fabrics").mkdir()
    assert names(kernel) == ["nvme2", "nvme10"]


@pytest.mark.parametrize("nqn", ["", "(efault)", "(null)"])
def test_one_that_is_only_coming_is_not_there_yet(kernel: Kernel, nqn: str) -> None:
    top = kernel.connect("nvme0", nqn=nqn)
    assert names(kernel) == []
    (top / "subsysnqn").write_text(NQN)
    assert names(kernel) == ["nvme0"]


def test_another_with_the_same_name_is_another(kernel: Kernel) -> None:
    kernel.connect("nvme0")
    (old,) = kernel.controllers.all()
    (kernel.sys / "class/nvme/nvme0").rename(kernel.sys / "gone")
    assert kernel.controllers.state(old) == ""
    assert names(kernel) == []
    kernel.connect("nvme0", nqn="nqn.2014-08.org.example:b")
    (new,) = kernel.controllers.all()
    assert (new.nqn, kernel.controllers.state(old)) == ("nqn.2014-08.org.example:b", "")


def test_a_namespace_of_several_paths_is_one_device(kernel: Kernel) -> None:
    kernel.connect("nvme3")
    kernel.add("nvme3", "nvme0c3n1", "259:1", "/dev/disk/by-id/nvme-Linux_1", UUID)
    (one,) = kernel.controllers.all()
    (namespace,) = kernel.controllers.namespaces(one)
    assert (namespace.name, namespace.device, namespace.ready) == ("nvme0n1", "259:1", True)
    assert namespace.path == UUID


def test_without_multipath_a_controller_has_its_own_devices(kernel: Kernel) -> None:
    kernel.connect("nvme0")
    kernel.add("nvme0", "nvme0n10", "259:2")
    kernel.add("nvme0", "nvme0n2", "259:1")
    (one,) = kernel.controllers.all()
    found = kernel.controllers.namespaces(one)
    assert [namespace.path for namespace in found] == ["/dev/nvme0n2", "/dev/nvme0n10"]


def test_devices_are_in_the_order_of_their_namespace_ids(kernel: Kernel) -> None:
    kernel.connect("nvme0")
    for number, nsid in ((1, 10), (2, 2), (3, 1)):
        kernel.add("nvme0", f"nvme0c0n{number}", f"259:{number}", nsid=nsid)
    (one,) = kernel.controllers.all()
    found = kernel.controllers.namespaces(one)
    assert [namespace.name for namespace in found] == ["nvme0n3", "nvme0n2", "nvme0n1"]


def test_a_namespace_is_ready_when_udev_has_seen_it_or_there_is_none(kernel: Kernel) -> None:
    kernel.connect("nvme0")
    kernel.add("nvme0", "nvme0c0n1", "259:1")
    (kernel.udev / "b259:1").unlink()
    (one,) = kernel.controllers.all()
    assert not kernel.controllers.namespaces(one)[0].ready
    kernel.control.unlink()
    assert kernel.controllers.namespaces(one)[0].ready
