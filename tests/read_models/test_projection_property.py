"""Whatever happens to sessions: table = fold of the log = plain dict, at every version."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmeta import (
    MISSING,
    ItemAlreadyPopped,
    MetadataStore,
    NewEvent,
    Position,
    VersionConflict,
    new_event_id,
    verify_projection,
)
from eventmeta.read_models.fold import select_rows
from projections import KnownEvent
from tests.support.backends import Backend
from tests.support.json_values import equal, exact

pytestmark = pytest.mark.each_dialect

SESSIONS = ("alpha", "Alpha ")
ENDS = ("commit", "rollback")
KEYS = ("a", "A", "a ", "\u00e9", "e\u0301")
FEW_EXAMPLES = settings(
    max_examples=max(10, settings().max_examples // 5), stateful_step_count=15, deadline=None
)


# --- The model ----------------------------------------------------------------------------------


@dataclass
class Model:
    """What one session should be, and was at each version."""

    metadata: dict[str, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    exists: bool = False
    past: list[dict[str, Any]] = field(default_factory=lambda: [{}])

    def record(self) -> None:
        self.past.append(dict(self.metadata))

    def remove(self, keys: Iterator[str] | list[str]) -> bool:
        removed = [self.metadata.pop(key) for key in list(keys) if key in self.metadata]
        return bool(removed)


@dataclass(frozen=True)
class Operation:
    """Something to do to a session, and to its model."""

    session: str
    kind: str
    argument: Any = None

    def call(self, store: MetadataStore, **options: Any) -> Awaitable[Any]:
        session = store.session(self.session)
        match self.kind:
            case "set":
                return session.set_metadata(self.argument, **options)
            case "stale set":
                return session.set_metadata({"a": "never seen"}, expected_version=10_000)
            case "delete":
                return session.delete_metadata(self.argument, **options)
            case "clear":
                return session.clear_session(keep_metadata=self.argument, **options)
            case "add":
                return session.add_items(self.argument, **options)
            case "pop":
                return session.pop_item(**options)
            case "replace":
                return session._atomic_replace_items(self.argument)
            case "event":
                event = NewEvent("noted", self.argument, event_id=options.pop("event_id", None))
                return store.append(self.session, event, **options)
        raise AssertionError(self.kind)

    def apply(self, model: Model) -> None:
        if self.change(model):
            model.record()

    def change(self, model: Model) -> bool:
        """Change the model; whether there is anything to record."""
        match self.kind:
            case "set":
                model.metadata |= self.argument
                model.exists |= bool(self.argument)
                return bool(self.argument)
            case "delete":
                return model.remove(
                    list(model.metadata) if self.argument is None else self.argument
                )
            case "clear":
                return self.clear(model)
            case "add":
                model.items += self.argument
                model.exists |= bool(self.argument)
                return bool(self.argument)
            case "pop":
                return bool(model.items) and bool(model.items.pop())
            case "replace":
                model.items = list(self.argument)
                model.exists |= bool(self.argument)
                return True
        return self.kind == "event"

    def clear(self, model: Model) -> bool:
        changed = bool(model.items) or (model.exists and not self.argument)
        model.items = []
        if not self.argument:
            model.metadata, model.exists = {}, False
        return changed


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(0, 1).map(float)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
keys = st.sampled_from(KEYS)
items = st.builds(lambda content: {"role": "user", "content": content}, texts)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "set": st.dictionaries(keys, values, max_size=3),
    "stale set": st.none(),
    "delete": st.none() | st.lists(keys, max_size=3),
    "clear": st.booleans(),
    "add": st.lists(items, max_size=3),
    "pop": st.none(),
    "replace": st.lists(items, max_size=3),
    "event": st.dictionaries(st.sampled_from(["changes", "n"]), values, max_size=2),
}
WITHOUT_OPTIONS = ("stale set", "replace")


def operations_of(kinds: Iterable[str]) -> st.SearchStrategy[Operation]:
    return st.one_of(
        *(
            st.builds(Operation, st.sampled_from(SESSIONS), st.just(kind), ARGUMENTS[kind])
            for kind in kinds
        )
    )


operations = operations_of(ARGUMENTS)
with_options = operations_of(kind for kind in ARGUMENTS if kind not in WITHOUT_OPTIONS)


# --- A database outside of any test's own event loop ---------------------------------------------


@contextmanager
def running(
    backend: Backend, **options: Any
) -> Iterator[tuple[asyncio.Runner, Callable[[], MetadataStore]]]:
    """A runner, and a maker of stores that are empty, all in one database."""
    numbers = itertools.count()

    def empty_store(engine: AsyncEngine) -> MetadataStore:
        prefix = f"t{next(numbers)}_"
        store = MetadataStore(
            engine,
            sessions_table=f"{prefix}sessions",
            messages_table=f"{prefix}messages",
            session_metadata_table=f"{prefix}metadata",
            events_table=f"{prefix}events",
            streams_table=f"{prefix}streams",
            metadata_changes_view=f"{prefix}changes",
            users_table=f"{prefix}users",
            conversation_table=f"{prefix}conversation",
            tool_calls_table=f"{prefix}tool_calls",
            usage_table=f"{prefix}usage",
            checkpoints_table=f"{prefix}checkpoints",
            parked_streams_table=f"{prefix}parked",
            **options,
        )
        runner.run(store.create_tables())
        return store

    with asyncio.Runner() as runner:
        database = backend.database()
        engine = create_async_engine(runner.run(database.__aenter__()))
        try:
            yield runner, lambda: empty_store(engine)
        finally:
            runner.run(engine.dispose())
            runner.run(database.__aexit__(None, None, None))


# --- The machine --------------------------------------------------------------------------------


class Sessions(RuleBasedStateMachine):
    """Two sessions in one store, and the models of both."""

    def __init__(self, runner: asyncio.Runner, empty_store: Callable[[], MetadataStore]) -> None:
        super().__init__()
        self.runner = runner
        self.store = empty_store()
        self.models = {name: Model() for name in SESSIONS}
        self.moments: list[tuple[Position, dict[str, dict[str, Any]]]] = []

    @initialize(metadata=ARGUMENTS["set"])
    def begins(self, metadata: dict[str, Any]) -> None:
        self.runner.run(self.carry_out([Operation(SESSIONS[0], "set", metadata)]))

    @rule(operation=operations)
    def alone(self, operation: Operation) -> None:
        self.runner.run(self.carry_out([operation]))

    @rule(together=st.lists(operations, min_size=2, max_size=6))
    def in_one_batch(self, together: list[Operation]) -> None:
        self.runner.run(self.carry_out(together))

    @rule(operation=with_options, at_once=st.booleans())
    def repeated_under_its_event_id(self, operation: Operation, at_once: bool) -> None:
        self.runner.run(self.carry_out_twice(operation, at_once))

    async def carry_out_twice(self, operation: Operation, at_once: bool) -> None:
        """The repetition changes nothing."""
        event_id, model = new_event_id(), self.models[operation.session]
        versions = len(model.past)
        first: Any
        second: Any

        def call() -> Awaitable[Any]:
            return operation.call(self.store, event_id=event_id)

        if at_once:
            first, second = await asyncio.gather(call(), call(), return_exceptions=True)
        else:
            (first,) = await asyncio.gather(call(), return_exceptions=True)
            (second,) = await asyncio.gather(call(), return_exceptions=True)
        operation.apply(model)
        assert not isinstance(first, BaseException)
        if operation.kind == "pop" and len(model.past) > versions:
            assert isinstance(second, ItemAlreadyPopped)
        else:
            assert second == first

    @rule(several=st.lists(with_options, min_size=1, max_size=4), ends=st.sampled_from(ENDS))
    def in_a_transaction_of_the_apps(self, several: list[Operation], ends: str) -> None:
        self.runner.run(self.carry_out_within(several, ends))

    async def carry_out_within(self, several: list[Operation], ends: str) -> None:
        async with self.store.engine.connect() as connection:
            for operation in several:
                await operation.call(self.store, connection=connection)
            await (connection.commit() if ends == "commit" else connection.rollback())
        if ends == "commit":
            for operation in several:
                operation.apply(self.models[operation.session])

    async def carry_out(self, together: list[Operation]) -> None:
        results = await asyncio.gather(
            *(operation.call(self.store) for operation in together), return_exceptions=True
        )
        for operation, result in zip(together, results, strict=True):
            if operation.kind == "stale set":
                assert isinstance(result, VersionConflict)
            elif isinstance(result, BaseException):
                raise result
            operation.apply(self.models[operation.session])

    @invariant()
    def all_agree(self) -> None:
        self.runner.run(self.check_the_present())

    async def check_the_present(self) -> None:
        for name, model in self.models.items():
            session, version = self.store.session(name), len(model.past) - 1
            now, then, items_now, stored = await asyncio.gather(
                session.get_metadata(),
                session.get_metadata(as_of=version),
                session.get_items(),
                session.history(after=max(version - 1, 0)),
            )
            assert exact(now) == exact(then) == exact(model.metadata)
            assert items_now == model.items
            assert [entry.version for entry in stored] == [version] * bool(version)
            for key, value in model.metadata.items():
                found = await self.store.find_sessions_by_metadata(key, value)
                assert set(found) == self.with_value(key, value)
        assert await verify_projection(self.store) == []
        last = Position(await self.store.horizon())
        state = {name: dict(model.metadata) for name, model in self.models.items()}
        self.moments.append((last, state))

    def with_value(self, key: str, value: Any) -> set[str]:
        return {
            name
            for name, model in self.models.items()
            if key in model.metadata and equal(model.metadata[key], value)
        }

    def teardown(self) -> None:
        self.runner.run(self.check_the_past())

    async def check_the_past(self) -> None:
        for name, model in self.models.items():
            session = self.store.session(name)
            for version, state in enumerate(model.past):
                assert exact(await session.get_metadata(as_of=version)) == exact(state), version
            for position, states in self.moments:
                found = await session.get_metadata(as_of=position)
                assert exact(found) == exact(states[name]), position
            replayed: dict[str, Any] = {}
            for entry in await session.history():
                for key, change in entry.changes.items():
                    assert exact_or_missing(change.old) == exact_or_missing(
                        replayed.get(key, MISSING)
                    )
                    replayed[key] = change.new
                there = {key: value for key, value in replayed.items() if value is not MISSING}
                assert exact(there) == exact(model.past[entry.version])
        await self.store.close()


def exact_or_missing(value: Any) -> Any:
    return value if value is MISSING else exact(value)


def test_table_and_fold_and_model_agree_after_every_step(backend: Backend) -> None:
    with running(backend) as (runner, empty_store):

        class OnThisBackend(Sessions):
            def __init__(self) -> None:
                super().__init__(runner, empty_store)

        run_state_machine_as_test(OnThisBackend, settings=FEW_EXAMPLES)


# --- Batches ------------------------------------------------------------------------------------


def split(sequence: list[Operation], sizes: list[int]) -> Iterator[list[Operation]]:
    rest = iter(sequence)
    for size in itertools.cycle(sizes):
        batch = list(itertools.islice(rest, size))
        if not batch:
            return
        yield batch


async def table_after(
    store: MetadataStore, sequence: list[Operation], sizes: list[int]
) -> list[tuple[Any, ...]]:
    for batch in split(sequence, sizes):
        await asyncio.gather(
            *(operation.call(store) for operation in batch), return_exceptions=True
        )
    assert await verify_projection(store) == []
    table = store._log.database.tables.session_metadata.table.name
    async with store.engine.connect() as connection:
        rows = await connection.execute(text(f"SELECT * FROM {table}"))
        columns = ("session_id", "key", "value", "indexed_value")
        found = sorted(tuple(row[name] for name in columns) for row in rows.mappings())
    await store.close()
    return found


def test_any_split_into_batches_leaves_the_same_table(backend: Backend) -> None:
    with running(backend) as (runner, empty_store):

        @settings(FEW_EXAMPLES)
        @given(
            sequence=st.lists(operations, min_size=2, max_size=20),
            sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
        )
        def check(sequence: list[Operation], sizes: list[int]) -> None:
            one_by_one = runner.run(table_after(empty_store(), sequence, [1]))
            assert runner.run(table_after(empty_store(), sequence, sizes)) == one_by_one

        check()


# --- The shorter way ----------------------------------------------------------------------------


async def both_folds(
    store: MetadataStore, sequence: list[Operation]
) -> tuple[list[Any], list[Any]]:
    """The rows by the Select, which the database folds, and by the fold of events at hand."""
    for operation in sequence:
        await operation.call(store)
    events = [event async for event in store.events(types=["metadata_set"])]
    known = [KnownEvent(event.stream_id, event.data, event.recorded_at) for event in events]
    log, metadata = store._log, store._log.database.tables.session_metadata
    rows = await log.database.read(select_rows(metadata, log.events()))
    await store.close()
    assert metadata.fold is not None
    return sorted(map(tuple, rows)), metadata.fold(known)


def test_what_is_folded_at_hand_is_what_the_select_yields(backend: Backend) -> None:
    with running(backend) as (runner, empty_store):

        @settings(FEW_EXAMPLES)
        @given(sequence=st.lists(operations_of(["set"]), min_size=2, max_size=12))
        def check(sequence: list[Operation]) -> None:
            in_database, at_hand = runner.run(both_folds(empty_store(), sequence))
            assert at_hand == in_database

        check()
