"""What a caller may ask of a stream, and how each is carried out inside a transaction.

A command becomes one event, or none if there was nothing to do. Plain commands need to know nothing
of the stream, so a whole batch of them is set-based; the others look before they write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from eventmeta.codec import Change
from eventmeta.dialects.statement import Program, recordset
from eventmeta.errors import AppendRejected, EventIdReused, ItemAlreadyPopped
from eventmeta.events import (
    ITEM_POPPED,
    ITEMS_ADDED,
    ITEMS_REPLACED,
    METADATA_DELETED,
    METADATA_SET,
    SESSION_CLEARED,
    RecordedEvent,
    StreamType,
)

if TYPE_CHECKING:
    from eventmeta.statements import Statements


class StreamKey(NamedTuple):
    """The identity of a stream, in the order of its key."""

    stream_id: str
    stream_type: StreamType = "session"


class Fact(NamedTuple):
    """What a command has to record."""

    type: str
    data: dict[str, Any]


@dataclass(kw_only=True)
class Command:
    """A request to append to one stream.

    Attributes:
        stream: The stream.
        event_id: The id of the event it becomes.
        may_be_recorded: It may have been carried out before: the caller gave the id, or the outcome
            of an attempt is unknown.
        expected_version: The version the stream must be at.
        actor: Who asks.
        context: JSON text of the context.
    """

    stream: StreamKey
    event_id: str
    may_be_recorded: bool = False
    expected_version: int | None = None
    actor: str | None = None
    context: str | None = None

    creates_session: ClassVar[bool] = False
    type: ClassVar[str]

    def carry_out(self, sql: Statements) -> Program[Fact | None]:
        """Do what there is to do, and say what to record."""
        raise NotImplementedError

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Why ``recorded``, found under this command's event id, is not its earlier outcome."""
        if recorded.type != self.type:
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """About how many bytes it adds to the parameters of a batch."""
        return 512


@dataclass(kw_only=True)
class Append(Command):
    """Append what is known beforehand: an event of the caller's own making, for example."""

    fact: Fact
    data_size: int = 0

    def carry_out(self, sql: Statements) -> Program[Fact | None]:
        """Record it."""
        yield from ()
        return self.fact

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """The very same facts must be recorded."""
        if (recorded.type, recorded.data) != self.fact:
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """The data's, and some."""
        return self.data_size + 512


@dataclass(kw_only=True)
class SetMetadata(Append):
    """Merge metadata into a session, which is created if need be."""

    creates_session: ClassVar[bool] = True

    @classmethod
    def fact_of(cls, changes: list[Change]) -> Fact:
        """What it records."""
        return Fact(METADATA_SET, {"changes": changes})


@dataclass(kw_only=True)
class AddItems(Append):
    """Add items to a session, which is created if need be.

    The batch inserts the items of all its commands together, and completes the fact with their ids.
    """

    items: Sequence[str]
    fact: Fact = Fact(ITEMS_ADDED, {})

    creates_session: ClassVar[bool] = True

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """As many items must have been added."""
        if recorded.type != ITEMS_ADDED or len(recorded.data["item_ids"]) != len(self.items):
            return EventIdReused(self.event_id, recorded.type)
        return None

    @property
    def size(self) -> int:
        """The items', and some."""
        return sum(map(len, self.items)) + 512


@dataclass(kw_only=True)
class DeleteMetadata(Command):
    """Remove keys of a session: the given ones, or all."""

    keys: Sequence[str] | None

    type: ClassVar[str] = METADATA_DELETED

    def carry_out(self, sql: Statements) -> Program[Fact | None]:
        """Name in the event exactly what was there to remove."""
        removed = yield from _keys(sql, self.stream.stream_id, self.keys)
        return Fact(METADATA_DELETED, {"changes": _removals(removed)}) if removed else None


@dataclass(kw_only=True)
class PopItem(Command):
    """Remove the latest item of a session.

    Attributes:
        popped: Its id and text, once it was removed.
    """

    popped: tuple[int, str] | None = field(default=None, init=False)

    type: ClassVar[str] = ITEM_POPPED

    def carry_out(self, sql: Statements) -> Program[Fact | None]:
        """Upstream's own writers keep out while the session's row is locked."""
        self.popped = None
        session_id = self.stream.stream_id
        yield sql.lock_session(session_id=session_id)
        rows = yield sql.last_items(session_id=session_id, count=1)
        if not rows:
            return None
        item_id, text = rows[0]
        yield sql.delete_items(items=recordset([{"id": item_id}]))
        self.popped = item_id, text
        return Fact(ITEM_POPPED, {"item_id": item_id})

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """The item's text is in no table any more; only this attempt may still hold it."""
        if recorded.type != self.type:
            return EventIdReused(self.event_id, recorded.type)
        item_id = recorded.data["item_id"]
        if self.popped is None or self.popped[0] != item_id:
            return ItemAlreadyPopped(self.event_id, item_id)
        return None


