# SPDX-License-Identifier: LGPL-2.1-or-later
"""One connection to a message bus that cannot be killed by what others send or do not read.

dbus-next brings the address and the authentication; reading and writing are ours, because its own
loop ends the connection when the socket is full (EAGAIN), reads as long as there is something to
read (a flood stops everything else), and queues without bound. Here one turn of the event loop
reads at most READ bytes; what does not fit the socket waits in a queue with a bound; and no call is
without a timeout.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from dbus_next.aio import MessageBus
from dbus_next.constants import BusType

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Field, Flag, Kind, Message
from storaged_conn.names import DBUS, DBUS_PATH

READ: Final = 64 * 1024
"""Bytes read in one turn: at 20 us for the smallest message of 100 bytes, 13 ms."""

AHEAD: Final = 8 * 1024
"""Bytes that the socket takes while the bus does not read; the kernel doubles it. Whatever is sent
waits for them, and dbus-daemon reads 2 to 4 KiB from us before it reads as much from each of its
other connections, 40 ms where fifty of them flood it. Source: socket(7), SO_SNDBUF; dbus,
dbus-transport-socket.c, max_bytes_read_per_iteration."""

QUEUE_HIGH: Final = 16 * 1024 * 1024
"""Bytes waiting to be sent above which nothing more is read, so that no new replies arise."""

QUEUE_MAX: Final = 64 * 1024 * 1024
"""Bytes waiting to be sent at which the connection is given up. Source: half of dbus-daemon's
max_incoming_bytes, at which it stops reading from us."""

STALLED: Final = 30.0
"""Seconds without a byte sent, while some wait, after which the connection is given up: the bus
has stopped reading from us, so nobody is served any more; systemd starts us afresh."""

HANDSHAKE: Final = 20.0
"""Seconds for authentication and Hello; systemd's own clients wait 90 s, a person does not."""


class BusLostError(Exception):
    """The connection to the bus is gone; nothing can be sent or awaited any more."""


