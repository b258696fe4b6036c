"""What a peer can do: it overrides what it has an API for, and is measured by that alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Item = dict[str, Any]
Values = Mapping[str, Any]


class Peer:
    """A way to keep sessions in one database. An open one has all its tables."""

    name: ClassVar[str]

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open it on the database at a SQLAlchemy URL, with what its documentation recommends."""
        raise NotImplementedError

    async def durability(self) -> str:
        """What the database itself says of the connections in use."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    # --- Operations: each that is not overridden is one that the peer does not offer --------------

    async def set_metadata(self, session_id: str, metadata: Values) -> None:
        """Merge, and make the session if there is none."""
        raise NotImplementedError

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]:
        """The given keys, with None for a missing one."""
        raise NotImplementedError

    async def delete_metadata(self, session_id: str, keys: Sequence[str]) -> None:
        raise NotImplementedError

    async def find_sessions(self, key: str, value: Any, limit: int) -> list[str]:
        """Ids of sessions whose ``key`` equals ``value``."""
        raise NotImplementedError

    async def list_sessions(self, limit: int) -> list[str]:
        """Ids of the sessions that changed last."""
        raise NotImplementedError

    async def history(self, session_id: str, key: str) -> list[Any]:
        """The values that a key of the metadata has had, the oldest first."""
        raise NotImplementedError

    async def metadata_as_of(
        self, session_id: str, keys: Sequence[str], changes: int
    ) -> dict[str, Any]:
        """The metadata as it was after so many changes of the session."""
        raise NotImplementedError

    async def add_items(self, session_id: str, items: list[Item]) -> None:
        raise NotImplementedError

    async def get_items(self, session_id: str, limit: int) -> list[Item]:
        raise NotImplementedError

    async def pop_item(self, session_id: str) -> Item | None:
        raise NotImplementedError

    async def append(self, session_id: str, data: Values) -> None:
        """Record an event of the app's own."""
        raise NotImplementedError

    async def read_stream(self, session_id: str) -> list[Values]:
        """The data of all that was appended to a session, the oldest first."""
        raise NotImplementedError

    async def export(self) -> list[Values]:
        """The data of all that was appended to any session, in the order of the log."""
        raise NotImplementedError

    async def rebuild(self) -> None:
        """Make the table of the metadata anew from all that was recorded."""
        raise NotImplementedError

    async def follow(self, session_id: str) -> dict[str, Any]:
        """The metadata by a second table, which follows the log and has to catch up first."""
        raise NotImplementedError


def offers(peer: type[Peer], operations: Iterable[str]) -> bool:
    """Whether a peer has all of these operations."""
    return all(getattr(peer, name) is not getattr(Peer, name) for name in operations)


def file_of(url: str) -> str:
    """The file of a SQLite database, for peers that do without SQLAlchemy."""
    return url.partition(":///")[2]


def address_of(url: str) -> str:
    """The address of a PostgreSQL database as libpq and asyncpg take it, likewise."""
    return f"postgresql://{url.partition('://')[2]}"


SQLITE_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
PRAGMAS = ("journal_mode", "synchronous")
SETTINGS = ("fsync", "synchronous_commit", "full_page_writes")


def describe(settings: Mapping[str, Any]) -> str:
    """Settings as one line, the same for every peer that has the same ones."""
    shown = dict(settings)
    if "synchronous" in shown:
        shown["synchronous"] = SQLITE_SYNCHRONOUS[int(shown["synchronous"])]
    return ", ".join(f"{name}={value}" for name, value in shown.items())


async def durability_of(engine: AsyncEngine) -> str:
    """The durability of a SQLAlchemy engine's connections."""
    embedded = engine.url.get_backend_name() == "sqlite"
    command, names = ("PRAGMA", PRAGMAS) if embedded else ("SHOW", SETTINGS)
    async with engine.connect() as connection:
        values = [
            (await connection.exec_driver_sql(f"{command} {name}")).scalar_one() for name in names
        ]
    return describe(dict(zip(names, values, strict=True)))


def as_items(items: Sequence[Any]) -> list[Item]:
    """Items of the SDK's own types as the plain dicts that they are."""
    return cast("list[Item]", list(items))
