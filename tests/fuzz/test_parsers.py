# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every parser takes its samples, what was found before, any bytes, and all injections."""

import ast
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import storaged_conn
from tests.fuzz.parsers import FIELD, ITEM, PARSERS, samples
from tests.injections import INJECTIONS

PACKAGE: Final = Path(storaged_conn.__file__).parent

CUTTERS: Final = frozenset(
    {"fromhex", "fromstring", "fullmatch", "loads", "match", "partition", "rpartition", "split"}
    | {"splitlines", "sub", "unpack", "unpack_from"}
)
"""What a parser calls."""

OTHERS: Final = {
    "ctl.client": "the service's errors",
    "ctl.commands": "names of schemes, from the service",
    "ctl.watch": "the service's signals",
    "drivers.base": "a URI that was read",
    "front.authorize": "a URI that was read",
    "front.contract": "our own XML",
    "front.faces": "a URI that was read",
    "front.lifetimes": "a scope that this service wrote",
    "front.tree": "an object path, of which names.py is asked",
    "runner": "a URI that was read",
    "sources.directories": "a path that was read",
    "system.devices": "what udevd wrote, and names in /dev",
    "system.fabrics": "what our own child says",
    "system.fabrics_child": "what the driver made, and what the kernel answers",
    "system.inotify": "the kernel's structures",
    "system.journal": "our own words, of which only lines are made",
    "system.mount_child": "a place that was read, and /proc",
    "system.creds": "the last line of what systemd-creds(1) says",
    "system.resolve": "what getent(1) prints",
    "system.usage": "what the kernel says of swap",
    "system.routes": "an address of resolve.py",
}
"""The modules that cut text and are not in PARSERS, and what they cut instead."""


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_takes_its_samples_and_what_was_found_before(name: str) -> None:
    for sample in samples(name):
        PARSERS[name].feed(sample)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_takes_anything(name: str) -> None:
    @given(st.binary() | texts(), st.sampled_from(samples(name)), st.integers(0, 80))
    def feed(data: bytes, sample: bytes, place: int) -> None:
        PARSERS[name].feed(data)
        PARSERS[name].feed(sample[:place] + data + sample[place:])
        PARSERS[name].feed(sample[:place] + data + sample[place + len(data) :])

    feed()


def texts() -> st.SearchStrategy[bytes]:
    word = st.sampled_from([*INJECTIONS.values(), FIELD, ITEM]) | st.text(max_size=8)
    joined = st.lists(word, max_size=6).map("".join)
    return joined.map(lambda text: text.encode(errors="surrogatepass"))


def test_every_module_that_cuts_what_others_write_is_in_the_table() -> None:
    fed = {module for parser in PARSERS.values() for module in parser.modules.split()}
    found = {module for module in modules() if calls(module) & CUTTERS}
    assert not fed & OTHERS.keys()
    assert found <= fed | OTHERS.keys()
    assert OTHERS.keys() <= found
    assert fed <= set(modules())


def modules() -> list[str]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files]


def calls(module: str) -> set[str]:
    """Name the methods that a module calls."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {func.attr for func in called if isinstance(func, ast.Attribute)}
