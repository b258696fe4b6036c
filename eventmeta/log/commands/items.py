"""Commands to a session's items, and to the session as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from eventmeta.core.errors import AppendRejected, EventIdReused, ItemAlreadyPopped, SessionNotFound
from eventmeta.core.events import (
    ITEM_POPPED,
    ITEMS_ADDED,
    ITEMS_REPLACED,
    SESSION_CLEARED,
    RecordedEvent,
)
from eventmeta.dialects.statement import Program, Row, recordset
from eventmeta.log.commands.base import Append, Command, EventData
from eventmeta.log.commands.metadata import keys_of, removals
from eventmeta.log.commands.statements import CommandStatements
from projections.items import may_be_tool_item

_ITEMS_ADDED = EventData(ITEMS_ADDED, {})


@dataclass(kw_only=True)
class AddItems(Append):
    """A command to add items to a session, which is created if it does not exist.

    The batch inserts the items of all its commands together, and completes the fact with their ids.

    Attributes:
        items: The texts of the items.
        item_ids: The ids of their rows, once these are known.
    """

    items: Sequence[str]
    fact: EventData = _ITEMS_ADDED
    item_ids: Sequence[int] | None = field(default=None, init=False)

    creates_session: ClassVar[bool] = True
    locks_row: ClassVar[bool] = True

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` added as many items."""
        if recorded.type != ITEMS_ADDED or len(recorded.data["item_ids"]) != len(self.items):
            return EventIdReused(self.event_id, recorded.type)
        self.item_ids = recorded.data["item_ids"]
        return None

    @property
    def size(self) -> int:
        """Return the size of the items and companions, plus an allowance for the row."""
        own = sum(map(len, self.items)) + 512
        return own + sum(each.size for each in self.companions) if self.companions else own


class Message(NamedTuple):
    """An item whose id is known only after its command is carried out.

    Attributes:
        added: The command.
        place: The index of the item in the command.
    """

    added: AddItems
    place: int


