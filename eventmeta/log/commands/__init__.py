"""What a caller may ask of a stream, and how each is carried out inside a transaction.

A command becomes one event, or none if there was nothing to do. Plain commands need to know nothing
of the stream, so a whole batch of them is set-based; the others look before they write.
"""

from eventmeta.log.commands.base import Append, Command, EventData, with_companions
from eventmeta.log.commands.items import (
    AddItems,
    ClearSession,
    Message,
    PopItem,
    RecordUsage,
    ReplaceItems,
    insert_items,
    may_add_tools,
)
from eventmeta.log.commands.metadata import DeleteMetadata, SetMetadata
from eventmeta.log.commands.users import (
    CreateSession,
    DeleteUser,
    DeleteUserMetadata,
    SetUserMetadata,
    TransferSession,
    assignment,
)

__all__ = [
    "AddItems",
    "Append",
    "ClearSession",
    "Command",
    "CreateSession",
    "DeleteMetadata",
    "DeleteUser",
    "DeleteUserMetadata",
    "EventData",
    "Message",
    "PopItem",
    "RecordUsage",
    "ReplaceItems",
    "SetMetadata",
    "SetUserMetadata",
    "TransferSession",
    "assignment",
    "insert_items",
    "may_add_tools",
    "with_companions",
]
