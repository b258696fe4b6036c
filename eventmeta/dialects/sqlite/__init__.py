"""The embedded database."""

from eventmeta.dialects.sqlite.running import SQLite

__all__ = ["SQLite"]
