"""`MetadataSession`: upstream's SQLAlchemySession, and what is known about the session."""

from eventmeta.session.compaction import SessionCompaction
from eventmeta.session.conversation import SessionConversation
from eventmeta.session.metadata import SessionMetadata
from eventmeta.session.ownership import SessionOwnership


class MetadataSession(SessionCompaction, SessionMetadata, SessionOwnership, SessionConversation):
    """A conversation with its metadata and its owner, and the history of both.

    Takes the place of ``agents.extensions.memory.SQLAlchemySession``: same arguments, same tables,
    same rows. Every write is durable and visible to all processes when its call returns; a call
    that fails has changed nothing, and a cancelled one raises only when its outcome is settled. All
    sessions of an engine share one writer, which commits what arrives together in one transaction.
    """
