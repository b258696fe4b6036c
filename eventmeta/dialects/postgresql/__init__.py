"""PostgreSQL."""

from eventmeta.dialects.postgresql.running import PostgreSQL

__all__ = ["PostgreSQL"]
