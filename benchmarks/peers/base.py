"""What a peer must be able to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

from sqlalchemy.ext.asyncio import AsyncEngine

Item = dict[str, Any]
Values = Mapping[str, Any]


class Peer(Protocol):
    """A way to keep sessions in one database. An open one has all its tables."""

    name: ClassVar[str]

    async def set_metadata(self, session_id: str, metadata: Values) -> None: ...

    async def get_metadata(self, session_id: str, keys: Sequence[str]) -> dict[str, Any]: ...

    async def add_items(self, session_id: str, items: list[Item]) -> None: ...

    async def get_items(self, session_id: str, limit: int) -> list[Item]: ...

    async def durability(self) -> str:
        """What the database itself says of the connections in use."""
        ...

    async def close(self) -> None: ...


Opener = Callable[[str], Awaitable[Peer]]
"""Opens a peer on the database at a URL."""

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
