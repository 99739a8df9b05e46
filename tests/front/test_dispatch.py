# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every call gets one answer, its error by its own name, and nobody waits for somebody else's."""

import gc

import pytest

from storaged_conn import errors
from storaged_conn.bus.wire import Field, Flag, Kind, Message
from storaged_conn.errors import ConnError, NotFoundError
from storaged_conn.front import dispatch
from storaged_conn.front.actions import ACTIONS, Action
from storaged_conn.front.call import Call, Reply
from storaged_conn.front.callers import Caller
from storaged_conn.front.contract import load
from storaged_conn.front.dispatch import MAX_CALL, MAX_OPEN_CALL
from storaged_conn.front.polkit import Verdict
from storaged_conn.front.turns import MAX_WAITING
from tests.front.stage import GONE, NOBODY, PATH, ROOT, USER, Stage, a_call, staged

BUS_ERROR = "org.freedesktop.DBus.Error."
OUR_ERROR = errors.ERROR_PREFIX


def changed(message: Message, name: Field, value: str) -> Message:
    message.fields[name] = value
    return message


def test_every_declared_method_has_its_action_and_no_other() -> None:
    declared = {
        (interface.name, method) for interface in load().values() for method in interface.methods
    }
    assert ACTIONS.keys() == declared


# answers


@pytest.mark.parametrize("member", ["Read", "Write"])
async def test_a_call_is_answered_with_what_its_handler_gives(member: str) -> None:
    async with staged() as stage:
        reply = await stage.ask(a_call(member, "text"))
        assert (reply.kind, reply.arguments()) == (Kind.RETURN, ["text"])
        assert reply.text(Field.DESTINATION) == ROOT
        ((call, _),) = stage.calls
        assert call == Call(Caller(ROOT, 0), PATH)


@pytest.mark.parametrize(
    ("message", "name", "text"),
    [
        (changed(a_call("Read", ""), Field.PATH, "/no"), "UnknownObject", "no object /no"),
        (changed(a_call("Read", ""), Field.INTERFACE, "a.b"), "UnknownInterface", "interface a.b"),
        (a_call("Nothing", ""), "UnknownMethod", "no method Nothing"),
        (a_call("Elsewhere"), "UnknownMethod", "no method Elsewhere"),
        (a_call("Read"), "InvalidArgs", r"Read takes \(s\), not \(\)"),
        (changed(a_call("Read", ""), Field.SIGNATURE, "u"), "InvalidArgs", r"\(s\), not \(u\)"),
        (changed(a_call("Write", ""), Field.SIGNATURE, "ss"), "InvalidArgs", r"\(s\), not \(ss\)"),
    ],
)
async def test_a_call_that_fits_nothing_is_told_what_is_wrong(
    message: Message, name: str, text: str
) -> None:
    async with staged() as stage:
        await refused(stage, message, BUS_ERROR + name, text)
        assert stage.calls == []


async def refused(stage: Stage, message: Message, name: str, text: str) -> None:
    reply = await stage.ask(message)
    assert reply.kind == Kind.ERROR
    assert reply.text(Field.ERROR_NAME) == name
    (said,) = reply.arguments()
    with pytest.raises(LookupError, match=text):
        raise LookupError(said)


async def test_malformed_arguments_are_refused() -> None:
    async with staged() as stage:
        message = a_call("Read", "text")
        message.body = b"\xff" * 9
        await refused(stage, message, BUS_ERROR + "InvalidArgs", "^the arguments are malformed$")


@pytest.mark.parametrize(("interface", "member"), [("", "Read"), ("", "Elsewhere")])
async def test_a_call_may_leave_its_interface_out(interface: str, member: str) -> None:
    async with staged() as stage:
        message = a_call(member, "elsewhere" if member == "Read" else None)
        del message.fields[Field.INTERFACE]
        assert (await stage.ask(message)).arguments() == ["elsewhere"]
        nothing = a_call("Nothing")
        del nothing.fields[Field.INTERFACE]
        await refused(stage, nothing, BUS_ERROR + "UnknownMethod", "no method Nothing")


