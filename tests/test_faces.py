# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the service shows to the bus, to systemd, to polkit and to packagers."""

import os
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from storaged_conn.front.actions import Action
from storaged_conn.names import SERVICE
from tests.faces import TOP

UNIT: Final = TOP / "systemd" / "storaged-conn.service"
ALIAS: Final = f"dbus-{SERVICE}.service"
EXPOSURE: Final = 30
"""Ten times what `systemd-analyze security` may find."""


def unit() -> dict[str, list[str]]:
    """Read the unit, whose options may be given several times."""
    options: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        name, assigned, value = line.partition("=")
        if assigned and not line.startswith("#"):
            options.setdefault(name, []).append(value)
    return options


# files


def faces() -> set[str]:
    directories = ("completion", "dbus", "man", "polkit", "systemd")
    return {f"{name}/{file.name}" for name in directories for file in (TOP / name).iterdir()}


def test_every_face_is_installed_and_everything_installed_is_there() -> None:
    setup = ConfigParser()
    setup.read(TOP / "setup.cfg")
    installed = [path for paths in setup["options.data_files"].values() for path in paths.split()]
    assert sorted(installed) == sorted(faces())


@pytest.mark.parametrize(
    "face",
    sorted(
        face
        for face in faces()
        if not face.startswith(("completion/", "man/", "systemd/"))
        and not face.endswith(".service")
    ),
)
def test_a_face_in_xml_is_well_formed_and_licensed(face: str) -> None:
    text = (TOP / face).read_text()
    assert ElementTree.fromstring(text).tag in {"node", "busconfig", "policyconfig"}
    assert "SPDX-License-Identifier: LGPL-2.1-or-later" in text


def test_activation_starts_the_unit_by_its_alias() -> None:
    activation = ConfigParser()
    activation.read(TOP / "dbus" / f"{SERVICE}.service")
    assert dict(activation["D-BUS Service"]) == {
        "name": SERVICE,
        "exec": "/bin/false",
        "user": "root",
        "systemdservice": ALIAS,
    }
    assert unit()["Alias"] == [ALIAS]
    assert unit()["BusName"] == [SERVICE]


def test_no_action_is_allowed_without_an_administrator() -> None:
    root = ElementTree.parse(TOP / "polkit" / "org.storage.connection.policy").getroot()
    actions = {
        action.get("id"): {default.text for default in action.iterfind("defaults/*")}
        for action in root.iter("action")
    }
    assert sorted(map(str, actions)) == [
        f"org.storage.connection.{name}"
        for name in ("control", "discover", "manage", "unmanage", "unmanage-any")
    ]
    assert set(actions) == set(Action)
    for answers in actions.values():
        assert answers
        assert answers <= {"auth_admin", "auth_admin_keep"}


def test_every_text_for_people_is_in_german_and_french_too() -> None:
    lang = "{http://www.w3.org/XML/1998/namespace}lang"
    root = ElementTree.parse(TOP / "polkit" / "org.storage.connection.policy").getroot()
    for action in root.iter("action"):
        for name in ("description", "message"):
            texts = {one.get(lang, ""): one.text or "" for one in action.iterfind(name)}
            assert texts.keys() == {"", "de", "fr"}
            variables = [sorted(re.findall(r"\$\(\w+\)", text)) for text in texts.values()]
            assert variables.count(variables[0]) == 3


# the unit


@pytest.fixture
def verifiable(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text()))
    return copy


def test_systemd_understands_the_unit(verifiable: Path) -> None:
    verify = ["systemd-analyze", "verify", "--man=no", str(verifiable)]
    result = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_unit_exposes_no_more_than_it_must(verifiable: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}"]
    result = subprocess.run(
        [*command, str(verifiable)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_nothing_in_the_unit_hides_storage_or_mount_points() -> None:
    hiding = re.compile(
        # Source: systemd.exec(5), "Sandboxing" and "Paths"; /tmp and /home may hold images.
        "(Private(Tmp|Devices|Network|Users|IPC)|Protect(Home|KernelModules)"
        "|ProcSubset|Root(Directory|Image).*|TemporaryFileSystem|DynamicUser|InaccessiblePaths)"
    )
    assert [name for name in unit() if hiding.fullmatch(name)] == []
    assert "strict" not in unit()["ProtectSystem"]


def test_a_broken_store_is_not_started_again() -> None:
    assert unit()["RestartPreventExitStatus"] == [str(os.EX_CONFIG)]