@dataclass(kw_only=True)
class RecordUsage(Append):
    """A command to record the usage of a run, as a companion of the run's new items if any.

    Attributes:
        message: The user message that caused the usage, if it is added only now; otherwise the fact
            has the message's id.
    """

    message: Message | None = None

    @property
    def completed(self) -> EventData:
        """Return the fact, with the id of the message if the id is known by now."""
        if self.message is None or self.message.added.item_ids is None:
            return self.fact
        message_id = self.message.added.item_ids[self.message.place]
        return EventData(self.fact.type, {**self.fact.data, "user_message_id": message_id})

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` is of the same type.

        Data is not compared: the event id was made for this usage, and only the message's id can
        differ.
        """
        if recorded.type != self.fact.type:
            return EventIdReused(self.event_id, recorded.type)
        return None


def may_add_tools(command: Command) -> bool:
    """Return whether there may be a tool item among the items that ``command`` adds."""
    return isinstance(command, AddItems) and any(map(may_be_tool_item, command.items))


def insert_items(sql: CommandStatements, items: str, count: int) -> Program[Sequence[Row]]:
    """Insert the record set ``items``, and return the ``session_id, id`` of each.

    Exactly ``count`` rows must be inserted.
    """
    *before, last = sql.insert_items
    for statement in before:
        yield statement(items=items)
    return (yield last(items=items).affecting(count))


def _delete(sql: CommandStatements, item_ids: Sequence[int]) -> Program[None]:
    if item_ids:
        gone = recordset([{"id": item_id} for item_id in item_ids])
        yield sql.delete_items(items=gone).affecting(len(item_ids))


@dataclass(kw_only=True)
class PopItem(Command):
    """A command to remove the latest item of a session.

    Attributes:
        popped: The id and text of the item, once it is removed.
    """

    popped: tuple[int, str] | None = field(default=None, init=False)

    type: ClassVar[str] = ITEM_POPPED
    locks_row: ClassVar[bool] = True

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Delete the latest item under the lock of the session's row.

        The lock keeps upstream's own writers out.
        """
        self.popped = None
        session_id = self.stream.stream_id
        yield sql.lock_session(session_id=session_id)
        rows = yield sql.last_items(session_id=session_id, count=1)
        if not rows:
            return None
        item_id, text = rows[0]
        yield sql.delete_items(items=recordset([{"id": item_id}])).affecting(1)
        self.popped = item_id, text
        return EventData(ITEM_POPPED, {"item_id": item_id})

    def when_invisible(self) -> None:
        """Return None, as there is no item to remove."""
        self.popped = None

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless this command still holds the item that was removed.

        The item's text is in no table any more.
        """
        if recorded.type != self.type:
            return EventIdReused(self.event_id, recorded.type)
        item_id = recorded.data["item_id"]
        if self.popped is None or self.popped[0] != item_id:
            return ItemAlreadyPopped(self.event_id, item_id)
        return None


@dataclass(kw_only=True)
class ClearSession(Command):
    """A command to remove a session's items, and its metadata and row unless ``keep_metadata``."""

    keep_metadata: bool

    type: ClassVar[str] = SESSION_CLEARED
    locks_row: ClassVar[bool] = True

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Delete everything, and name every deleted item and key in the event."""
        session_id = self.stream.stream_id
        exists = yield sql.lock_session(session_id=session_id)
        rows = yield sql.item_ids_of_all_branches(session_id=session_id)
        item_ids = [row[0] for row in rows]
        keys: list[str] = []
        if not self.keep_metadata:
            keys = yield from keys_of(sql, session_id, None)
        yield from _delete(sql, item_ids)
        if not self.keep_metadata:
            yield sql.delete_session(session_id=session_id).affecting(len(exists))
        if not item_ids and not keys and (self.keep_metadata or not exists):
            return None
        return EventData(SESSION_CLEARED, {"item_ids": item_ids, "changes": removals(keys)})

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error if ``recorded`` removed metadata that this command keeps."""
        kept = not recorded.data.get("changes")
        if recorded.type != self.type or (self.keep_metadata and not kept):
            return EventIdReused(self.event_id, recorded.type)
        return None


@dataclass(kw_only=True)
class ReplaceItems(Command):
    """A command to replace a session's last items, if they have not changed meanwhile.

    Attributes:
        expected: The id and text of the items to replace, latest last; None for all items.
        expired: The ids of earlier items to remove as well.
        items: The new items.
        replaced: Whether the items were replaced.
    """

    expected: Sequence[tuple[int, str]] | None
    items: Sequence[str]
    expired: Sequence[int] = ()
    replaced: bool = field(default=False, init=False)

    type: ClassVar[str] = ITEMS_REPLACED
    locks_row: ClassVar[bool] = True

    def execute(self, sql: CommandStatements) -> Program[EventData | None]:
        """Compare the items under the lock of the session's row, then replace them."""
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
            gone = yield from self._still_there(sql)
        if gone or self.items:
            yield sql.touch_sessions(sessions=recordset([{"session_id": session_id}]))
        added = yield from self._insert(sql, at=gone[-1] if self.expected else None)
        yield from _delete(sql, gone)
        self.replaced = True
        return EventData(ITEMS_REPLACED, {"removed_item_ids": gone, "item_ids": added})

    @property
    def begins(self) -> bool:
        """Return whether all items are replaced, as there may be none."""
        return self.expected is None

    def when_invisible(self) -> AppendRejected | None:
        """Return `SessionNotFound` if all items are to be replaced; otherwise nothing is done."""
        self.replaced = False
        return SessionNotFound(self.stream.stream_id) if self.expected is None else None

    def _insert(self, sql: CommandStatements, at: int | None) -> Program[list[int]]:
        if not self.items:
            return []
        session_id = self.stream.stream_id
        before = yield sql.item_ids(session_id=session_id)
        assert self.recorded_at is not None
        # The time of the event, so that items added later in this transaction come after these.
        about = {
            "session_id": session_id,
            "recorded_at": sql.dialect.time_text(self.recorded_at),
        }
        rows = recordset(
            [{"n": n, "message_data": text, **about} for n, text in enumerate(self.items)]
        )
        if at is None:
            yield from insert_items(sql, rows, len(self.items))
        else:
            yield sql.insert_items_at(items=rows, at=at).affecting(len(self.items))
        after = yield sql.item_ids(session_id=session_id)
        known = {row[0] for row in before}
        return [row[0] for row in after if row[0] not in known]

    def _still_there(self, sql: CommandStatements) -> Program[list[int]]:
        """Return the ids to delete. Expired items that are gone already are left out."""
        expired = list(self.expired)
        if expired:
            rows = yield sql.item_ids(session_id=self.stream.stream_id)
            present = {row[0] for row in rows}
            expired = [item_id for item_id in expired if item_id in present]
        return [*expired, *(item_id for item_id, _ in self.expected or ())]

    def check_retry(self, recorded: RecordedEvent) -> AppendRejected | None:
        """Return an error unless ``recorded`` is of the same type, and set `replaced`."""
        self.replaced = recorded.type == self.type
        return super().check_retry(recorded)