# who may


REFUSALS = {
    Verdict.NO: (OUR_ERROR + "NotAuthorized", "does not allow you .*control; call this as root"),
    Verdict.CHALLENGE: (BUS_ERROR + "InteractiveAuthorizationRequired", "forbids to ask for it"),
    Verdict.DISMISSED: (OUR_ERROR + "NotAuthorized", "dismissed; call this as root"),
    Verdict.SILENCE: (OUR_ERROR + "NotAuthorized", "does not say whether .*; call this as root"),
}


@pytest.mark.parametrize("verdict", REFUSALS)
async def test_what_polkit_does_not_allow_is_not_done(verdict: Verdict) -> None:
    async with staged() as stage:
        stage.polkit.verdict = verdict
        await refused(stage, a_call("Write", "text", USER), *REFUSALS[verdict])
        assert stage.calls == []
        assert (await stage.ask(a_call("Read", "text", USER))).arguments() == ["text"]
        assert len(stage.polkit.asked) == 1


async def test_who_lets_itself_be_asked_and_is_not_is_told_so() -> None:
    async with staged() as stage:
        stage.polkit.verdict = Verdict.CHALLENGE
        message = a_call("Write", "", USER, Flag.ALLOW_INTERACTIVE_AUTHORIZATION)
        await refused(stage, message, OUR_ERROR + "NotAuthorized", "nothing can ask for it")
        assert stage.polkit.asked[0][3]


async def test_what_polkit_allows_is_done() -> None:
    async with staged() as stage:
        stage.polkit.verdict = Verdict.YES
        assert (await stage.ask(a_call("Write", "text", USER))).arguments() == ["text"]
        ((call, _),) = stage.calls
        assert call == Call(Caller(USER, NOBODY), PATH, action=Action.CONTROL)


async def test_the_calls_of_a_stranger_wait_until_it_is_known_and_stay_in_order() -> None:
    async with staged() as stage:
        stage.callers.strangers.add(USER)
        messages = [a_call("Read", str(number), USER) for number in range(MAX_WAITING + 1)]
        for message in messages:
            stage.bus.on_call(message)
        late = await stage.bus.answer(messages[-1])
        assert late.text(Field.ERROR_NAME) == OUR_ERROR + "LimitExceeded"
        await stage.bus.answer(messages[-2])
        assert [text for _, text in stage.calls] == list(map(str, range(MAX_WAITING)))


async def test_who_has_left_before_it_was_known_is_not_answered() -> None:
    async with staged() as stage:
        stage.bus.on_call(a_call("Write", "text", GONE))
        assert (await stage.ask(a_call("Write", "text"))).arguments() == ["text"]
        assert len(stage.bus.sent) == len(stage.calls) == 1
        assert not stage.dispatcher._strangers


@pytest.mark.parametrize("sender", [ROOT, USER])
async def test_a_method_without_declared_action_is_for_nobody(sender: str) -> None:
    async with staged() as stage:
        text = "Hidden has no declared action; nobody may call it"
        message = a_call("Hidden", sender=sender)
        await refused(stage, message, OUR_ERROR + "NotAuthorized", text)


# failures


NAMED = [one for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "name")]


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("member", ["Read", "Write"])
async def test_an_expected_failure_reaches_the_caller_by_its_own_name(
    member: str, kind: type[ConnError], caplog: pytest.LogCaptureFixture
) -> None:
    async with staged() as stage:

        def fail(call: Call, text: str) -> Reply:
            raise kind("what happened; what to do")

        stage.handlers[member] = fail
        name = OUR_ERROR + kind.name
        await refused(stage, a_call(member, ""), name, "^what happened; what to do$")
        assert caplog.text == ""


