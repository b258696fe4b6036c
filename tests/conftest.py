"""Fixtures: a fresh database on each backend.

``--backend NAME`` (repeatable) narrows the backends. One that cannot be had is skipped, and said so
at the end; with ``EVENTMETA_REQUIRE_BACKENDS=1`` its tests fail instead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import MetadataSession, MetadataStore, verify_projection
from tests.support.backends import NAMES, PERSISTENT, SERVERS, Backend, Backends
from tests.support.servers import Unavailable

REQUIRE_VARIABLE = "EVENTMETA_REQUIRE_BACKENDS"
PROFILE_VARIABLE = "EVENTMETA_HYPOTHESIS_PROFILE"

settings.register_profile("default", max_examples=50, deadline=None, print_blob=True)
settings.register_profile("quick", settings.get_profile("default"), max_examples=10)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)

BACKENDS = pytest.StashKey[Backends]()
FOUND_ELSEWHERE = pytest.StashKey[dict[str, str]]()
UNAVAILABLE = "unavailable"
NARROWING = {
    "server_backend": SERVERS,
    "persistent_backend": PERSISTENT,
    "persistent_url": PERSISTENT,
    "sqlite_file_backend": ("sqlite-file",),
    "sqlite_memory_backend": ("sqlite-memory",),
    "postgresql_backend": ("postgresql",),
    "mariadb_backend": ("mariadb",),
}
"""The fixtures that leave only some of the backends to a test."""

LONG_VARIABLE = "EVENTMETA_LONG"
SHORTER = {"each_dialect": {"sqlite-file"}, "two_dialects": {"sqlite-file", "mariadb"}}
"""The backends that marked tests leave to the long battery, in which all run on all of them."""

QUICK_BACKENDS = 2
"""On how many of its backends a test is run with ``--quick``."""

QUICK_CASES = 1
"""With how many of its parameters it is run on each of them."""

CHECK_IN_TURNS = 100


def pytest_configure(config: pytest.Config) -> None:
    usual = "quick" if config.getoption("--quick") else "default"
    settings.load_profile(os.environ.get(PROFILE_VARIABLE, usual))
    config.addinivalue_line(
        "markers", "only_on(*backends): a test or a parameter that is for these"
    )
    config.addinivalue_line("markers", "slow: takes seconds, so ``--quick`` leaves it out")
    config.addinivalue_line("markers", "each_dialect: about SQL, so one kind of SQLite will do")
    config.addinivalue_line("markers", "two_dialects: about rules that are the same in all SQL")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        choices=NAMES,
        default=[],
        help="run only the tests on this backend (may be repeated)",
    )
    parser.addoption(
        "--quick",
        action="store_true",
        help="run each test on two of its backends, in turns, with some of its parameters and few "
        "examples of a property; leave out those that are marked slow",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses a database once on each backend that it is for."""
    if "backend" not in metafunc.fixturenames:
        return
    allowed = set(metafunc.config.getoption("--backend") or NAMES)
    narrowing = NARROWING.keys() & metafunc.fixturenames
    for fixture in narrowing:
        allowed.intersection_update(NARROWING[fixture])
    if not narrowing and LONG_VARIABLE not in os.environ:
        for mark in SHORTER.keys() & {each.name for each in metafunc.definition.iter_markers()}:
            allowed.difference_update(SHORTER[mark])
    metafunc.parametrize("backend", [name for name in NAMES if name in allowed], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out each test that, or a parameter of which, is not for its backend."""
    items[:] = [item for item in items if _is_for_its_backend(item)]
    if config.getoption("--quick"):
        kept = _quick(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def _quick(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return some cases of each test on some of its backends; the tests take these in turns."""
    tests: dict[str, dict[Any, list[pytest.Item]]] = {}
    for item in items:
        params = _params(item)
        name = item.nodeid.partition("[")[0] if "backend" in params else item.nodeid
        tests.setdefault(name, {}).setdefault(params.get("backend"), []).append(item)
    kept: set[pytest.Item] = set()
    for turn, backends in enumerate(tests.values()):
        names = [*backends] * 2
        first = turn % len(backends)
        for name in names[first : first + min(QUICK_BACKENDS, len(backends))]:
            cases = backends[name]
            step = max(len(cases) - 1, 1) / max(QUICK_CASES - 1, 1)
            kept.update(cases[round(n * step)] for n in range(min(QUICK_CASES, len(cases))))
    return {item for item in kept if not any(item.iter_markers("slow"))}


def _params(item: pytest.Item) -> dict[str, Any]:
    callspec: Any = getattr(item, "callspec", None)
    return {} if callspec is None else callspec.params


def _is_for_its_backend(item: pytest.Item) -> bool:
    for mark in item.iter_markers("only_on"):
        if not isinstance(item, pytest.Function) or not set(mark.args) <= set(NAMES):
            raise pytest.UsageError(f"{item.nodeid}: only_on() takes some of {NAMES}")
        if item.callspec.params["backend"] not in mark.args:
            return False
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that prints the summary, where several run the tests."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[UNAVAILABLE] = _unavailable(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    found: dict[str, str] = getattr(node, "workeroutput", {}).get(UNAVAILABLE, {})
    node.config.stash[FOUND_ELSEWHERE] = {**node.config.stash.get(FOUND_ELSEWHERE, {}), **found}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    elsewhere: dict[str, str] = config.stash.get(FOUND_ELSEWHERE, {})
    unavailable = {**elsewhere, **_unavailable(config)}
    for name, reason in unavailable.items():
        terminalreporter.write_line(f"SKIPPED BACKEND {name}: {reason}", red=True, bold=True)


def _unavailable(config: pytest.Config) -> dict[str, str]:
    backends = config.stash.get(BACKENDS, None)
    return backends.unavailable if backends else {}


def backends_are_required() -> bool:
    return os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0")


@pytest.fixture(scope="session")
def backends(pytestconfig: pytest.Config) -> Iterator[Backends]:
    """All backends, by name; their servers run until the end of the session."""
    with Backends() as found:
        pytestconfig.stash[BACKENDS] = found
        yield found


@pytest.fixture
def backend(request: pytest.FixtureRequest, backends: Backends) -> Backend:
    """The backend of this test, which runs once on each."""
    try:
        return backends[request.param]
    except Unavailable as error:
        if backends_are_required():
            pytest.fail(f"backend {request.param} is required: {error}", pytrace=False)
        pytest.skip(f"backend {request.param}: {error}")


def narrowed() -> Any:
    """The backend of this test, which runs only on those of `NARROWING`."""

    @pytest.fixture
    def narrowed_backend(backend: Backend) -> Backend:
        return backend

    return narrowed_backend


server_backend = narrowed()
persistent_backend = narrowed()
sqlite_file_backend = narrowed()
sqlite_memory_backend = narrowed()
postgresql_backend = narrowed()
mariadb_backend = narrowed()


@pytest.fixture
async def url(backend: Backend) -> AsyncIterator[str]:
    """The URL of a fresh empty database."""
    async with backend.database() as fresh:
        yield fresh


@pytest.fixture
def persistent_url(url: str) -> str:
    """The URL of a fresh empty database that several processes can reach."""
    return url


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a fresh empty database; fails the test if it leaves a connection checked out."""
    engine = create_async_engine(url)
    checked_out = watch_connections(engine)
    try:
        yield engine
        await all_returned(checked_out)
    finally:
        await engine.dispose()


@pytest.fixture
async def store(engine: AsyncEngine) -> AsyncIterator[MetadataStore]:
    """A store with its tables; fails the test if table and log do not agree at the end."""
    store = MetadataStore(engine)
    await store.create_tables()
    yield store
    assert await verify_projection(MetadataStore(engine)) == []
    await store.close()


@pytest.fixture
async def structured(engine: AsyncEngine) -> AsyncIterator[MetadataStore]:
    """The same, with the tables of conversations, tool calls and usage."""
    store = MetadataStore(engine, structured_metadata=True)
    await store.create_tables()
    yield store
    assert await verify_projection(MetadataStore(engine, structured_metadata=True)) == []
    await store.close()


@pytest.fixture
async def another_store(url: str) -> AsyncIterator[Callable[[], MetadataStore]]:
    """Makes stores as other processes would have them: with engines and writers of their own."""
    engines: list[AsyncEngine] = []

    def make() -> MetadataStore:
        engines.append(create_async_engine(url))
        return MetadataStore(engines[-1])

    yield make
    for engine in engines:
        await engine.dispose()


@pytest.fixture
def session(store: MetadataStore) -> MetadataSession:
    return store.session("alpha")


def watch_connections(
    engine: AsyncEngine, until: Sequence[str] = ("checkin", "detach")
) -> set[Any]:
    """The set of pooled connections that are checked out, or were and are open: kept up to date."""
    checked_out: set[Any] = set()

    def taken(connection: Any, record: Any, proxy: Any) -> None:
        checked_out.add(record)

    def returned(connection: Any, record: Any) -> None:
        checked_out.discard(record)

    event.listen(engine.sync_engine, "checkout", taken)
    for name in until:
        event.listen(engine.sync_engine, name, returned)
    return checked_out


async def all_returned(checked_out: set[Any]) -> None:
    """Fail unless every connection is back in the pool, at once or after work that still ends."""
    for _ in range(CHECK_IN_TURNS):
        if not checked_out:
            return
        await asyncio.sleep(0.01)
    assert not checked_out, f"{len(checked_out)} connections are still checked out"
