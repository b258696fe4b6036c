"""Column types that mean the same on every database."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import UUID, DateTime, Dialect, Index, Integer, String, Text, column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import BigInteger, TypeDecorator, TypeEngine

MYSQL = ("mysql", "mariadb")


# SQLAlchemy has types for MySQL, but importing them takes longer than this whole module does.
class _LongText(Text):
    """MySQL's LONGTEXT."""


class _MicrosecondDateTime(DateTime):
    """MySQL's DATETIME with microseconds."""


@compiles(_LongText, *MYSQL)
def _long_text(*_: object, **__: object) -> str:
    return "LONGTEXT"


@compiles(_MicrosecondDateTime, *MYSQL)
def _microsecond_date_time(*_: object, **__: object) -> str:
    return "DATETIME(6)"


SessionId: TypeEngine[str] = String().with_variant(String(255), *MYSQL)
"""A text of unlimited length, as in upstream's tables; MySQL and MariaDB need a length."""

LongText: TypeEngine[str] = Text().with_variant(_LongText(), *MYSQL)
"""Text of any length: on MySQL, plain TEXT ends at 64 kB."""

BigInt: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
"""An integer of 64 bits. SQLite's always have 64, and only INTEGER may be its row id."""

EventId: TypeEngine[str] = String(36).with_variant(UUID(as_uuid=False), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time with microseconds, kept as naive UTC if a database has no time zones."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        """Return the most exact type for a time that the database has."""
        return dialect.type_descriptor(
            DateTime()
            .with_variant(DateTime(timezone=True), "postgresql")
            .with_variant(_MicrosecondDateTime(), *MYSQL)
        )

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert ``value`` to UTC, and drop the zone if the database does not keep zones."""
        if value is None:
            return None
        aware = value.astimezone(UTC)
        takes_zone = getattr(self.dialect_impl(dialect), "timezone", False)
        return aware if takes_zone else aware.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert ``value`` to an aware time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def index_of_known(name: str, first: str, *others: str) -> Index:
    """Return an index of the rows whose ``first`` is not NULL; on MySQL, of all rows."""
    known = column(first).is_not(None)
    return Index(name, first, *others, postgresql_where=known, sqlite_where=known)