class CallError(Exception):
    """An error reply: `name` is its D-Bus name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class _Authenticated(MessageBus):
    def _setup_socket(self) -> None:
        try:
            super()._setup_socket()
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        self._stream.close()
        self._sock.close()

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            got = await self._loop.sock_recv(self._sock, 1)
            if not got:  # dbus-next would spin here for ever
                raise BusLostError("the bus closed the connection during authentication")
            line += got
        return line[:-2].decode()


class Bus:
    """A connection to a message bus.

    Attributes:
        unique_name: our name on the bus, such as `:1.42`.
        lost: done, with the reason as its exception, when the connection is gone.
        on_call: takes method calls; unset, they are answered UnknownObject.
        on_oversize: takes method calls larger than the limit, without their body.
        on_room: is called when the bus is no longer behind.
    """

    def __init__(self, sock: socket.socket, max_message: int) -> None:
        """See `open`."""
        self.unique_name = ""
        self.on_call: Callable[[Message], None] = self._refuse
        self.on_oversize: Callable[[Message], None] = self._refuse
        self.on_room: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AHEAD)
        self._max = max_message
        self._buffer = bytearray()
        self._skip = 0
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._stall: asyncio.TimerHandle | None = None
        self._paused = self._reading = self._writing = False
        self._serial = 0
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._listeners: list[Callable[[Message], None]] = []
        self._drained: list[asyncio.Future[None]] = []

    @classmethod
    async def open(cls, address: str, *, max_message: int) -> "Bus":
        """Connect, authenticate and say Hello.

        Args:
            address: `system`, `session` or a D-Bus address.
            max_message: bytes of the largest body that is taken in.

        Raises:
            BusLostError: there is no bus, or it does not want us.
        """
        try:
            async with asyncio.timeout(HANDSHAKE):
                known = {"system": BusType.SYSTEM, "session": BusType.SESSION}.get(address)
                raw = _Authenticated(None if known else address, known or BusType.SYSTEM)
                return await cls._greet(raw, max_message)
        except Exception as error:  # noqa: BLE001  # dbus-next raises bare Exception among others
            raise BusLostError(
                f"cannot connect to bus {address}: {str(error) or 'no answer'}"
            ) from None

    @classmethod
    async def _greet(cls, raw: _Authenticated, max_message: int) -> "Bus":
        bus = cls(raw._sock, max_message)
        bus._library = raw  # it owns the socket's file object
        try:
            await raw._authenticate()
            bus._watch()
            (bus.unique_name,) = await bus.ask("Hello")
        except BaseException:
            bus.close()
            raise
        return bus

    _library: Any = None

    # calls and signals that go out

    async def call(
        self,
        where: tuple[str, str, str, str],
        signature: str = "",
        body: Sequence[object] = (),
        *,
        timeout: float,  # noqa: ASYNC109  # each call has one, and they differ
        flags: int = 0,
    ) -> list[Any]:
        """Call a method and wait for its answer.

        Args:
            where: destination, path, interface, member.
            signature: of the body.
            body: the arguments.
            timeout: seconds.
            flags: such as ALLOW_INTERACTIVE_AUTHORIZATION.

        Raises:
            CallError: an error reply, or no reply in time (org.freedesktop.DBus.Error.NoReply).
            BusLostError: the bus is gone.
        """
        serial = self.send(_call(where, signature, body, flags))
        future = self._pending[serial] = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                reply = await future
        except TimeoutError:
            text = f"{where[2]}.{where[3]}: no reply within {timeout:g} s"
            raise CallError("org.freedesktop.DBus.Error.NoReply", text) from None
        finally:
            self._pending.pop(serial, None)
        arguments: list[Any] = reply.arguments()
        if reply.kind == Kind.ERROR:
            raise CallError(reply.text(Field.ERROR_NAME), str(arguments[0]) if arguments else "")
        return arguments

    async def ask(self, member: str, signature: str = "", *body: object) -> list[Any]:
        """Call a method of the bus itself, which answers at once or is broken."""
        return await self.call((DBUS, DBUS_PATH, DBUS, member), signature, body, timeout=HANDSHAKE)

    def tell(self, member: str, signature: str, *body: object) -> None:
        """Call a method of the bus itself whose answer nobody needs."""
        self.send_off((DBUS, DBUS_PATH, DBUS, member), signature, *body)

    def send_off(self, where: tuple[str, str, str, str], signature: str, *body: object) -> None:
        """Call a method whose answer nobody needs, of somebody who is there or else is not called.

        Args:
            where: destination, path, interface, member.
            signature: of the body.
            body: the arguments.
        """
        self.send(_call(where, signature, body, Flag.NO_REPLY_EXPECTED | Flag.NO_AUTO_START))

    def signal(self, path: str, interface: str, member: str, signature: str, body: bytes) -> None:
        """Broadcast a signal whose body is marshalled already."""
        fields: dict[int, Any] = {
            Field.PATH: path,
            Field.INTERFACE: interface,
            Field.MEMBER: member,
            Field.SIGNATURE: signature,
        }
        self.send(Message(Kind.SIGNAL, Flag.NO_REPLY_EXPECTED, 0, fields, body))

    def reply(self, call: Message, signature: str, body: bytes) -> None:
        """Answer a call, if it wants an answer, with a body that is marshalled already."""
        if call.flags & Flag.NO_REPLY_EXPECTED:
            return
        fields: dict[int, Any] = {
            Field.REPLY_SERIAL: call.serial,
            Field.DESTINATION: call.text(Field.SENDER),
        }
        if signature:
            fields[Field.SIGNATURE] = signature
        self.send(Message(Kind.RETURN, Flag.NO_REPLY_EXPECTED, 0, fields, body))

    def error(self, call: Message, name: str, text: str) -> None:
        """Answer a call with an error, if it wants an answer."""
        if call.flags & Flag.NO_REPLY_EXPECTED:
            return
        fields: dict[int, Any] = {
            Field.ERROR_NAME: name,
            Field.REPLY_SERIAL: call.serial,
            Field.DESTINATION: call.text(Field.SENDER),
            Field.SIGNATURE: "s",
        }
        body = wire.marshal("s", [text])
        self.send(Message(Kind.ERROR, Flag.NO_REPLY_EXPECTED, 0, fields, body))

    def send(self, message: Message) -> int:
        """Send a message, giving it a serial; it is written at once or queued.

        Returns:
            The serial.

        Raises:
            BusLostError: the bus is gone.
        """
        if self.lost.done():
            raise BusLostError("the connection to the bus is gone")
        self._serial = message.serial = self._serial % 0xFFFFFFFF + 1
        idle = not self._queue
        head, body = wire.header(message), message.body
        parts = [head, body] if len(body) > READ else [head + body]  # large bodies are not copied
        self._queue.extend(map(memoryview, parts))
        self._queued += len(head) + len(body)
        if idle:
            self._write()
        else:
            self._watch()  # it may be too much now
        if self._queued > QUEUE_MAX:
            self.close(BusLostError("the bus does not read from us"))
        if self.lost.done():
            raise BusLostError("the connection to the bus is gone")
        return message.serial

    async def flush(self) -> None:
        """Wait until all that was sent before is written, or the bus is gone."""
        if self._queue and not self.lost.done():
            self._drained.append(self._loop.create_future())
            await self._drained[-1]

    # what comes in

    def listen(self, handler: Callable[[Message], None]) -> None:
        """Have all signals handed to a function; it must look who sent them."""
        self._listeners.append(handler)

    def pause(self, *, reading: bool) -> None:
        """Stop reading until there is room again, or go on."""
        self._paused = not reading
        self._watch()

    @property
    def behind(self) -> bool:
        """Something is waiting to be sent, before whatever is sent now."""
        return bool(self._queue)

    @property
    def congested(self) -> bool:
        """Much is waiting to be sent: what can be left for later should be."""
        return self._queued > QUEUE_HIGH

    def close(self, reason: Exception | None = None) -> None:
        """Let the bus go, failing every pending call."""
        if self.lost.done():
            return
        reason = reason or BusLostError("closed")
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._stall:
            self._stall.cancel()
        self._queue.clear()
        if self._library:
            self._library.drop()
        self._sock.close()
        self.lost.set_exception(reason)
        self.lost.exception()  # retrieved: who awaits it gets it still
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BusLostError(str(reason)))
        for drained in self._drained:
            drained.set_result(None)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(BusLostError(f"the bus is gone: {error}"))
            return
        if not data:
            self.close(BusLostError("the bus closed the connection"))
            return
        self._buffer += data
        try:
            self._take_messages()
        except BusLostError:
            return  # an answer found out first
        except wire.MalformedError as error:
            self.close(BusLostError(f"the bus sent nonsense: {error}"))

    def _take_messages(self) -> None:
        buffer, at = self._buffer, 0
        try:
            while not self.lost.done():
                skipped = min(self._skip, len(buffer) - at)
                self._skip -= skipped
                at += skipped
                if len(buffer) - at < wire.FIXED:
                    break
                start, total = wire.message_size(buffer, at)
                if start > wire.MAX_HEADER:
                    self._skip = total
                    continue
                oversize = total - start > self._max
                if len(buffer) - at < (start if oversize else total):
                    break
                head, body = bytes(buffer[at : at + start]), b""
                if not oversize:
                    body = bytes(buffer[at + start : at + total])
                at += start if oversize else total
                self._skip = total - start if oversize else 0
                self._take(head, body, oversize=oversize)
        finally:
            del buffer[:at]  # also the message whose handler failed

    def _take(self, head: bytes, body: bytes, *, oversize: bool) -> None:
        try:
            message = wire.parse(head, body)
        except wire.MalformedError:
            return  # one message that the bus should not have let through; the stream is in step
        if message.kind == Kind.CALL:
            (self.on_oversize if oversize else self.on_call)(message)
        elif message.kind == Kind.SIGNAL and not oversize:
            for handler in self._listeners:
                handler(message)
        elif message.reply_to in self._pending:
            self._settle(self._pending.pop(message.reply_to), message, oversize=oversize)

    def _settle(self, future: asyncio.Future[Message], reply: Message, *, oversize: bool) -> None:
        if future.done():
            return
        if oversize:
            name = "org.freedesktop.DBus.Error.LimitsExceeded"
            future.set_exception(CallError(name, f"the reply is larger than {self._max} bytes"))
        else:
            future.set_result(reply)

    def _refuse(self, call: Message) -> None:
        self.error(call, "org.freedesktop.DBus.Error.UnknownObject", "there are no objects here")

    # writing

    def _write(self) -> None:
        while self._queue:
            try:
                sent = self._sock.send(self._queue[0])
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self.close(BusLostError(f"the bus is gone: {error}"))
                return
            self._queued -= sent
            self._restart_stall()
            if sent < len(self._queue[0]):
                self._queue[0] = self._queue[0][sent:]
            else:
                self._queue.popleft()
        self._watch()

    def _restart_stall(self) -> None:
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def _watch(self) -> None:
        if self.lost.done():
            return
        self._arm_writer(wanted=bool(self._queue))
        self._arm_reader(wanted=not (self._paused or self.congested))
        if self._queue:
            if self._stall is None:
                reason = BusLostError(f"the bus has not read from us for {STALLED:g} s")
                self._stall = self._loop.call_later(STALLED, self.close, reason)
            return
        for drained in self._drained:
            drained.set_result(None)
        self._drained.clear()

    def _arm_writer(self, *, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._sock, self._write)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._sock)
            self._loop.call_soon(self.on_room)
        self._writing = wanted

    def _arm_reader(self, *, wanted: bool) -> None:
        if wanted and not self._reading:
            self._loop.add_reader(self._sock, self._readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._sock)
        self._reading = wanted


def _call(
    where: tuple[str, str, str, str], signature: str, body: Sequence[object], flags: int
) -> Message:
    destination, path, interface, member = where
    fields: dict[int, Any] = {
        Field.PATH: path,
        Field.INTERFACE: interface,
        Field.MEMBER: member,
        Field.DESTINATION: destination,
    }
    if signature:
        fields[Field.SIGNATURE] = signature
    return Message(Kind.CALL, flags, 0, fields, wire.marshal(signature, body))
