# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package and setup.cfg say the same, of versions and of what is needed."""

import configparser
import re
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.version import Version

TOP: Final = Path(__file__).parents[1]
DEBIAN: Final = TOP / "debian"


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(TOP / "setup.cfg")
    return parser


def requirements() -> dict[str, Requirement]:
    lines = settings()["options"]["install_requires"].splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {one.name: one for one in found}


def carried() -> dict[str, Version]:
    pins = re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", text("carried.txt"), re.M)
    return {name: Version(version) for name, version in pins}


def text(name: str) -> str:
    return (DEBIAN / name).read_text()


def test_the_version_is_the_project_s() -> None:
    changelog = re.match(r"storaged-conn \(([^)]+)\)", text("changelog"))
    assert changelog
    assert changelog[1] == settings()["metadata"]["version"]


def test_what_the_project_needs_is_either_asked_of_apt_or_carried() -> None:
    depends = dict(re.findall(r"python3-([\w-]+) \(>= ([\d.]+)\)", text("control")))
    for name, requirement in requirements().items():
        assert (name in depends) is not (name in carried())
        version = carried().get(name) or Version(depends[name])
        assert version in requirement.specifier
    assert not carried().keys() - requirements().keys()


def test_the_python_that_is_asked_for_is_the_project_s() -> None:
    assert f"python3 ({settings()['options']['python_requires'].replace('>=', '>= ')})" in text(
        "control"
    )


def test_a_program_in_the_package_is_what_the_wheel_has() -> None:
    scripts = settings()["options.entry_points"]["console_scripts"]
    for name, module in re.findall(r"^([\w-]+) = ([\w.]+):main$", scripts, re.M):
        program = text(name)
        assert program.startswith("#!/usr/bin/python3 -I\n")
        assert program.endswith(f"\nfrom {module} import main\n\nsys.exit(main())\n")
        assert (DEBIAN / name).stat().st_mode & 0o111 == 0o111
