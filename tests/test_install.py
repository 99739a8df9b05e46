# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is installed is whole, and runs away from the source tree."""

import asyncio
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from storaged_conn.names import CONNECTION, INTROSPECTABLE, MANAGER, ROOT, SERVICE, object_path
from tests.caller import calling, serving
from tests.live import DEADLINE, Daemon, private_bus

TOP = Path(__file__).parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("storaged_conn", "completion", "dbus", "polkit", "systemd", "man")

DATA = {
    "dbus/org.storage.Connection.Manager1.xml": "share/dbus-1/interfaces",
    "dbus/org.storage.Connection1.xml": "share/dbus-1/interfaces",
    "dbus/org.storage.Connection.conf": "share/dbus-1/system.d",
    "dbus/org.storage.Connection.service": "share/dbus-1/system-services",
    "systemd/storaged-conn.service": "lib/systemd/system",
    "systemd/90-storaged-conn.preset": "lib/systemd/system-preset",
    "systemd/storaged-conn.catalog": "lib/systemd/catalog",
    "systemd/storaged-conn.conf": "share/doc/storaged-conn/examples",
    "polkit/org.storage.connection.policy": "share/polkit-1/actions",
    "man/storaged-connctl.1": "share/man/man1",
    "man/org.storage.Connection.5": "share/man/man5",
    "man/storaged-conn-iscsi.5": "share/man/man5",
    "man/storaged-conn-nfs.5": "share/man/man5",
    "man/storaged-conn-nvme.5": "share/man/man5",
    "man/storaged-conn.conf.5": "share/man/man5",
    "man/storaged-connd.8": "share/man/man8",
    "completion/storaged-connctl": "share/bash-completion/completions",
}
"""Source: dbus-daemon(1), INTEGRATING SYSTEM SERVICES; systemd.unit(5); systemd.preset(5);
systemd's docs/CATALOG.md; polkit(8); bash-completion's README.md, FAQ."""


def run(*argv: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command that must end with this status."""
    result = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == status, result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the source tree, which stays as it is."""
    copy, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(TOP / name, copy)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TOP / name, copy / name, ignore=ignored)
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", built, copy)
    (wheel,) = built.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it where nothing of the source tree is seen; gives the folder of the commands."""
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    install = ("install", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install)
    # A path file there makes our dependencies seen, but not the editable install beside them.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
    (Path(site.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return venv / "bin"


def test_the_wheel_has_all_modules_and_all_data_where_it_belongs(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name.partition(".data/data/")[2] or name for name in archive.namelist()}
    modules = {str(file.relative_to(TOP)) for file in (TOP / "storaged_conn").rglob("*.py")}
    assert modules | {"storaged_conn/py.typed"} <= names
    data = {f"{place}/{Path(file).name}" for file, place in DATA.items()}
    assert data == {name for name in names if name.startswith(("share/", "lib/"))}
    there = {path for folder in FOLDERS[1:] for path in (TOP / folder).iterdir()}
    assert {TOP / file for file in DATA} == there
    assert not {name for name in names if name.startswith("tests")}


def test_nothing_of_the_source_tree_is_used(installed: Path) -> None:
    code = (
        "from storaged_conn.front import contract as it; print(it.__file__, it._find(it.MANAGER))"
    )
    module, contract = run(installed / "python", "-I", "-c", code).stdout.split()
    assert installed.parent in Path(module).parents
    assert Path(contract) == installed.parent / f"share/dbus-1/interfaces/{MANAGER}.xml"


@pytest.mark.bus
async def test_it_runs_where_it_is_installed(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with private_bus() as address:
        daemon = Daemon(address, tmp_path / "state", tmp_path / "run", "--enable-simulated")
        daemon._argv[:3] = [str(installed / "storaged-connd")]
        async with daemon, calling(address) as caller:
            await caller.manage("simulated:a", "a")
            for path, interface in ((ROOT, MANAGER), (object_path("a"), CONNECTION)):
                (xml,) = await caller.call("Introspect", path=path, interface=INTROSPECTABLE)
                assert f'<interface name="{interface}">' in xml
            argv = (str(installed / "storaged-connctl"), "--bus", address, "list")
            ctl = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
            out, _ = await asyncio.wait_for(ctl.communicate(), DEADLINE)
            assert ctl.returncode == 0
            assert b"simulated:a" in out


def test_how_it_is_used_is_told(installed: Path) -> None:
    told = run(installed / "storaged-connd", "--help").stdout
    for word in ("--bus", "--state-dir", "--runtime-dir", "--log-level", "--enable-simulated"):
        assert word in told
    assert "exit status" in told


@pytest.mark.parametrize(
    "wrong", [["--bus"], ["--no-such-option"], ["--state-dir", "relative"], ["--log-level", "loud"]]
)
def test_a_wrong_usage_ends_with_status_2(installed: Path, wrong: list[str]) -> None:
    said = run(installed / "storaged-connd", *wrong, status=2).stderr
    assert said.splitlines()[-1].startswith("storaged-connd: error: ")


def test_without_a_bus_it_says_so_in_one_line(installed: Path, tmp_path: Path) -> None:
    places = ("--state-dir", tmp_path / "state", "--runtime-dir", tmp_path / "run")
    for address in (f"unix:path={tmp_path}/none", "nonsense"):
        result = run(installed / "storaged-connd", "--bus", address, *places, status=1)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"cannot connect to bus {address}: ")


@pytest.mark.bus
async def test_there_is_one_on_a_bus(installed: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        argv = (str(installed / "storaged-connd"), "--bus", service.address)
        places = ("--state-dir", f"{tmp_path}/other", "--runtime-dir", f"{tmp_path}/other-run")
        other = await asyncio.create_subprocess_exec(*argv, *places, stderr=subprocess.PIPE)
        _, said = await asyncio.wait_for(other.communicate(), DEADLINE)
    assert other.returncode == 1
    last = said.decode().splitlines()[-1]  # after warnings about this machine
    assert last == f"{SERVICE} is owned by another process; stop that service first"
