"""The embedded database."""

from eventmeta.dialects.sqlite.running import SQLite
from eventmeta.dialects.sqlite.shared import SharedSQLite

__all__ = ["SQLite", "SharedSQLite"]
