"""The checkpoint of each projection, and the lease of the worker that updates it.

A checkpoint is moved in the transaction that writes the rows of the events up to it. That
transaction first locks the checkpoint's row and checks the lease. So each event is applied exactly
once, even if another worker still believes that it holds the lease.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, and_, bindparam, delete, select, update

from eventmeta.core.projection_errors import LeaseLost
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.statement import Program, Statement, recordset
from eventmeta.tables.tables import Tables

LIVE = "live"
BUILDING = "building"
SUBSCRIPTION = "subscription"

LEASE_MS = 10_000
"""How long a lease lasts unless it is renewed, in milliseconds."""

_SLACK_MS = 1_000
"""By how many milliseconds a clock may be set back without ending a lease."""


def renewal_seconds() -> float:
    """Return the number of seconds after which the holder of a lease should renew it."""
    return LEASE_MS / 3_000


class Checkpoint(NamedTuple):
    """The checkpoint of a projection, with its lease.

    Attributes:
        version: The version of the projection in the table; 0 while the table is being swapped.
        position: The position up to which the log is applied.
        stream_id: While the table is filled, the last stream that is filled; None afterwards.
        until: In a rebuild, the position up to which the streams are filled; None otherwise.
        holder: The holder of the lease.
        epoch: How often the lease has changed hands.
        expires_at: When the lease ends, in milliseconds since 1970.
        now: The current time of the database, in milliseconds since 1970.
    """

    version: int
    position: int
    stream_id: str | None
    until: int | None
    holder: str | None
    epoch: int
    expires_at: int
    now: int

    @property
    def held_by(self) -> str | None:
        """Return the holder of the lease; None if the lease has ended.

        A lease that would last longer than any lease comes from a clock that was ahead. It counts
        as ended.
        """
        lasts = 0 < self.expires_at - self.now <= LEASE_MS + _SLACK_MS
        return self.holder if lasts else None


class Key(NamedTuple):
    """The key of a checkpoint: the projection's name and the state of its tables."""

    projection: str
    state: str = LIVE


class LeaseToken(NamedTuple):
    """The fencing token of a lease: the holder, and the epoch in which the holder took it."""

    key: Key
    holder: str
    epoch: int


def is_of_key(table: Table) -> ColumnElement[bool]:
    """Return the condition that a row has the key in the parameters of `key_values`."""
    return and_(
        table.c.projection == bindparam("of_projection", type_=table.c.projection.type),
        table.c.state == bindparam("in_state", type_=table.c.state.type),
    )


def key_values(key: Key) -> dict[str, Any]:
    """Return ``key`` as parameters of a statement."""
    return {"of_projection": key.projection, "in_state": key.state}


def new_holder() -> str:
    """Return a unique name for a worker that takes leases."""
    return f"{socket.gethostname()[:32]}:{os.getpid()}:{secrets.token_hex(4)}"


