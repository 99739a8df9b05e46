# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection whose bus is a socket in the test's hand."""

import asyncio

import pytest

from storaged_conn.bus import wire
from storaged_conn.bus.connection import BusLostError, CallError
from storaged_conn.bus.wire import Field, Flag, Kind, Message
from tests.bus.wires import (
    ASKED,
    INTERFACE,
    NONSENSE,
    PATH,
    SAID,
    Heard,
    asking,
    call_to,
    drain,
    incoming,
    lost,
    say,
    sent_serial,
    wired,
)
from tests.live import DEADLINE

# calls


async def test_a_call_gets_its_reply_among_what_nobody_asked_for() -> None:
    with wired() as (bus, theirs):
        task = asking(bus)
        serial = await sent_serial(theirs)
        text = wire.marshal("s", ["yes"])
        for kind in (Kind.RETURN, Kind.ERROR):
            await say(theirs, incoming(kind, {Field.REPLY_SERIAL: serial + 1}, NONSENSE))
            await say(theirs, incoming(kind, {}, NONSENSE))
        await say(theirs, incoming(Kind.SIGNAL, {**SAID, Field.SIGNATURE: "as"}, NONSENSE))
        await say(theirs, incoming(Kind.SIGNAL, {**SAID, Field.REPLY_SERIAL: serial}, NONSENSE))
        answer = {Field.REPLY_SERIAL: serial, Field.SIGNATURE: "s"}
        await say(theirs, incoming(Kind.RETURN, answer, text) * 2)
        assert await task == ["yes"]
        assert not bus.lost.done()


async def test_an_error_reply_raises_its_name_and_text() -> None:
    with wired() as (bus, theirs):
        task = asking(bus)
        answer = {Field.REPLY_SERIAL: await sent_serial(theirs), Field.ERROR_NAME: "a.b.C"}
        answer |= {Field.SIGNATURE: "s"}
        await say(theirs, incoming(Kind.ERROR, answer, wire.marshal("s", ["no"])))
        with pytest.raises(CallError, match="no") as caught:
            await task
        assert caught.value.name == "a.b.C"


async def test_a_call_without_a_reply_ends_in_time_and_its_late_reply_is_dropped() -> None:
    with wired() as (bus, theirs):
        with pytest.raises(CallError, match=r"Method: no reply within 0\.01 s") as caught:
            await bus.call(("a.b", PATH, INTERFACE, "Method"), timeout=0.01)
        assert caught.value.name == "org.freedesktop.DBus.Error.NoReply"
        assert not bus._pending
        late = {Field.REPLY_SERIAL: await sent_serial(theirs)}
        await say(theirs, incoming(Kind.RETURN, late))
        bus.on_call = heard = Heard()
        await say(theirs, incoming(Kind.CALL, ASKED))
        await heard.count(1)


async def test_a_cancelled_call_is_forgotten() -> None:
    with wired() as (bus, theirs):
        task = asking(bus)
        await sent_serial(theirs)
        task.cancel()
        await asyncio.wait({task})
        assert not bus._pending


async def test_serials_begin_anew_after_the_last_and_are_never_zero() -> None:
    with wired() as (bus, _):
        bus._serial = 2**32 - 2
        assert [bus.send(call_to("a.b")) for _ in range(3)] == [2**32 - 1, 1, 2]


async def test_who_wants_no_reply_gets_none() -> None:
    with wired() as (bus, _):
        quiet = Message(Kind.CALL, Flag.NO_REPLY_EXPECTED, 5, {Field.SENDER: ":1.9"})
        bus.reply(quiet, "", b"")
        bus.error(quiet, "a.b.C", "no")
        assert bus._serial == 0


async def test_without_a_dispatcher_there_are_no_objects() -> None:
    with wired() as (_, theirs):
        await say(theirs, incoming(Kind.CALL, ASKED))
        head = await drain(theirs, wire.FIXED)
        assert b"org.freedesktop.DBus.Error.UnknownObject" in head


# the end


async def test_when_the_bus_goes_pending_calls_fail_and_nothing_can_be_sent() -> None:
    with wired() as (bus, theirs):
        tasks = [asking(bus) for _ in range(3)]
        await sent_serial(theirs)
        theirs.close()
        assert "the bus" in await lost(bus)
        for task in tasks:
            with pytest.raises(BusLostError):
                await task
        with pytest.raises(BusLostError, match="is gone"):
            bus.send(call_to("a.b"))
        await bus.flush()


async def test_a_call_that_cannot_even_be_sent_fails_at_once() -> None:
    with wired() as (bus, theirs):
        theirs.close()
        with pytest.raises(BusLostError):
            await bus.call(("a.b", PATH, INTERFACE, "Method"), timeout=DEADLINE)


async def test_a_bus_that_sends_nonsense_is_left() -> None:
    with wired() as (bus, theirs):
        await say(theirs, NONSENSE)
        assert "nonsense" in await lost(bus)


async def test_an_answer_that_finds_the_bus_gone_ends_quietly() -> None:
    with wired() as (bus, theirs):
        theirs.sendall(incoming(Kind.CALL, ASKED) * 3)
        theirs.close()
        assert await lost(bus)


async def test_a_handler_that_fails_costs_one_message() -> None:
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    with wired() as (bus, theirs):
        heard = Heard()

        def stumble(message: Message) -> None:
            heard(message)
            if len(heard.messages) == 1:
                raise LookupError("a defect")

        bus.listen(stumble)
        await say(theirs, incoming(Kind.SIGNAL, SAID))
        await heard.count(1)
        await say(theirs, incoming(Kind.SIGNAL, SAID))
        await heard.count(2)
        assert len(failed) == 1
        assert len(heard.messages) == 2
