"""Filling the tables of conversations and tool calls from older items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, bindparam, select

from eventmeta.core.errors import StructuredMetadataOff
from eventmeta.core.events import StreamKey
from eventmeta.core.validation import check_positive, check_session_id
from eventmeta.dialects.statement import Program, recordset, steps
from eventmeta.log.statements import AppendStatements
from eventmeta.read_models.item_changes import rebuild
from eventmeta.read_models.item_statements import ItemStatements
from eventmeta.store.metadata_store import MetadataStore
from eventmeta.tables.tables import Tables
from projections import AnySelect
from projections.types import SessionId


@dataclass(frozen=True)
class Backfill:
    """The progress of a backfill.

    Attributes:
        sessions: The number of sessions that are done.
        last_session_id: The last of them, after which another call can continue; None if there is
            none.
    """

    sessions: int = 0
    last_session_id: str | None = None


async def backfill_conversations(
    store: MetadataStore,
    *,
    after: str | None = None,
    batch_size: int = 100,
    progress: Callable[[Backfill], Any] | None = None,
) -> Backfill:
    """Fill the tables of conversations and tool calls from items that are older than the tables.

    This also corrects the rows of sessions to which upstream's class has written since. Writers may
    run at the same time. Correct rows are not touched, so a second call changes nothing. Each batch
    is a transaction, so after a crash you can start again, or continue.

    Args:
        store: A store with ``structured_metadata=True`` whose tables exist. In a database that did
            not keep them, `MetadataStore.create_tables` turns that on first.
        after: Continue after this session: the ``last_session_id`` of an earlier call.
        batch_size: How many sessions are locked and filled in one transaction.
        progress: Called with a `Backfill` after each batch.

    Returns:
        The progress at the end.

    Raises:
        InvalidInput: ``after`` is not a session id, or ``batch_size`` is not a whole number of at
            least 1.
        StructuredMetadataOff: The store does not keep the tables.
    """
    check_positive("batch_size", batch_size)
    if after:
        check_session_id(after)
    log = store.log
    await log.database.opening.connect(create=False)
    structure = log.appender.statements.structure
    if structure is None:
        raise StructuredMetadataOff("backfill_conversations()")
    done = Backfill(last_session_id=after)
    page, limit = _page(log.database.tables), batch_size
    while batch := await log.database.read(page, after=done.last_session_id or "", limit=limit):
        session_ids = [session_id for (session_id,) in batch]
        await log.database.repeatable(
            partial(_rebuild, log.appender.statements, structure, session_ids)
        )
        done = Backfill(done.sessions + len(session_ids), session_ids[-1])
        if progress is not None:
            progress(done)
    return done


def _page(tables: Tables) -> AnySelect:
    session_id = tables.sessions.c.session_id
    later = session_id > bindparam("after", type_=SessionId)
    limit = bindparam("limit", type_=BigInteger())
    return select(session_id).where(later).order_by(session_id).limit(limit)


def _rebuild(
    sql: AppendStatements, structure: ItemStatements, session_ids: Sequence[str]
) -> Program[None]:
    """Lock the sessions against our writers and upstream's, and correct their rows."""
    streams = recordset([StreamKey(session_id)._asdict() for session_id in sorted(session_ids)])
    yield from steps(sql.lock_streams, streams=streams)
    yield sql.commands.lock_sessions(first=session_ids[0], last=session_ids[-1])
    yield from rebuild(structure, session_ids)
