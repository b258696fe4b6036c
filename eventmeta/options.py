"""What every write takes besides its own arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmeta.access import Access
from eventmeta.actor import current_actor
from eventmeta.codec import context_text
from eventmeta.errors import InvalidInput
from eventmeta.identifiers import check_actor, check_event_id, new_event_id


class WriteOptions(TypedDict, total=False):
    """Keyword arguments of all write methods; each may be left out.

    Attributes:
        expected_version: Write only if the session is at this version (0: nothing recorded yet),
            else raise `VersionConflict`.
        actor: Who writes; the ambient actor (`acting_as`) if left out.
        event_id: A UUID under which the change is recorded at most once, so that a call whose
            outcome is unknown can be repeated.
        connection: Write inside this transaction of the caller's, and commit or roll back with it.
    """

    expected_version: int | None
    actor: str | None
    event_id: str | UUID | None
    connection: AsyncConnection | AsyncSession | None


_OPTIONS = WriteOptions.__annotations__.keys()


def command_fields(
    options: WriteOptions, access: Access, extra_context: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """``options``, ``access`` and the ambient actor as the fields of a command.

    Raises:
        InvalidInput: An option cannot be used.
        TypeError: There is no such option.
    """
    if unknown := options.keys() - _OPTIONS:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    expected = options.get("expected_version")
    if expected is not None and (type(expected) is not int or expected < 0):
        raise InvalidInput(f"expected_version {expected!r} is no version: give 0, 1, 2 …")
    ambient = current_actor()
    actor = options.get("actor")
    event_id = options.get("event_id")
    context = {**ambient.context, **extra_context}
    return {
        "event_id": new_event_id() if event_id is None else check_event_id(event_id),
        "may_be_recorded": event_id is not None,
        "expected_version": expected,
        "actor": ambient.name if actor is None else check_actor(actor),
        "context": context_text(context),
        "access": access,
    }
