"""The errors about a call: one tree under `EventMetaError`, which the reference draws."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AppendRejected",
    "ContextLost",
    "EventIdReused",
    "EventMetaError",
    "InvalidIdentifier",
    "InvalidInput",
    "InvalidKey",
    "InvalidPoint",
    "InvalidValue",
    "ItemAlreadyPopped",
    "MissingExtra",
    "SessionNotFound",
    "StoreClosed",
    "StructuredMetadataOff",
    "UnknownOption",
    "UserMismatch",
    "UserNotFound",
    "UserUnknown",
    "ValueTooLarge",
    "VersionConflict",
]


class EventMetaError(Exception):
    """The base of all errors that eventmeta raises. They can be copied and pickled."""

    __module__ = "eventmeta"  # where apps import it from, which a traceback should show

    def __init_subclass__(cls) -> None:
        """Have the error say that it lives where apps import it from."""
        if cls.__module__.startswith("eventmeta.core."):
            cls.__module__ = "eventmeta"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


class InvalidInput(EventMetaError, ValueError):
    """An argument was refused before any I/O; nothing was changed."""


class UnknownOption(InvalidInput, TypeError):
    """A call was given a keyword argument that it does not take; nothing was changed.

    Attributes:
        call: The function or class that was called.
        option: The keyword.
    """

    def __init__(self, call: str, option: str, remedy: str) -> None:
        self.call = call
        self.option = option
        super().__init__(f"{call} takes no option {_shown(option)}: {remedy}")


class InvalidIdentifier(InvalidInput):
    """A session id, user id, run id, actor, event id or type, or table name cannot be used.

    Attributes:
        what: The kind of name that was given, such as ``"session id"``.
        value: The identifier as given.
    """

    def __init__(self, what: str, value: object, problem: str) -> None:
        self.what = what
        self.value = value
        super().__init__(f"{what} {_shown(value)} {problem}")


class InvalidKey(InvalidInput):
    """A metadata key cannot be used.

    Attributes:
        key: The key as given.
    """

    def __init__(self, key: object, problem: str) -> None:
        self.key = key
        super().__init__(f"metadata key {_shown(key)} {problem}")


class InvalidValue(InvalidInput):
    """A value is not JSON, or not JSON that every database keeps exactly.

    Attributes:
        path: The place in the metadata, such as ``prefs.when`` or ``tags[2]``.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(f"value at {path}: {problem}")


class ValueTooLarge(InvalidValue):
    """A value, an item, a context, or the whole input of one call is too long.

    Attributes:
        size: Its length in bytes of JSON.
        limit: The most bytes allowed: the store's ``max_value_bytes``, or a limit that is the same
            for all stores.
    """

    def __init__(self, path: str, size: int, limit: int, remedy: str | None = None) -> None:
        self.size = size
        self.limit = limit
        remedy = remedy or "open the store with a larger max_value_bytes"
        super().__init__(
            path,
            f"{size:,} bytes of JSON are over the limit of {limit:,}; keep large content elsewhere "
            f"and store a reference, or {remedy}",
        )


class InvalidPoint(InvalidInput):
    """An ``as_of``, or an end of a ``diff``, does not name a point in history."""


class UserUnknown(InvalidInput):
    """The session takes its user from a run, and no run has used it yet."""

    def __init__(self) -> None:
        super().__init__(
            "this session takes its user from the context of a run, and no run has used it yet: "
            "open it with user_id=, or pass wrapper= (the Runner does, but upstream's compaction "
            "session does not)"
        )


class UserMismatch(InvalidInput):
    """A call is on behalf of another user than its session or store is; nothing was changed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class AppendRejected(EventMetaError):
    """The log refused the event; nothing was changed."""


class VersionConflict(AppendRejected):
    """The stream is not at the version that the caller expected; nothing was changed.

    Attributes:
        stream_id: The stream, which is the session's id for a session.
        expected: The version given as ``expected_version``.
        actual: The version the stream is at. Read again, decide again, and retry with this version.
    """

    def __init__(self, stream_id: str, expected: int, actual: int) -> None:
        self.stream_id = stream_id
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"stream {stream_id!r} is at version {actual}, not at the expected {expected}: "
            "read the session again, decide again, and retry with its version"
        )


class EventIdReused(AppendRejected):
    """The event id was already used in this stream for another change; nothing was changed.

    Attributes:
        event_id: The event id.
        recorded_type: The type of the event that is recorded under it.
    """

    def __init__(self, event_id: str, recorded_type: str) -> None:
        self.event_id = event_id
        self.recorded_type = recorded_type
        super().__init__(
            f"event id {event_id} already stands for another {recorded_type!r} change of this "
            "stream; an event id may be used again only to retry the very same change"
        )


class ItemAlreadyPopped(AppendRejected):
    """An earlier attempt with this event id has removed the item; its content is not kept.

    Attributes:
        event_id: The event id.
        item_id: The row id of the removed item.
    """

    def __init__(self, event_id: str, item_id: int) -> None:
        self.event_id = event_id
        self.item_id = item_id
        super().__init__(
            f"item {item_id} was already removed under event id {event_id}; its content is no "
            "longer stored. To remove one more item, call pop_item() with a new event id"
        )


class SessionNotFound(AppendRejected):
    """This user can see no such session; nothing was changed.

    The error is the same if the session belongs to another user and if it does not exist.

    Attributes:
        session_id: The id of the session.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(
            f"there is no session {session_id!r} for this user: check the id, make a session of "
            "the user's own with create_session(), or have its owner transfer it"
        )


class UserNotFound(AppendRejected):
    """The caller can see no such user; nothing was changed.

    Attributes:
        user_id: The id of the user.
    """

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        super().__init__(
            f"there is no user {user_id!r} that this store can see: ask for the user that it was "
            "opened for, or open the store without a user"
        )


class ContextLost(EventMetaError, RuntimeError):
    """A block of `acting_as` ended in another context than it began in; no write had its actor.

    A synchronous dependency of FastAPI causes this, because it runs in a thread with a copy of the
    context. Let the dependency return ``acting_as(…)``, and let the endpoint enter it.

    Attributes:
        actor: The actor that was to be recorded.
    """

    def __init__(self, actor: str) -> None:
        self.actor = actor
        super().__init__(
            f"acting_as({actor!r}) ended in another context than it began in, so nothing was "
            "attributed to this actor: a synchronous FastAPI dependency returns acting_as(…), and "
            "the endpoint enters it with `with`; or make the dependency `async def`, or pass "
            "actor= to each write"
        )


class StoreClosed(EventMetaError):
    """The store was closed; open a new one."""

    def __init__(self) -> None:
        super().__init__("this store is closed: make a new MetadataStore to go on")


class StructuredMetadataOff(EventMetaError):
    """The call needs the structured tables, and this store or session does not keep them.

    Attributes:
        call: The function that was called.
    """

    def __init__(self, call: str) -> None:
        self.call = call
        super().__init__(
            f"{call} reads the structured tables, which are off: pass structured_metadata=True to "
            "every MetadataStore and MetadataSession of this database, and create the tables"
        )


class MissingExtra(EventMetaError, ImportError):
    """The call needs a package that is not installed."""

    def __init__(self, package: str, extra: str | None) -> None:
        wanted = f"'eventmeta[{extra}]'" if extra else package
        super().__init__(f"this needs {package}: pip install {wanted}")


def _restored(
    kind: type[EventMetaError], args: tuple[Any, ...], fields: dict[str, Any]
) -> EventMetaError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


def _shown(value: object) -> str:
    """Return ``value`` as one short line, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
