"""How far each projection is, and the lease of whoever moves it on.

A checkpoint is moved in the transaction that writes the rows which follow from the events up to it,
after a look at the lease, whose row is locked. So an event is applied exactly once, whoever else
believes to hold the lease.
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
"""How long a lease lasts unless it is renewed."""

_SLACK_MS = 1_000
"""By how much a clock may be set back without ending a lease."""


def renewal_seconds() -> float:
    """After what time whoever has a lease should renew it."""
    return LEASE_MS / 3_000


class Checkpoint(NamedTuple):
    """How far a projection is.

    Attributes:
        version: Of the projection that the table is of; 0 while it is being swapped.
        position: Up to where the log is applied.
        stream_id: While it is filled: up to which stream.
        until: While it is filled: the position up to which.
        holder: Who has the lease.
        epoch: How often the lease has changed hands.
        expires_at: When it ends, in milliseconds since 1970.
        now: What time it is, likewise.
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
        """Who has a lease that lasts.

        One that lasts longer than leases do is of a clock that was ahead, and has ended.
        """
        lasts = 0 < self.expires_at - self.now <= LEASE_MS + _SLACK_MS
        return self.holder if lasts else None


class Key(NamedTuple):
    """Which checkpoint."""

    projection: str
    state: str = LIVE


class LeaseToken(NamedTuple):
    """A lease as its holder remembers it."""

    key: Key
    holder: str
    epoch: int


def is_of_key(table: Table) -> ColumnElement[bool]:
    """That a row is of the key that `key_values` names."""
    return and_(
        table.c.projection == bindparam("of_projection", type_=table.c.projection.type),
        table.c.state == bindparam("in_state", type_=table.c.state.type),
    )


def key_values(key: Key) -> dict[str, Any]:
    """``key`` as parameters."""
    return {"of_projection": key.projection, "in_state": key.state}


def new_holder() -> str:
    """A name for whoever takes leases; no two are the same."""
    return f"{socket.gethostname()[:32]}:{os.getpid()}:{secrets.token_hex(4)}"


@dataclass(frozen=True)
class CheckpointStatements:
    """What is asked of the table of checkpoints, compiled once."""

    tables: Tables
    dialect: Dialect

    @cached_property
    def lock(self) -> Statement:
        """The key → its `Checkpoint`, whose row is locked."""
        return self.dialect.compile(self._select().with_for_update())

    @cached_property
    def read(self) -> Statement:
        """The same, without the lock."""
        return self.dialect.compile(self._select())

    @cached_property
    def all(self) -> Statement:
        """All checkpoints: the key and the `Checkpoint` of each."""
        columns = [self._c[name] for name in (*Key._fields, *Checkpoint._fields[:-1])]
        query = select(*columns, self.dialect.now_ms().label("now"))
        return self.dialect.compile(query.order_by(self._c.projection))

    @cached_property
    def add(self) -> Statement:
        """The key, ``version``, ``position`` → a checkpoint, unless there is one."""
        columns = ["projection", "state", "version", "position", "epoch", "expires_at"]
        given = self.dialect.recordset(
            "checkpoints", {name: self._c[name].type for name in columns}
        )
        source = select(*(given.c[name] for name in columns))
        return self.dialect.compile(self.dialect.upsert(self._table, columns, source, ()))

    @cached_property
    def change(self) -> Statement:
        """The key and all other columns as ``new_…``."""
        names = [name for name in self._c.keys() if name not in ("projection", "state")]  # noqa: SIM118
        values = {name: bindparam(f"new_{name}", type_=self._c[name].type) for name in names}
        return self.dialect.compile(update(self._table).where(self._key).values(values))

    @cached_property
    def remove(self) -> Statement:
        """The key's checkpoint."""
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
        """The checkpoint, whose row is locked."""
        rows = yield self.lock(**key_values(key))
        return Checkpoint(*rows[0]) if rows else None

    def begin(self, key: Key, version: int, position: int = 0) -> Program[None]:
        """Make the checkpoint unless there is one."""
        row = {
            **key._asdict(),
            "version": version,
            "position": position,
            "epoch": 0,
            "expires_at": 0,
        }
        yield self.add(checkpoints=recordset([row]))

    def save(self, key: Key, checkpoint: Checkpoint) -> Program[None]:
        """Write the checkpoint, whose row is locked."""
        values = {f"new_{name}": value for name, value in checkpoint._asdict().items()}
        yield self.change(**key_values(key), **values)

    def take_lease(self, key: Key, holder: str) -> Program[LeaseToken | None]:
        """Take the lease if nobody else has it, or renew it."""
        found = yield from self.find(key)
        if found is None or found.held_by not in (None, holder):
            return None
        epoch = found.epoch + (found.holder != holder)
        yield from self.save(key, self.renewed(found._replace(holder=holder, epoch=epoch)))
        return LeaseToken(key, holder, epoch)

    def renewed(self, checkpoint: Checkpoint) -> Checkpoint:
        """``checkpoint`` with a lease that begins anew."""
        return checkpoint._replace(expires_at=checkpoint.now + LEASE_MS)

    def renew(self, claim: LeaseToken) -> Program[None]:
        """Let the lease begin anew."""
        found = yield from self.fenced(claim)
        yield from self.save(claim.key, self.renewed(found))

    def discard(self, claim: LeaseToken) -> Program[None]:
        """Have what the lease is for begun anew, whoever does that."""
        found = yield from self.fenced(claim)
        yield from self.save(claim.key, found._replace(until=None, stream_id=None, position=0))

    def give_back(self, key: Key, holder: str, position: int | None = None) -> Program[None]:
        """End the lease that ``holder`` may have, at its last ``position`` if that is given."""
        found = yield from self.find(key)
        if found is not None and found.holder == holder:
            left = found.position if position is None else position
            ended = found._replace(holder=None, expires_at=0, position=left)
            yield from self.save(key, ended)

    def fenced(self, claim: LeaseToken) -> Program[Checkpoint]:
        """The checkpoint, whose row is locked, as long as nobody else took over.

        Raises:
            LeaseLost: Someone did.
        """
        found = yield from self.find(claim.key)
        if found is None or (found.holder, found.epoch) != claim[1:]:
            raise LeaseLost(claim.key.projection, "was taken over by another process meanwhile")
        return found