@dataclass(kw_only=True)
class ClearSession(Command):
    """Remove a session's items, and its metadata and row unless ``keep_metadata``."""

    keep_metadata: bool

    type: ClassVar[str] = SESSION_CLEARED

    def carry_out(self, sql: Statements) -> Program[Fact | None]:
        """Name in the event every item and key that was there."""
        session_id = self.stream.stream_id
        exists = yield sql.lock_session(session_id=session_id)
        rows = yield sql.item_ids(session_id=session_id)
        item_ids = [row[0] for row in rows]
        keys: list[str] = []
        if not self.keep_metadata:
            keys = yield from _keys(sql, session_id, None)
        if item_ids:
            yield sql.delete_items(items=recordset([{"id": item_id} for item_id in item_ids]))
        if not self.keep_metadata:
            yield sql.delete_session(session_id=session_id)
        if not item_ids and not keys and (self.keep_metadata or not exists):
            return None
        return Fact(SESSION_CLEARED, {"item_ids": item_ids, "changes": _removals(keys)})


@dataclass(kw_only=True)
class ReplaceItems(Command):
    """Put other items in the place of a session's last ones, if those are still what they were.

    Attributes:
        expected: Id and text of the items to replace, latest last; None for all there are.
        expired: Ids of earlier items to remove as well.
        items: What takes their place.
        replaced: Whether it was done.
    """

    expected: Sequence[tuple[int, str]] | None
    items: Sequence[str]
    expired: Sequence[int] = ()
    replaced: bool = field(default=False, init=False)

    type: ClassVar[str] = ITEMS_REPLACED

    def carry_out(self, sql: Statements) -> Program[Fact | None]:
        """Compare under the lock of the session's row, then replace."""
        self.replaced = False
        session_id = self.stream.stream_id
        yield sql.lock_session(session_id=session_id)
        if self.expected is None:
            rows = yield sql.item_ids(session_id=session_id)
            gone = [row[0] for row in rows]
        else:
            rows = yield sql.last_items(session_id=session_id, count=len(self.expected))
            if [tuple(row) for row in reversed(rows)] != [tuple(item) for item in self.expected]:
                return None
            gone = [*self.expired, *(item_id for item_id, _ in self.expected)]
        added = yield from self._insert(sql, at=gone[-1] if self.expected else None)
        if gone:
            yield sql.delete_items(items=recordset([{"id": item_id} for item_id in gone]))
        self.replaced = True
        return Fact(ITEMS_REPLACED, {"removed_item_ids": gone, "item_ids": added})

    def _insert(self, sql: Statements, at: int | None) -> Program[list[int]]:
        if not self.items:
            return []
        session_id = self.stream.stream_id
        yield sql.create_sessions(sessions=recordset([{"session_id": session_id}]))
        before = yield sql.item_ids(session_id=session_id)
        rows = recordset(
            [
                {"n": n, "session_id": session_id, "message_data": text}
                for n, text in enumerate(self.items)
            ]
        )
        for statement in sql.insert_items if at is None else sql.insert_items_at:
            yield statement(items=rows, at=at)
        after = yield sql.item_ids(session_id=session_id)
        known = {row[0] for row in before}
        return [row[0] for row in after if row[0] not in known]

    def repetition(self, recorded: RecordedEvent) -> AppendRejected | None:
        """It was done."""
        self.replaced = recorded.type == self.type
        return super().repetition(recorded)


def _keys(sql: Statements, session_id: str, keys: Sequence[str] | None) -> Program[list[str]]:
    if keys is None:
        rows = yield sql.all_keys(session_id=session_id)
    else:
        wanted = recordset([{"key": key} for key in keys])
        rows = yield sql.present_keys(session_id=session_id, keys=wanted)
    return sorted(row[0] for row in rows)


def _removals(keys: Sequence[str]) -> list[Change]:
    return [[key, None] for key in keys]
