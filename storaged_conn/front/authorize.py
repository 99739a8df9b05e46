# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may call what: one place through which every call goes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from storaged_conn.core.model import check_cid, check_uri, read_host
from storaged_conn.errors import NotAuthorizedError, NotFoundError
from storaged_conn.front.actions import ACTIONS, Action
from storaged_conn.front.call import Call, ProtocolError
from storaged_conn.front.callers import Caller
from storaged_conn.front.contract import Method
from storaged_conn.front.polkit import Polkit, Verdict
from storaged_conn.names import connection_id
from storaged_conn.unmanaged import View

Question = tuple[Action, Mapping[str, str]]
"""What polkit is asked: the action, and its details."""

REFUSALS: Final[Mapping[Verdict, str]] = {
    Verdict.NO: "polkit does not allow you {action}",
    Verdict.CHALLENGE: "{action} needs an administrator's password, and nothing can ask for it",
    Verdict.DISMISSED: "the question for a password, which {action} needs, was dismissed",
    Verdict.SILENCE: "polkit does not say whether you are allowed {action}",
}


class Authority:
    """Lets root and the service's own user do everything, and asks polkit about the others."""

    def __init__(self, polkit: Polkit, view: Callable[[str], View | None]) -> None:
        """Decide.

        Args:
            polkit: who is asked.
            view: looks up what a call is about.
        """
        self._polkit = polkit
        self._view = view

    def action(self, method: Method) -> Action | None:
        """Say what a method needs; None where everybody may call it.

        Raises:
            NotAuthorizedError: nobody may.
        """
        try:
            return ACTIONS[method.interface, method.name]
        except KeyError:
            text = f"{method.name} has no declared action; nobody may call it"
            raise NotAuthorizedError(text) from None

    def must_ask(self, action: Action | None, caller: Caller) -> bool:
        """Say whether polkit has to allow this to a caller.

        Raises:
            LimitExceededError: polkit is being asked too much about this user already.
        """
        if action is None or caller.trusted:
            return False
        self._polkit.make_room(caller.uid)
        return True

    async def check(self, action: Action, call: Call, arguments: Sequence[object]) -> Action:
        """Let a call pass that polkit allows; returns what was allowed.

        Raises:
            RequestError: it is not allowed, or its arguments cannot be meant.
            ProtocolError: it would be, if the caller let itself be asked for a password.
        """
        action, details = self._question(action, call, arguments)
        verdict = await self._polkit.check(
            call.caller, action, details, interactive=call.interactive
        )
        if verdict is Verdict.YES:
            return action
        if verdict is Verdict.CHALLENGE and not call.interactive:
            text = (
                f"{action} needs an administrator's password, and this call forbids to ask for it"
            )
            raise ProtocolError("InteractiveAuthorizationRequired", f"{text}; allow it, or be root")
        refusal = REFUSALS[verdict].format(action=action)
        raise NotAuthorizedError(f"{refusal}; call this as root, such as by sudo")

    def _question(self, action: Action, call: Call, arguments: Sequence[object]) -> Question:
        match action, arguments:
            case Action.MANAGE, [str(uri), str(cid), _]:
                check_cid(cid)
                check_uri(uri)
                return action, _about(cid, uri)
            case Action.DISCOVER, [str(uri), _]:
                check_uri(uri)
                return action, _about("", uri)
            case Action.UNMANAGE, [str(cid), _]:
                return self._question_of_own(cid, call.caller.uid)
            case _:  # the object itself is meant
                cid = connection_id(call.path) or ""
                view = self._view(cid)
                return action, _about(cid, view.uri if view else "")

    def _question_of_own(self, cid: str, uid: int) -> Question:
        view = self._view(cid)
        if view is None or view.record is None:
            raise NotFoundError(f"connection_id {cid!r} is not managed; see List")
        owner = view.record.owner
        details = {**_about(cid, view.uri), "owner": str(owner)}
        return Action.UNMANAGE if owner == uid else Action.UNMANAGE_ANY, details


def _about(cid: str, uri: str) -> dict[str, str]:
    """Make the details of a question; what a person is shown must not look like something else."""
    scheme = uri.partition(":")[0].lower()
    found = {"connection_id": cid, "scheme": scheme, "host": read_host(uri)}
    return {
        name: "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
        for name, text in found.items()
    }
