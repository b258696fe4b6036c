"""What is said where a session or a store cannot be opened as it was asked for."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import (
    EventMetaError,
    InvalidInput,
    MetadataSession,
    MetadataStore,
    MissingExtra,
    NewEvent,
    SessionOptions,
    SQLiteSession,
    UnknownOption,
    UnsupportedEngine,
    new_event_id,
)
from eventmeta.log.commands.options import options_of
from eventmeta.session.arguments import CreationOptions, HandleOptions
from eventmeta.store.metadata_store import StoreOptions
from tests.support.processes import ROOT

URL = "sqlite+aiosqlite://"


@pytest.fixture
def memory() -> AsyncEngine:
    return create_async_engine(URL)


# --- Options ------------------------------------------------------------------------------------

Opening = Callable[..., Any]
MISSPELT: dict[str, tuple[Opening, str, str, str]] = {
    "store": (MetadataStore, "hint", "MetadataStore()", "hints"),
    "store of a url": (
        lambda _, **o: MetadataStore.from_url(URL, **o),
        *("structured_metdata", "MetadataStore.from_url()", "structured_metadata"),
    ),
    "session": (
        lambda e, **o: MetadataSession("a", engine=e, **o),
        *("userid", "MetadataSession()", "user_id"),
    ),
    "session of a url": (
        lambda _, **o: MetadataSession.from_url("a", url=URL, **o),
        *("create_table", "MetadataSession.from_url()", "create_tables"),
    ),
    "session of a file": (
        lambda _, **o: SQLiteSession("a", **o),
        *("event_table", "SQLiteSession()", "events_table"),
    ),
    "session of a store": (
        lambda e, **o: MetadataStore(e).session("a", **o),
        *("userid", "MetadataSession()", "user_id"),
    ),
    "creation": (
        lambda e, **o: MetadataStore(e).create_session("ann", **o),
        *("sesion_id", "MetadataSession.create_session()", "session_id"),
    ),
    "creation for a user": (
        lambda e, **o: MetadataStore(e).as_user("ann").create_session(**o),
        *("meta_data", "MetadataSession.create_session()", "metadata"),
    ),
    "look-up": (
        lambda e, **o: MetadataStore(e).get_session("ann", "a", **o),
        *("claims", "MetadataSession.get_session()", "claim"),
    ),
    "list": (
        lambda e, **o: MetadataStore(e).get_sessions("ann", **o),
        *("clam", "MetadataSession.get_sessions()", "claim"),
    ),
    "set": (lambda e, **o: opened(e).set_metadata({}, **o), "acter", "set_metadata()", "actor"),
    "delete": (
        lambda e, **o: opened(e).delete_metadata(**o),
        *("eventid", "delete_metadata()", "event_id"),
    ),
    "add": (lambda e, **o: opened(e).add_items([], **o), "conection", "add_items()", "connection"),
    "pop": (lambda e, **o: opened(e).pop_item(**o), "actr", "pop_item()", "actor"),
    "clear": (
        lambda e, **o: opened(e).clear_session(**o),
        *("expect_version", "clear_session()", "expected_version"),
    ),
    "transfer": (lambda e, **o: opened(e).transfer("bob", **o), "event", "transfer()", "event_id"),
    "delete a user": (
        lambda e, **o: MetadataStore(e).delete_user("bob", **o),
        *("actor_", "delete_user()", "actor"),
    ),
}


def opened(engine: AsyncEngine) -> MetadataSession:
    return MetadataSession("a", engine=engine)


async def finish(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize(
    ("opening", "option", "call", "meant"), MISSPELT.values(), ids=list(MISSPELT)
)
async def test_an_unknown_option_is_named_with_the_nearest(
    memory: AsyncEngine, opening: Opening, option: str, call: str, meant: str
) -> None:
    async def attempt() -> None:
        await finish(opening(memory, **{option: None}))

    with pytest.raises(UnknownOption) as caught:
        await attempt()
    assert caught.value.call == call
    assert str(caught.value).endswith(f"did you mean {meant!r}?")
    assert isinstance(caught.value, InvalidInput)
    assert isinstance(caught.value, TypeError)


def test_where_none_is_near_all_are_named(memory: AsyncEngine) -> None:
    with pytest.raises(UnknownOption, match=r"it takes .*hints, max_value_bytes, messages_table"):
        MetadataStore(memory, zzz=1)  # type: ignore[call-arg]


def test_a_subclass_may_take_more(memory: AsyncEngine) -> None:
    class Mine(MetadataSession):
        def __init__(self, session_id: str, *, colour: str, **options: Any) -> None:
            super().__init__(session_id, **options)
            self.colour = colour

    arguments: Any = {"colour": "red"}
    assert Mine.from_url("a", url=URL, **arguments).colour == "red"
    with pytest.raises(UnknownOption, match="did you mean 'colour'"):
        Mine.from_url("a", url=URL, color="red")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "kind"), [(SessionOptions, MetadataSession), (StoreOptions, MetadataStore)]
)
def test_the_types_know_every_option(options: Any, kind: type) -> None:
    assert options.__annotations__.keys() == options_of(kind)


def test_the_types_know_every_option_of_create_session() -> None:
    taken = inspect.signature(MetadataSession.create_session).parameters
    own = {name for name, each in taken.items() if each.kind is each.KEYWORD_ONLY} - {"engine"}
    assert CreationOptions.__annotations__.keys() == own | HandleOptions.__annotations__.keys()


WRONG = """\
from eventmeta import MetadataSession, MetadataStore

