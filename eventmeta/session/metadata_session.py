"""`MetadataSession`: upstream's SQLAlchemySession with metadata, an owner and a history."""

from eventmeta.session.compaction import SessionCompaction
from eventmeta.session.conversation import SessionConversation
from eventmeta.session.metadata import SessionMetadata
from eventmeta.session.ownership import SessionOwnership


class MetadataSession(SessionCompaction, SessionMetadata, SessionOwnership, SessionConversation):
    """A conversation with its metadata and its owner, and the history of both.

    It replaces ``agents.extensions.memory.SQLAlchemySession``, with the same arguments, tables and
    rows. When a write returns, its changes are durable and visible to all processes. A call that
    fails has changed nothing. A cancelled call raises only when its outcome is certain. All
    sessions of an engine share one writer; calls that arrive together share a transaction.
    """
