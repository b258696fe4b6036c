"""The relations of items that the read models of conversations fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    FromClause,
    and_,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    union,
    union_all,
)

from eventmeta.dialects.base import Dialect
from eventmeta.dialects.items import MessageRelation
from eventmeta.read_models.item_provenance import PROVENANCE, named_in, provenance_by_event
from eventmeta.read_models.spelling import readable
from eventmeta.tables.tables import Tables
from projections import MESSAGE_COLUMNS, AnySelect
from projections.items import classified, in_turns
from projections.tool_calls import completed_calls

STORED = ("id", "session_id", "message_data", "created_at")


@dataclass(frozen=True)
class ItemRelations:
    """The relations of items over one store's tables.

    Attributes:
        tables: The tables.
        dialect: Their database.
        spelled: Whether the parameter ``spelled`` gives the texts of some items.
    """

    tables: Tables
    dialect: Dialect
    spelled: bool = False

    def of_sessions(self, given: FromClause | None = None) -> MessageRelation:
        """Return all items of the sessions ``given`` by ``session_id``, or of all sessions."""
        stored = self._readable(self.stored(given))
        added = provenance_by_event(self.tables, self.dialect, given)
        same = and_(added.c.session_id == stored.c.session_id, added.c.item_id == stored.c.id)
        provenance = [added.c[name] for name in PROVENANCE]
        rows = self._rows(stored, provenance, literal_column("0"), cast(null(), BigInteger))
        return self._in_turns(rows.select_from(stored.outerjoin(added, same)))

    def added(self, source: FromClause) -> MessageRelation:
        """Return the items that are just being added.

        Args:
            source: ``id, session_id, message_data, created_at`` of each, the ``context`` of its
                event, and ``turn_before, parent_before`` of its session.
        """
        return self._in_turns(self._added(source))

    def added_and_linked(
        self, source: FromClause, removed: FromClause | None = None
    ) -> MessageRelation:
        """Return the items that are just being added, and the stored items linked with them.

        A call is linked with its output.

        Args:
            source: As for `added`.
            removed: ``session_id, id`` of removed outputs, whose calls are returned as well.
        """
        new = self._added(source)
        arrived = MessageRelation(classified(self._relation(new, "arrived")), self.dialect)
        links = self._links(completed_calls(arrived), removed)
        return self._in_turns(union_all(new, self._linked(links)))

    def linked(self, links: FromClause, removed: FromClause) -> FromClause:
        """Return the stored items with ``links``, and the calls of the ``removed`` outputs."""
        return self._linked_items(self._links(select(*links.c), removed))

    def _links(self, known: AnySelect, removed: FromClause | None) -> FromClause:
        """Return ``session_id, call_id``: the ``known`` ones, and those ``removed`` completed."""
        links, row = [known], self._tool_calls
        if removed is not None:
            session_id, item_id = removed.c["session_id", "id"]
            lost = and_(row.session_id == session_id, row.output_raw_event_id == item_id)
            links.append(self._look_up_calls(removed, "output", lost, "session_id", "call_id"))
        return union(*links).cte("links")

    def _readable(self, stored: FromClause) -> FromClause:
        return readable(self.dialect, stored) if self.spelled else stored

    def _in_turns(self, rows: Any) -> MessageRelation:
        turned = in_turns(self._relation(rows, "items"))
        return MessageRelation(turned.cte("in_turns"), self.dialect)

    def _look_up_calls(
        self, wanted: FromClause, by: str, on: ColumnElement[bool], *columns: str
    ) -> AnySelect:
        """Return the ``columns`` of tool calls, found by the index on session and ``by``."""
        row = self._tool_calls
        index = f"idx_{row.id.table.name}_session_{by}"
        return self.dialect.look_up(wanted, [row[name] for name in columns], on, index=index)

    def _linked(self, links: FromClause) -> AnySelect:
        """Return the stored calls and outputs of ``links``, with known columns of their rows."""
        stored = self._readable(self._linked_items(links))
        provenance = [stored.c[name] for name in PROVENANCE]
        return self._rows(stored, provenance, stored.c.turn, stored.c.parent_raw_event_id)

    def _linked_items(self, links: FromClause) -> FromClause:
        row = self._tool_calls
        same = and_(row.session_id == links.c.session_id, row.call_id == links.c.call_id)
        known = ("id", "output_raw_event_id", "turn", "parent_raw_event_id", *PROVENANCE)
        found = self._look_up_calls(links, "call", same, *known).subquery("found")
        zero: ColumnElement[int] = literal_column("0")
        one: ColumnElement[int] = literal_column("1")
        halves = union_all(select(zero.label("of_output")), select(one)).subquery("halves")
        item_id = case((halves.c.of_output == 1, found.c.output_raw_event_id), else_=found.c.id)
        both = (
            select(*found.c, item_id.label("item_id"))
            .select_from(found, halves)
            .where(item_id.is_not(None))
            .subquery("linked")
        )
        message = self.tables.messages.c
        return self.dialect.look_up(
            both,
            [message[name] for name in STORED],
            message.id == both.c.item_id,
            *(both.c[name] for name in (*PROVENANCE, "turn", "parent_raw_event_id")),
        ).subquery("linked_items")

    @property
    def _conversation(self) -> Any:
        assert self.tables.conversation is not None
        return self.tables.conversation.table.c

    @property
    def _tool_calls(self) -> Any:
        assert self.tables.tool_calls is not None
        return self.tables.tool_calls.table.c

    def _added(self, source: FromClause) -> AnySelect:
        source = self._readable(source)
        provenance = [named_in(self.dialect, source.c.context, name) for name in PROVENANCE]
        return self._rows(source, provenance, source.c.turn_before, source.c.parent_before)

    def _rows(
        self,
        stored: FromClause,
        provenance: Sequence[ColumnElement[Any]],
        turn_before: ColumnElement[Any],
        parent_before: ColumnElement[Any],
    ) -> AnySelect:
        item = self.dialect.item(self.tables.messages, stored.c.message_data)
        values = (
            *(stored.c.id, stored.c.session_id, stored.c.created_at, item),
            *(*provenance, turn_before, parent_before),
        )
        return select(
            *(value.label(name) for name, value in zip(MESSAGE_COLUMNS, values, strict=True))
        )

    def _relation(self, rows: Any, name: str) -> MessageRelation:
        """Return ``rows`` as a relation that the database evaluates once.

        Without OFFSET, databases would parse each item again for every field. It is a CTE, and not
        nested in the fold, as SQLite's parser limits the depth.
        """
        if isinstance(rows, CompoundSelect):
            rows = select(rows.cte(f"all_{name}"))
        return MessageRelation(rows.offset(0).cte(name), self.dialect)

    def stored(self, given: FromClause | None = None) -> FromClause:
        """Return ``STORED`` of all items of the sessions ``given``, or of all sessions."""
        message = self.tables.messages.c
        columns = [message[name] for name in STORED]
        main = self.dialect.in_main_branch(self.tables.messages)
        if given is None:
            return select(*columns).where(*main).subquery("stored")
        same = and_(message.session_id == given.c.session_id, *main)
        return self.dialect.look_up(given, columns, same).subquery("stored")

    def states(self, sessions: FromClause) -> AnySelect:
        """Return the query for the state of sessions before some items are added.

        Args:
            sessions: ``session_id``; ``at``, the time of the first new item, or NULL; ``first``,
                its id, or NULL (without this column, the new items cannot be seen yet); ``gone``,
                the id of an item just removed, or NULL (optional); ``moved``, whether more may have
                happened than can be seen (optional).

        Returns:
            ``session_id, turn, parent, stale``. A session is stale if its tables do not end with
            its last item: someone else wrote to it, or the tables are younger than the session.
        """
        times = self._ends(sessions).offset(0).subquery("times").c
        message, said = self.tables.messages.c, self._conversation
        latest = select(func.max(message.id)).where(
            message.session_id == times.session_id,
            message.created_at == times.item_at,
            *self._before(times),
            *self.dialect.in_main_branch(self.tables.messages),
        )
        opening = func.coalesce(said.parent_raw_event_id, said.id)
        parent = (
            select(case((said.turn > 0, opening)))
            .where(said.session_id == times.session_id)
            .order_by(said.turn.desc())
            .limit(1)
        )
        ends = select(
            *times,
            self._now(parent).label("parent"),
            self._now(latest).label("last_item"),
        )
        state = ends.offset(0).subquery("state").c
        return select(
            state.session_id,
            func.coalesce(state.turn, 0).label("turn"),
            state.parent,
            self._is_stale(state).label("stale"),
        )

    def _ends(self, sessions: FromClause) -> AnySelect:
        """Return the query for the last entry of each session in each table.

        Each entry is read from the end of an index, whatever the planner knows of the table's size.
        """
        given, said, call = sessions.c, self._conversation, self._tool_calls

        def last(row: Any, column: str, *conditions: Any) -> ColumnElement[Any]:
            values = select(row[column]).where(row.session_id == given.session_id, *conditions)
            return self._now(values.order_by(row[column].desc()).limit(1))

        output = call.output_raw_event_id
        before = [*self._before(given), *self.dialect.in_main_branch(self.tables.messages)]
        return select(
            *given,
            last(self.tables.messages.c, "created_at", *before).label("item_at"),
            last(call, "output_raw_event_id", output.is_not(None)).label("last_output"),
            last(said, "turn").label("turn"),
        )

    def _now(self, query: AnySelect) -> ColumnElement[Any]:
        """Return ``query`` as a scalar that sees the current state.

        The outer query is current only for its own tables, so each subquery must say so again.
        """
        return self.dialect.current(query).scalar_subquery()

    def _before(self, sessions: Any) -> list[ColumnElement[bool]]:
        """Return the condition that an item is older than the new ones.

        There is no condition if the new items cannot be seen.
        """
        if "first" not in sessions:
            return []
        return [or_(sessions.first.is_(None), self.tables.messages.c.id < sessions.first)]

    def _is_stale(self, state: Any) -> ColumnElement[Any]:
        said, call = self._conversation, self._tool_calls
        last_item = func.coalesce(state.last_item, 0)
        known = or_(
            last_item.in_([literal_column("0"), func.coalesce(state.last_output, 0)]),
            # Not EXISTS: for that PostgreSQL might read a whole table at once.
            self._now(select(said.id).where(said.id == state.last_item)).is_not(None),
            self._now(select(call.id).where(call.id == state.last_item)).is_not(None),
        )
        gone = func.coalesce(state.gone, 0) if "gone" in state else 0
        lost = and_(state.last_output > last_item, state.last_output != gone)
        moved = [state.moved] if "moved" in state else []
        return case((or_(~known, lost, state.item_at > state.at, *moved), 1), else_=0)