@pytest.mark.parametrize("member", ["Read", "Write"])
async def test_a_defect_is_logged_and_shown_to_nobody(
    member: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged() as stage:
        stage.handlers[member] = lambda call, text: (int(text),)
        message = a_call(member, "a secret")
        text = "^an internal error; see the journal$"
        await refused(stage, message, BUS_ERROR + "Failed", text)
        assert f"defect in {member}" in caplog.text
        assert "Traceback" in caplog.text


@pytest.mark.parametrize("result", [(), (1,), ("a", "b"), (None,)])
async def test_a_result_that_is_not_the_declared_one_is_a_defect(
    result: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged() as stage:
        stage.handlers["Read"] = lambda call, text: result
        await refused(stage, a_call("Read", ""), BUS_ERROR + "Failed", "see the journal")
        assert "defect in Read" in caplog.text


async def test_a_call_that_wants_no_reply_gets_none_whatever_happens() -> None:
    async with staged() as stage:
        silent = Flag.NO_REPLY_EXPECTED
        for member in ("Read", "Write", "Nothing"):
            stage.bus.on_call(a_call(member, "quiet", flags=silent))
        stage.bus.on_oversize(a_call("Read", "", flags=silent))
        assert (await stage.ask(a_call("Write", "loud"))).arguments() == ["loud"]
        assert [text for _, text in stage.calls] == ["quiet", "quiet", "loud"]
        assert len(stage.bus.sent) == 1


async def test_a_call_that_is_too_large_is_answered() -> None:
    async with staged() as stage:
        message = a_call("Read", "")
        stage.bus.on_oversize(message)
        reply = await stage.bus.answer(message)
        assert reply.text(Field.ERROR_NAME) == OUR_ERROR + "LimitExceeded"
        assert reply.arguments() == [f"a call may have {MAX_CALL} bytes; send less"]


async def test_those_who_may_only_read_may_send_little() -> None:
    text = "x" * (MAX_OPEN_CALL - 5)  # a length of four bytes before it, a NUL after it
    async with staged() as stage:
        assert (await stage.ask(a_call("Read", text))).kind == Kind.RETURN
        longer = a_call("Read", text + "x")
        await refused(
            stage, longer, OUR_ERROR + "LimitExceeded", f"Read takes {MAX_OPEN_CALL} bytes"
        )
        assert (await stage.ask(a_call("Write", text + "x"))).kind == Kind.RETURN


async def test_a_reply_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_SENT", 100)
    async with staged() as stage:
        assert (await stage.ask(a_call("Read", "x" * 95))).kind == Kind.RETURN
        message = a_call("Read", "x" * 96)
        await refused(stage, message, OUR_ERROR + "LimitExceeded", "the reply has 101 bytes")


async def test_calls_in_progress_are_answered_when_the_service_stops() -> None:
    messages = [a_call("Wait"), a_call("Wait", flags=Flag.NO_REPLY_EXPECTED)]
    sent: list[Message] = []

    async def stop_with_calls_in_progress() -> None:
        async with staged() as stage:
            for message in messages:
                stage.bus.on_call(message)
            await stage.until_called(2)
            stage.bus.sent = sent
            raise NotFoundError("the end")

    with pytest.raises(ExceptionGroup):
        await stop_with_calls_in_progress()
    (reply,) = sent
    assert reply.reply_to == messages[0].serial
    assert reply.text(Field.ERROR_NAME) == BUS_ERROR + "NoReply"
    assert reply.arguments() == ["the service is stopping; call again"]


async def test_a_call_in_progress_is_kept_alive() -> None:
    """The task of a handler that nobody holds would be collected, and its caller never answered."""
    async with staged() as stage:
        message = a_call("Wait")
        stage.bus.on_call(message)
        await stage.until_called(1)
        gc.collect()
        stage.free.set()
        assert (await stage.bus.answer(message)).kind == Kind.RETURN
