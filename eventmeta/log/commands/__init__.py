"""Commands: what callers ask of a stream, and how each is carried out in a transaction.

base        the base class of all commands
items       commands to the items of a session, and to the session as a whole
metadata    commands to the metadata of a session
users       commands to users, and to the owner of a session
options     the options of all writes
statements  the statements that commands run

A command becomes one event, or none if there was nothing to do. Unconditional commands do not read
their stream, so a batch of them can be one statement. All other commands read before they write.
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
