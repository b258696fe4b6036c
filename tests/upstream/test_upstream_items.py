"""How items and sessions are stored: as upstream does it, or as a subclass wants it."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from datetime import UTC, datetime
from typing import Any

import pytest
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmeta import InvalidInput, MetadataSession
from tests.session.test_items import LONG_AGO, rows, run
from tests.support.helpers import user, users


@pytest.fixture
async def session(engine: AsyncEngine) -> MetadataSession:
    session = MetadataSession("s", engine=engine, create_tables=True)
    await session.get_items()
    return session


class Compressed(MetadataSession):
    """Keeps items compressed, as a subclass of upstream's session could."""

    async def _serialize_item(self, item: Any) -> str:
        return base64.b64encode(zlib.compress(json.dumps(item).encode())).decode()

    async def _deserialize_item(self, item: str) -> Any:
        try:
            return json.loads(zlib.decompress(base64.b64decode(item)))
        except (ValueError, zlib.error):
            raise json.JSONDecodeError("not compressed", item, 0) from None


async def test_a_subclass_may_store_items_in_its_own_way(engine: AsyncEngine) -> None:
    session = Compressed("s", engine=engine, create_tables=True)
    await session.add_items(users("a", "b", "c"))
    assert "role" not in repr(await rows(engine, "SELECT message_data FROM agent_messages"))
    assert await session.get_items() == users("a", "b", "c")
    assert await session.get_items(2) == users("b", "c")
    assert await session.pop_item() == user("c")


async def test_what_a_subclass_cannot_read_is_skipped(engine: AsyncEngine) -> None:
    session = Compressed("s", engine=engine, create_tables=True)
    await session.add_items(users("a"))
    await MetadataSession("s", engine=engine).add_items(users("plain"))
    assert await session.get_items() == users("a")
    assert await session.get_items(1) == users("a")
    assert await session.pop_item() == user("a")


@pytest.mark.parametrize(
    ("ensure_ascii", "stored"), [(True, r"\u00e9\ud83d\udc18"), (False, "é🐘")]
)
async def test_ensure_ascii(engine: AsyncEngine, ensure_ascii: bool, stored: str) -> None:
    session = MetadataSession("s", engine=engine, create_tables=True, ensure_ascii=ensure_ascii)
    await session.add_items(users("é🐘"))
    ((data,),) = await rows(engine, "SELECT message_data FROM agent_messages")
    assert data == f'{{"role":"user","content":"{stored}"}}'
    assert await session.get_items() == users("é🐘")


AWKWARD = {
    "NUL": "a\x00b",
    "lone surrogate": "a\ud800b",
    "line separators": "a\u2028\r\nb",
    "escapes": 'a"\\\\n%s:name b',
    "huge integer": 10**40,
    "float": 0.1 + 0.2,
    "null": None,
    "nested": [[], {}, [{"": [True, False, None]}]],
}


@pytest.mark.parametrize("content", AWKWARD.values(), ids=AWKWARD)
async def test_awkward_items_come_back_as_from_upstream(
    session: MetadataSession, engine: AsyncEngine, content: Any
) -> None:
    theirs = SQLAlchemySession("theirs", engine=engine)
    await session.add_items([user(content)])
    await theirs.add_items([user(content)])
    assert await session.get_items() == await theirs.get_items() == [user(content)]
    ours, upstreams = await rows(engine, "SELECT message_data FROM agent_messages ORDER BY id")
    assert ours == upstreams


async def test_text_that_no_database_takes_is_refused_like_upstreams(engine: AsyncEngine) -> None:
    """A lone surrogate, not escaped; upstream's error is the driver's own."""
    session = MetadataSession("s", engine=engine, create_tables=True, ensure_ascii=False)
    await session.add_items(users("before"))
    with pytest.raises(InvalidInput, match=r"items\[1\].*lone surrogate"):
        await session.add_items(users("fine", "a\ud800b"))
    theirs = SQLAlchemySession("s", engine=engine, ensure_ascii=False)
    with pytest.raises(Exception, match=r"surrogates|invalid input"):
        await theirs.add_items(users("a\ud800b"))
    assert await session.get_items() == users("before")


async def test_a_serialized_text_with_nul_is_refused(engine: AsyncEngine) -> None:
    """PostgreSQL cannot store it, and others would cut it short."""

    class Raw(MetadataSession):
        async def _serialize_item(self, item: Any) -> str:
            return "\x00" + json.dumps(item)

    session = Raw("s", engine=engine, create_tables=True)
    with pytest.raises(InvalidInput, match=r"items\[0\].*NUL"):
        await session.add_items(users("a"))


async def test_one_bad_item_does_not_harm_those_beside_it(engine: AsyncEngine) -> None:
    sessions = [
        MetadataSession(f"s{n}", engine=engine, create_tables=True, ensure_ascii=False)
        for n in range(5)
    ]
    outcomes = await asyncio.gather(
        *(s.add_items(users("\ud800" if n == 2 else "fine")) for n, s in enumerate(sessions)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, InvalidInput) for outcome in outcomes] == [n == 2 for n in range(5)]
    found = [await s.get_items() for s in sessions]
    assert found == [[] if n == 2 else users("fine") for n in range(5)]


# --- The session's row --------------------------------------------------------------------------


async def session_row(engine: AsyncEngine, session_id: str) -> tuple[Any, ...] | None:
    found = await rows(
        engine,
        "SELECT created_at, updated_at FROM agent_sessions WHERE session_id = :id",
        id=session_id,
    )
    return found[0] if found else None


async def test_the_session_row_is_made_and_touched_as_upstream_does_it(engine: AsyncEngine) -> None:
    """After each step, which of ours and of theirs exists, and which was touched."""
    ours = MetadataSession("ours", engine=engine, create_tables=True)
    theirs = SQLAlchemySession("theirs", engine=engine)
    await ours.get_items()

    async def steps(session: Any) -> list[Any]:
        seen = []
        for step in (
            session.get_items,
            session.pop_item,
            lambda: session.add_items([]),
            lambda: session.add_items(users("a", "b")),
            lambda: session.add_items(users("c")),
            session.pop_item,
            session.get_items,
            session.clear_session,
        ):
            await run(
                engine, "UPDATE agent_sessions SET created_at = :at, updated_at = :at", at=LONG_AGO
            )
            await step()
            row = await session_row(engine, session.session_id)
            years = row and [str(value)[:4] for value in row]
            seen.append(years and tuple("2020" if year == "2020" else "now" for year in years))
        return seen

    expected = [None, None, None, ("now", "now"), *[("2020", "now")], *[("2020", "2020")] * 2, None]
    assert await steps(ours) == await steps(theirs) == expected


async def test_updated_at_is_the_present(session: MetadataSession, engine: AsyncEngine) -> None:
    """In the zone that the database's own default uses."""
    await session.add_items(users("a"))
    await run(engine, "UPDATE agent_sessions SET updated_at = :at", at=LONG_AGO)
    await session.add_items(users("b"))
    ((difference,),) = [
        (abs(_seconds(touched) - _seconds(made)),)
        for made, touched in await rows(engine, "SELECT created_at, updated_at FROM agent_sessions")
    ]
    assert difference < 60


def _seconds(value: datetime | str) -> float:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC).timestamp()