@dataclass(frozen=True)
class CheckpointStatements:
    """The statements for the table of checkpoints, compiled once."""

    tables: Tables
    dialect: Dialect

    @cached_property
    def lock(self) -> Statement:
        """Select the `Checkpoint` of a key, and lock its row."""
        return self.dialect.compile(self._select().with_for_update())

    @cached_property
    def read(self) -> Statement:
        """Select the `Checkpoint` of a key, without a lock."""
        return self.dialect.compile(self._select())

    @cached_property
    def all(self) -> Statement:
        """Select the keys and the `Checkpoint`s of all checkpoints."""
        columns = [self._c[name] for name in (*Key._fields, *Checkpoint._fields[:-1])]
        query = select(*columns, self.dialect.now_ms().label("now"))
        return self.dialect.compile(query.order_by(self._c.projection))

    @cached_property
    def add(self) -> Statement:
        """Insert the rows of ``checkpoints``, except for keys that have a checkpoint."""
        columns = ["projection", "state", "version", "position", "epoch", "expires_at"]
        given = self.dialect.recordset(
            "checkpoints", {name: self._c[name].type for name in columns}
        )
        source = select(*(given.c[name] for name in columns))
        return self.dialect.compile(self.dialect.upsert(self._table, columns, source, ()))

    @cached_property
    def change(self) -> Statement:
        """Update the checkpoint of a key; the parameters ``new_…`` are all other columns."""
        names = [name for name in self._c.keys() if name not in ("projection", "state")]  # noqa: SIM118
        values = {name: bindparam(f"new_{name}", type_=self._c[name].type) for name in names}
        return self.dialect.compile(update(self._table).where(self._key).values(values))

    @cached_property
    def remove(self) -> Statement:
        """Delete the checkpoint of a key."""
        return self.dialect.compile(delete(self._table).where(self._key))

    def _select(self) -> Any:
        columns = [self._c[name] for name in Checkpoint._fields[:-1]]
        return select(*columns, self.dialect.now_ms().label("now")).where(self._key)

    @property
    def _table(self) -> Table:
        return self.tables.checkpoints

    @property
    def _c(self) -> Any:
        return self._table.c

    @property
    def _key(self) -> ColumnElement[bool]:
        return is_of_key(self._table)

    # --- Programs -------------------------------------------------------------------------------

    def find(self, key: Key) -> Program[Checkpoint | None]:
        """Lock the row of the checkpoint and return it; None if there is none."""
        rows = yield self.lock(**key_values(key))
        return Checkpoint(*rows[0]) if rows else None

    def begin(self, key: Key, version: int, position: int = 0) -> Program[None]:
        """Insert the checkpoint unless there is one."""
        row = {
            **key._asdict(),
            "version": version,
            "position": position,
            "epoch": 0,
            "expires_at": 0,
        }
        yield self.add(checkpoints=recordset([row]))

    def save(self, key: Key, checkpoint: Checkpoint) -> Program[None]:
        """Write the checkpoint, whose row must be locked."""
        values = {f"new_{name}": value for name, value in checkpoint._asdict().items()}
        yield self.change(**key_values(key), **values)

    def take_lease(self, key: Key, holder: str) -> Program[LeaseToken | None]:
        """Take the lease, or renew it; return None if another worker holds it."""
        found = yield from self.find(key)
        if found is None or found.held_by not in (None, holder):
            return None
        epoch = found.epoch + (found.holder != holder)
        yield from self.save(key, self.renewed(found._replace(holder=holder, epoch=epoch)))
        return LeaseToken(key, holder, epoch)

    def renewed(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return ``checkpoint`` with a lease that has its full duration from now on."""
        return checkpoint._replace(expires_at=checkpoint.now + LEASE_MS)

    def renew(self, claim: LeaseToken) -> Program[None]:
        """Renew the lease; raise `LeaseLost` if another worker has taken it."""
        found = yield from self.fenced(claim)
        yield from self.save(claim.key, self.renewed(found))

    def discard(self, claim: LeaseToken) -> Program[None]:
        """Reset the checkpoint, so that the next rebuild starts from the beginning."""
        found = yield from self.fenced(claim)
        yield from self.save(claim.key, found._replace(until=None, stream_id=None, position=0))

    def give_back(self, key: Key, holder: str, position: int | None = None) -> Program[None]:
        """Release the lease if ``holder`` has it; save ``position`` if that is given."""
        found = yield from self.find(key)
        if found is not None and found.holder == holder:
            left = found.position if position is None else position
            ended = found._replace(holder=None, expires_at=0, position=left)
            yield from self.save(key, ended)

    def fenced(self, claim: LeaseToken) -> Program[Checkpoint]:
        """Lock the row of the checkpoint and return it, if the lease is still held.

        Raises:
            LeaseLost: Another worker has taken the lease.
        """
        found = yield from self.find(claim.key)
        if found is None or (found.holder, found.epoch) != claim[1:]:
            raise LeaseLost(claim.key.projection, "was taken over by another process meanwhile")
        return found
