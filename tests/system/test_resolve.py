# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may be asked of a name server is asked where there is none: nothing leaves this machine."""

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.errors import NameResolutionError, UnusableError
from storaged_conn.system import resolve as module
from storaged_conn.system.resolve import DEADLINE, interleave, resolve
from storaged_conn.system.run import Result, run
from tests.netns import Namespace, needs_root

Say = Callable[[Result | Exception], list[Sequence[str]]]

ANSWER = """\
192.0.2.1       STREAM nas.example
192.0.2.1       DGRAM
192.0.2.1       RAW
192.0.2.2       STREAM
2001:db8::1     STREAM
2001:db8::1     DGRAM

2001:db8::2     STREAM
2001:db8::3     RAW
"""


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Have getent answer as told; gives the commands that were run."""

    def prepare(answer: Result | Exception) -> list[Sequence[str]]:
        asked: list[Sequence[str]] = []

        async def fake(argv: Sequence[str], *, deadline: float) -> Result:
            assert deadline == DEADLINE
            asked.append(argv)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(module, "run", fake)
        return asked

    return prepare


@pytest.mark.parametrize(
    ("host", "address"), [("192.0.2.1", "192.0.2.1"), ("2001:DB8:0::1", "2001:db8::1")]
)
async def test_an_address_needs_no_child(say: Say, host: str, address: str) -> None:
    asked = say(AssertionError())
    assert await resolve(host) == [address]
    assert asked == []


async def test_localhost_is_the_loopback() -> None:
    assert set(await resolve("localhost")) <= {"127.0.0.1", "::1"}


async def test_all_addresses_are_given_once_with_alternating_families(
    say: Say,
) -> None:
    asked = say(Result(0, ANSWER, ""))
    expected = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2", "2001:db8::3"]
    assert await resolve("nas.example") == expected
    assert asked == [["/usr/bin/getent", "ahosts", "--", "nas.example"]]


@pytest.mark.parametrize(
    "answer", [Result(2, "", ""), Result(0, "\n", ""), Result(-11, ANSWER, "")]
)
async def test_no_answer_is_a_failure_of_the_name(say: Say, answer: Result) -> None:
    say(answer)
    with pytest.raises(NameResolutionError, match=r"nas\.example cannot be resolved; see DNS"):
        await resolve("nas.example")


async def test_a_missing_tool_is_a_failure_of_the_name(
    say: Say,
) -> None:
    say(UnusableError("getent cannot be run; install the package that brings it"))
    with pytest.raises(NameResolutionError, match=r"^nas\.example: getent cannot be run"):
        await resolve("nas.example")


async def test_a_look_up_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stall(argv: Sequence[str], *, deadline: float) -> Result:
        return await run(["/usr/bin/sleep", "1000"], deadline=deadline / 1000)

    monkeypatch.setattr(module, "run", stall)
    with pytest.raises(
        NameResolutionError, match=r"^nas\.example: sleep: no answer within 0\.01 s"
    ):
        await resolve("nas.example")


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("host", ["name.invalid", "--help", "-x", "no.such_host.invalid"])
async def test_an_unknown_name_is_a_failure_and_never_an_option(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with closing(Namespace()) as space:
        enter = ["/usr/bin/nsenter", *space.prefix[1:]]

        async def inside(argv: Sequence[str], *, deadline: float) -> Result:
            return await run([*enter, *argv], deadline=deadline)

        monkeypatch.setattr(module, "run", inside)
        with pytest.raises(NameResolutionError, match=f"the name {host} cannot be resolved"):
            await resolve(host)
        assert set(await resolve("localhost")) <= {"127.0.0.1", "::1"}


@given(st.lists(st.from_regex(r"[0-9][.:]", fullmatch=True), unique=True))
def test_families_alternate_as_long_as_there_are_both(addresses: list[str]) -> None:
    mixed = interleave(addresses)
    assert mixed[:1] == addresses[:1]
    families = {sign: [one for one in addresses if sign in one] for sign in ".:"}
    for sign, members in families.items():
        assert [one for one in mixed if sign in one] == members
    for one, other in pairwise(mixed[: 2 * min(map(len, families.values()))]):
        assert (":" in one) != (":" in other)