async def wrong(store: MetadataStore) -> None:
    MetadataStore.from_url("x", structured_metdata=True)
    MetadataStore.from_url("x", hints="yes")
    MetadataSession.from_url("a", url="x", userid="ann")
    store.session("a", userid="ann")
    store.session("a", claim="yes")
    await store.create_session("ann", sesion_id="x")
    await store.create_session("ann", metadata=7)
    await store.get_session("ann", "a", claims=True)
    await store.get_sessions("ann", claims=True)
    store.as_user("ann").session("a", userid="ann")
    await store.as_user("ann").create_session(actr="x")
    await MetadataSession.create_session("ann", engine=store.engine, actr="x")
"""


def test_type_checkers_see_every_option(tmp_path: Path) -> None:
    pytest.importorskip("mypy")  # it is no dependency
    module = tmp_path / "wrong.py"
    module.write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(module)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line}
    calls = [n for n, line in enumerate(WRONG.splitlines(), 1) if line.startswith("    ")]
    assert found == {str(n) for n in calls}, done.stdout + done.stderr


# --- Engines and URLs ---------------------------------------------------------------------------

NO_ENGINES: dict[str, tuple[Any, str]] = {
    "a url": (URL, r"is a str.*call from_url\(\)"),
    "a URL": (make_url(URL), r"is a URL.*call from_url\(\)"),
    "a synchronous one": (
        create_engine("sqlite://"),
        r"synchronous engine.*create_async_engine\(\).*sqlite\+aiosqlite://",
    ),
    "nothing": (None, "is a NoneType.*create_async_engine"),
    "its maker": (create_async_engine, "is a function"),
}


@pytest.mark.parametrize(("engine", "message"), NO_ENGINES.values(), ids=list(NO_ENGINES))
async def test_what_is_no_engine_is_refused(engine: Any, message: str) -> None:
    for opening in (
        lambda: MetadataStore(engine),
        lambda: MetadataSession("a", engine=engine),
    ):
        with pytest.raises(UnsupportedEngine, match=message):
            opening()
    for call in (
        MetadataSession.create_session("ann", engine=engine),
        MetadataSession.get_session("ann", "a", engine=engine),
        MetadataSession.get_sessions("ann", engine=engine),
    ):
        with pytest.raises(UnsupportedEngine, match=message):
            await call


BAD_URLS: dict[str, tuple[Any, type[EventMetaError], str]] = {
    "sqlite": ("sqlite:///x.db", UnsupportedEngine, r"begin .* sqlite\+aiosqlite://"),
    "postgresql": (
        "postgresql://ann:secret@h/x",
        UnsupportedEngine,
        r"postgresql\+asyncpg:// \(pip install 'eventmeta\[postgres\]'\)",
    ),
    "postgres": ("postgres://ann:secret@h/x", UnsupportedEngine, r"postgresql\+asyncpg://"),
    "psycopg2": ("postgresql+psycopg2://ann:secret@h/x", UnsupportedEngine, "asyncpg"),
    "psycopg": ("postgresql+psycopg://ann:secret@h/x", UnsupportedEngine, "asyncpg"),
    "mysql": ("mysql://ann:secret@h/x", UnsupportedEngine, r"mysql\+asyncmy://.*eventmeta\[mysql"),
    "pymysql": ("mysql+pymysql://ann:secret@h/x", UnsupportedEngine, "asyncmy"),
    "aiomysql": ("mysql+aiomysql://ann:secret@h/x", UnsupportedEngine, "asyncmy"),
    "mariadb": ("mariadb://ann:secret@h/x", UnsupportedEngine, r"mariadb\+asyncmy://"),
    "oracle": ("oracle://ann:secret@h/x", UnsupportedEngine, r"oracle:// is not supported"),
    "unknown": ("mongodb://ann:secret@h/x", UnsupportedEngine, "is not supported"),
    "no url": ("secret", InvalidInput, "cannot be read.*quote_plus"),
    "bad port": ("postgresql+asyncpg://ann:secret@h:x/x", InvalidInput, "cannot be read"),
    "nothing": (None, InvalidInput, "is a NoneType"),
    "bytes": (b"sqlite://", InvalidInput, "is a bytes"),
    "empty": ("", InvalidInput, "cannot be read"),
}


@pytest.mark.parametrize(("url", "kind", "message"), BAD_URLS.values(), ids=list(BAD_URLS))
def test_a_url_that_cannot_be_used_says_which_can(
    url: Any, kind: type[EventMetaError], message: str
) -> None:
    for opening in (
        lambda: MetadataStore.from_url(url),
        lambda: MetadataSession.from_url("a", url=url),
    ):
        with pytest.raises(kind, match=message) as caught:
            opening()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "driver", "wanted"),
    [
        ("sqlite+aiosqlite://", "aiosqlite", "aiosqlite"),
        ("postgresql+asyncpg://h/x", "asyncpg", r"'eventmeta\[postgres\]'"),
        ("mysql+asyncmy://h/x", "asyncmy", r"'eventmeta\[mysql\]'"),
    ],
)
def test_a_missing_driver_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, url: str, driver: str, wanted: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(MissingExtra, match=f"needs {driver}: pip install {wanted}"):
        MetadataStore.from_url(url)


@pytest.mark.parametrize("engine_kwargs", [{"pool_sise": 3}, {"pool_size": 3}, ["echo"]])
def test_arguments_that_sqlalchemy_does_not_take_are_refused(engine_kwargs: Any) -> None:
    with pytest.raises(InvalidInput, match="engine_kwargs cannot be used"):
        MetadataStore.from_url(URL, engine_kwargs=engine_kwargs)


# --- Tables -------------------------------------------------------------------------------------

FIRST: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "session": lambda store: store.session("a").set_metadata({"k": 1}),
    "append": lambda store: store.append("a", NewEvent("noted")),
    "user": lambda store: store.user("ann").set_metadata({"k": 1}),
    "as a user": lambda store: store.as_user("ann").create_session(),
    "find": lambda store: store.find_sessions_by_metadata("k", 1),
    "list": lambda store: store.list_sessions(),
    "horizon": lambda store: store.horizon(),
    "another store": lambda store: MetadataStore(store.engine).list_sessions(),
}


@pytest.mark.parametrize("call", FIRST.values(), ids=list(FIRST))
async def test_a_store_creates_its_tables_at_the_first_call(
    engine: AsyncEngine, call: Callable[[MetadataStore], Awaitable[Any]]
) -> None:
    store = MetadataStore(engine, create_tables=True)
    assert await MetadataStore(engine).schema_sql()
    await call(store)
    assert await store.schema_sql() == ""


# --- create_session -----------------------------------------------------------------------------


async def test_a_session_is_made_with_its_metadata(store: MetadataStore) -> None:
    session = await store.create_session(
        "ann", session_id="chat-1", metadata={"title": "Hi"}, actor="support:bob"
    )
    assert (session.session_id, session.user_id) == ("chat-1", "ann")
    assert await session.get_metadata() == {"title": "Hi"}
    entries = await session.history()
    assert [(entry.type, entry.actor) for entry in entries] == [
        ("user_assigned", "support:bob"),
        ("metadata_set", "support:bob"),
    ]


async def test_making_a_session_again_changes_nothing(store: MetadataStore) -> None:
    event_id = new_event_id()
    made = [
        await store.create_session("ann", event_id=event_id, metadata={"title": "Hi"})
        for _ in range(3)
    ]
    assert len({session.session_id for session in made}) == 1
    assert len(await made[0].history()) == 2
    assert len(await store.get_sessions_for_user("ann")) == 1


@pytest.mark.parametrize("again", [{"metadata": {"title": "Ho"}}, {"user_id": "bob"}])
async def test_another_creation_under_the_same_event_id_is_refused(
    store: MetadataStore, again: dict[str, Any]
) -> None:
    event_id = new_event_id()
    first: dict[str, Any] = {"user_id": "ann", "event_id": event_id, "metadata": {"title": "Hi"}}
    session = await store.create_session(**first)
    with pytest.raises(EventMetaError):
        await store.create_session(**{**first, **again})
    assert await session.get_metadata() == {"title": "Hi"}
    assert len(await session.history()) == 2
    assert await store.get_sessions_for_user("bob") == []


@pytest.mark.parametrize("commits", [True, False])
async def test_a_session_is_made_in_a_transaction_of_the_callers(
    store: MetadataStore, commits: bool
) -> None:
    async with store.engine.connect() as connection:
        session = await store.as_user("ann").create_session(
            connection=connection, metadata={"title": "Hi"}
        )
        await (connection.commit() if commits else connection.rollback())
    assert await session.get_metadata() == ({"title": "Hi"} if commits else {})
    assert len(await session.history()) == 2 * commits


async def test_what_cannot_be_made_leaves_nothing_behind(store: MetadataStore) -> None:
    await store.create_session("ann", session_id="taken")
    bad: list[dict[str, Any]] = [
        {"session_id": "taken", "metadata": {"k": 1}},
        {"session_id": ""},
        {"metadata": {"k": {1}}},
        {"metadata": ["k"]},
        {"event_id": "x"},
        {"actor": ""},
        {"connection": "x"},
    ]
    for options in bad:
        with pytest.raises(EventMetaError):
            await store.create_session("bob", **options)
    assert await store.get_sessions_for_user("bob") == []
    assert await store.user("bob").history() == []
    assert len(await store.session("taken").history()) == 1
