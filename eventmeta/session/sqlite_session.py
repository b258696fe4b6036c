"""`SQLiteSession`: a `MetadataSession` that takes a file instead of an engine."""

from __future__ import annotations

from os import PathLike
from typing import Unpack

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta.database.engines import shared_engine
from eventmeta.session.arguments import SessionOptions
from eventmeta.session.metadata_session import MetadataSession


class SQLiteSession(MetadataSession):
    """A session that replaces the SDK's ``SQLiteSession``, on the same file.

    Sessions of one file and one thread share an engine. Each in-memory session has a database of
    its own.
    """

    def __init__(
        self,
        session_id: str,
        db_path: str | PathLike[str] = ":memory:",
        *,
        engine: AsyncEngine | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        """Open the session; the file and its tables are created at the first call.

        Args:
            session_id: The id of the conversation.
            db_path: The file of the database; in memory by default.
            engine: An engine to use instead of the file.
            **options: As for `MetadataSession`.
        """
        if engine is None:
            url = URL.create("sqlite+aiosqlite", database=str(db_path))
            engine = shared_engine(url.render_as_string(hide_password=False), None)
        options.setdefault("create_tables", True)
        super().__init__(session_id, engine=engine, **options)
