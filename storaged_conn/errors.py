# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every expected failure, with its name on D-Bus, its number for `lastError`, and its reason.

    ConnError
      RequestError        the caller is wrong; nothing was changed
        InvalidArgumentError  NotFoundError  AlreadyExistsError  NotAuthorizedError
        LimitExceededError  NotSupportedError
      AttemptError        the world said no, to one attempt of one connection
        TemporaryError    the next attempt may succeed:  waiting
          MissingError  UnreachableError  TimedOutError  BusyError  TroubleError
          NoNetworkError  NoAddressError  NameResolutionError  ServerRefusedError  StaleError
          InitiatorError
        PermanentError    the same answer would come again, until something changes:  failed
          RefusedError  AuthenticationError  UnusableError  InternalError
          ServerSaysNoError  unless the server has only just begun to serve
            NotOfferedError  AccessDeniedError  ProtocolError
      StoreError          the records cannot be kept or read

Anything else is a bug. Numbers and names are API: never reuse or renumber one.
A message says what happened, then what to do, and never holds a secret.
"""

from typing import ClassVar

ERROR_PREFIX = "org.storage.Connection.Error."


class ConnError(Exception):
    """An expected failure: `name` and `code` are stable, the text is for people."""

    name: ClassVar[str]
    code: ClassVar[int]

    @property
    def dbus_name(self) -> str:
        """The error name that a caller on the bus sees."""
        return ERROR_PREFIX + self.name


class RequestError(ConnError):
    """The caller is wrong, and nothing was changed."""


class InvalidArgumentError(RequestError):
    """An argument is malformed, unknown or of the wrong type; the message names it."""

    name = "InvalidArgument"
    code = 1


class NotFoundError(RequestError):
    """No connection has this id."""

    name = "NotFound"
    code = 2


class AlreadyExistsError(RequestError):
    """The connection id is in use."""

    name = "AlreadyExists"
    code = 3


class NotAuthorizedError(RequestError):
    """The caller may not do this."""

    name = "NotAuthorized"
    code = 4


class LimitExceededError(RequestError):
    """A documented limit would be exceeded."""

    name = "LimitExceeded"
    code = 5


class NotSupportedError(RequestError):
    """This service or this scheme cannot do that."""

    name = "NotSupported"
    code = 6


class AttemptError(ConnError):
    """The world said no; `reason` is what `StateReason` will say."""

    reason: ClassVar[str]


class TemporaryError(AttemptError):
    """The next attempt may succeed."""


class MissingError(TemporaryError):
    """The directory, device or image is not there (yet)."""

    name = "Missing"
    code = 20
    reason = "not-found"


class UnreachableError(TemporaryError):
    """The server cannot be reached."""

    name = "Unreachable"
    code = 21
    reason = "server-unreachable"


class TimedOutError(TemporaryError):
    """No answer came within the documented time."""

    name = "TimedOut"
    code = 22
    reason = "timed-out"


class BusyError(TemporaryError):
    """Somebody else uses what this needs."""

    name = "Busy"
    code = 23
    reason = "busy"


class TroubleError(TemporaryError):
    """An attempt failed in a way that has no better name; the message has the tool's words."""

    name = "Failed"
    code = 24
    reason = "attempt-failed"


class NoNetworkError(TemporaryError):
    """This host has no way to the server: no route, or an interface that is down."""

    name = "NoNetwork"
    code = 25
    reason = "network-unreachable"


class NoAddressError(TemporaryError):
    """There is a route, and this host has no address to use on it (yet)."""

    name = "NoAddress"
    code = 26
    reason = "no-address"


class NameResolutionError(TemporaryError):
    """The server's name could not be resolved."""

    name = "NameResolution"
    code = 27
    reason = "name-resolution"


class ServerRefusedError(TemporaryError):
    """The server is there, and nothing answers on that port."""

    name = "ServerRefused"
    code = 28
    reason = "server-refused"


class StaleError(TemporaryError):
    """The server has put something else where the storage was; what is connected is worthless."""

    name = "Stale"
    code = 29
    reason = "stale"


class InitiatorError(TemporaryError):
    """The service of this host that makes such connections, such as iscsid, is not there."""

    name = "InitiatorDown"
    code = 30
    reason = "initiator-down"


class PermanentError(AttemptError):
    """The same answer would come again."""


class ServerSaysNoError(PermanentError):
    """The same answer would come again, unless the server has only just begun to serve."""


class RefusedError(PermanentError):
    """The server or the kernel refuses this."""

    name = "Refused"
    code = 40
    reason = "refused"


class AuthenticationError(PermanentError):
    """The credentials are wrong or missing."""

    name = "AuthenticationFailed"
    code = 41
    reason = "authentication"


class UnusableError(PermanentError):
    """This machine lacks what it takes: a kernel module, a tool, an enabled driver."""

    name = "Unusable"
    code = 42
    reason = "not-usable"


class InternalError(PermanentError):
    """A defect of this service, contained to one connection; the journal has the details."""

    name = "Internal"
    code = 43
    reason = "internal-error"


class NotOfferedError(ServerSaysNoError):
    """The server is there, and has no such export, target or subsystem."""

    name = "NotOffered"
    code = 44
    reason = "not-offered"


class AccessDeniedError(ServerSaysNoError):
    """The server has it, and not for this host."""

    name = "AccessDenied"
    code = 45
    reason = "access-denied"


class ProtocolError(ServerSaysNoError):
    """The server does not speak the protocol, or the version, that is asked for."""

    name = "ProtocolNotSupported"
    code = 46
    reason = "protocol"


class StoreError(ConnError):
    """The records cannot be read or made durable."""

    name = "StoreFailed"
    code = 60
