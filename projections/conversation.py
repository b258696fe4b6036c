"""The read model of the conversation, turn by turn: every item of a session except tool items.

It keeps messages of any role, reasoning, compaction, and items of unknown types. The key of a row
is the id of the message it comes from, so that a rebuild gives exactly the same rows.
"""

from __future__ import annotations

from sqlalchemy import Column, MetaData, String, Table, func

from projections.item_tables import item_table, select_item_rows
from projections.projection import ItemProjection
from projections.relation import AnySelect, Messages
from projections.types import LongText


def conversation_projection(
    metadata: MetaData, messages: Table, name: str = "agent_conversation_messages"
) -> ItemProjection:
    """Return the read model, with a table called ``name`` of ``metadata`` beside ``messages``."""
    return ItemProjection(
        name="conversation",
        version=1,
        table=item_table(
            metadata,
            messages,
            name,
            Column("role", String(255)),
            Column("content", LongText),
        ),
        select=fold_conversation,
    )


def fold_conversation(messages: Messages) -> AnySelect:
    """Select all but the tool items. An item without content is its own ``content``, as JSON."""
    row = messages.rows.c
    content = func.coalesce(
        messages.json(row.item, "content"),
        messages.json(row.item, "summary"),
        messages.json(row.item),
    )
    said = select_item_rows(row, row.role, content.label("content"))
    return said.where(row.part.is_(None))
