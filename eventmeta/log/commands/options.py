"""The options that every write method takes besides its own arguments."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, TypedDict
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmeta.core.actor import current_actor
from eventmeta.core.canonical_json import context_text
from eventmeta.core.errors import InvalidInput, UnknownOption
from eventmeta.core.principal import Principal
from eventmeta.core.validation import check_actor, check_event_id, new_event_id
from eventmeta.tables.names import TableOptions


class WriteOptions(TypedDict, total=False):
    """The keyword arguments of all write methods; each may be left out.

    Attributes:
        expected_version: Write only if the session is at this version (0: nothing recorded yet),
            else raise `VersionConflict`.
        actor: Who writes; the ambient actor (`acting_as`) if left out.
        event_id: A UUID under which the change is recorded at most once, so that a call whose
            outcome is unknown can be repeated.
        connection: Write inside this transaction of the caller's, and commit or roll back with it.
    """

    expected_version: int | None
    actor: str | None
    event_id: str | UUID | None
    connection: AsyncConnection | AsyncSession | None


_OPTIONS = frozenset(WriteOptions.__annotations__)


def check_options(call: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that ``call`` does not take, and suggest one that it takes.

    Raises:
        UnknownOption: One of the ``given`` options is not ``known``.
    """
    for option in sorted({*given}.difference(known)):
        near = difflib.get_close_matches(option, known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}"
        raise UnknownOption(call, option, remedy)


def options_of(kind: Any) -> frozenset[str]:
    """Return the keyword arguments that the constructor of the class ``kind`` takes."""
    return _options_of(kind)


@cache
def _options_of(kind: Any) -> frozenset[str]:
    classes: tuple[type, ...] = kind.__mro__
    names = set(TableOptions.__annotations__)
    for each in classes:
        constructor: Any = vars(each).get("__init__")
        if constructor is None or each is object:
            continue
        taken = inspect.signature(constructor).parameters.values()
        names |= {each.name for each in taken if each.kind is not each.VAR_KEYWORD}
        passed_on = [each.annotation for each in taken if each.kind is each.VAR_KEYWORD]
        if passed_on in ([], ["Unpack[TableOptions]"]):
            break
    return frozenset(names - {"self", "session_id", "engine"})


def check_table_options(kind: type, given: TableOptions) -> None:
    """Raise `UnknownOption` if the constructor of ``kind`` does not take one of ``given``."""
    if given.keys() - TableOptions.__annotations__.keys():
        check_options(f"{kind.__name__}()", given, options_of(kind))


def check_mapping(what: str, value: object) -> None:
    """Refuse a ``value`` that is not a mapping.

    Raises:
        InvalidInput: The value is not a mapping.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{what} is a {type(value).__name__}; give a dict")


def check_connection(value: object) -> None:
    """Refuse a ``connection=`` that cannot be the caller's.

    Raises:
        InvalidInput: The value is neither an ``AsyncConnection`` nor an ``AsyncSession`` nor None.
    """
    if value is not None and not isinstance(value, AsyncConnection | AsyncSession):
        raise InvalidInput(
            f"connection is a {type(value).__name__}: give an AsyncConnection or AsyncSession of "
            "SQLAlchemy's, with the transaction to write in"
        )


def command_fields(
    call: str, options: WriteOptions, access: Principal, extra_context: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Return the fields of a command: from ``options``, ``access`` and the ambient actor.

    Raises:
        InvalidInput: An option cannot be used.
        UnknownOption: There is no such option.
    """
    if options:
        check_options(call, options, _OPTIONS)
    check_connection(options.get("connection"))
    check_mapping("context", extra_context)
    expected = options.get("expected_version")
    if expected is not None and (type(expected) is not int or expected < 0):
        raise InvalidInput(f"expected_version {expected!r} is no version: give 0, 1, 2 …")
    ambient = current_actor()
    actor = options.get("actor")
    event_id = options.get("event_id")
    context = {**ambient.context, **extra_context}
    return {
        "event_id": new_event_id() if event_id is None else check_event_id(event_id),
        "may_be_retry": event_id is not None,
        "expected_version": expected,
        "actor": ambient.name if actor is None else check_actor(actor),
        "context": context_text(context),
        "access": access,
    }
