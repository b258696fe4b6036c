"""Translation of database failures into the errors that callers get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eventmeta.core.database_errors import (
    DatabaseBusy,
    DatabaseFailure,
    DatabaseRefused,
    DatabaseUnavailable,
    OutcomeUnknown,
    TablesMissing,
)
from eventmeta.core.errors import EventMetaError
from eventmeta.dialects.base import Dialect
from eventmeta.dialects.failure import Failure

UNANSWERED = frozenset({Failure.DISCONNECTED, Failure.TIMED_OUT})
"""Failures after which it is unknown whether the server has executed the statement."""

UNREACHABLE = UNANSWERED | {Failure.NO_CONNECTION_LEFT}
_PASSING = UNREACHABLE | {Failure.CONFLICT, Failure.CANCELLED, Failure.NOT_LET_IN}
_RULES = frozenset({Failure.REFUSED, Failure.ORPHANED, Failure.FORBIDDEN})

_ERRORS: Mapping[Failure, tuple[type[DatabaseFailure], str]] = {
    Failure.CONFLICT: (DatabaseBusy, "in conflict with other writers"),
    Failure.CANCELLED: (DatabaseBusy, "a statement was cancelled"),
    Failure.NO_CONNECTION_LEFT: (DatabaseBusy, "no connection became free {whose}"),
    Failure.TIMED_OUT: (DatabaseBusy, "over the limit of time of the driver"),
    Failure.DISCONNECTED: (DatabaseUnavailable, "no connection to {where}"),
    Failure.NOT_LET_IN: (DatabaseUnavailable, "no connection to {where}"),
    Failure.RESOURCE: (DatabaseUnavailable, "{where} cannot do it now"),
}


@dataclass(frozen=True)
class Failures:
    """A translator of the failures of one database.

    Attributes:
        dialect: The database.
    """

    dialect: Dialect

    def translated(
        self, error: Exception, *, unknown: bool = False, was_lent: bool = True
    ) -> EventMetaError:
        """Return our own error for ``error``, without the values that SQLAlchemy's would show.

        Args:
            error: The error of the driver or of SQLAlchemy.
            unknown: A change may have been recorded, though no answer came.
            was_lent: The caller had a connection. If False, the error occurred while connecting.
        """
        if isinstance(error, EventMetaError):
            return error
        failure, code = self.dialect.diagnose(error)
        if failure is Failure.TIMED_OUT and not was_lent:
            failure = Failure.DISCONNECTED
        cause = getattr(error, "orig", None) or error
        summary = f"{type(cause).__name__}: {cause}"
        where = self.dialect.address
        translated: DatabaseFailure
        if failure is Failure.TABLE_MISSING:
            translated = TablesMissing(str(cause).splitlines()[0], code)
        elif failure in _RULES:
            translated = self._refused(error, summary, code)
        elif failure is Failure.HELD:
            says = f"held by a transaction that stays open: {summary}"
            translated = DatabaseBusy(says, code, held=True)
        elif unknown and failure in _PASSING:
            translated = OutcomeUnknown(f"no answer came from {where}: {summary}", code)
        elif failure in _ERRORS:
            kind, says = _ERRORS[failure]
            whose = "in the engine's pool" if code is None else f"at {where}"
            translated = kind(f"{says.format(where=where, whose=whose)}: {summary}", code)
        else:
            translated = DatabaseFailure(summary, code)
        translated.__cause__ = cause
        return translated

    def _refused(self, error: Exception, summary: str, code: object) -> DatabaseRefused:
        """Return the error for a change that a rule of the database forbids.

        The error names the rule and shows only the first line of the driver's message: the lines
        after it may show values of the row.
        """
        constraint, table, _ = self.dialect.rule_of(error)
        of = f", constraint {constraint}" if constraint else ""
        of += f", table {table}" if table else ""
        message = f"refused by a rule of the database{of}: {summary.splitlines()[0]}"
        return DatabaseRefused(message, code, constraint, table)

    def expired(self, seconds: float, *, unknown: bool, was_lent: bool) -> EventMetaError:
        """Return the error for a call that had not ended after ``seconds``.

        Args:
            seconds: The limit, in seconds.
            unknown: As for `translated`.
            was_lent: As for `translated`.
        """
        where, within = self.dialect.address, f"within {seconds:.3g} s"
        if unknown:
            closed = ", and the connection was closed" if was_lent else ""
            return OutcomeUnknown(
                f"no answer came from {where} {within}{closed}: the change may or may not be "
                "recorded; repeat the call with the same event_id"
            )
        if not was_lent and self.dialect.has_lent_all:
            return DatabaseBusy(f"no connection became free in the engine's pool {within}")
        if not was_lent and self.dialect.locks_whole_database:
            return DatabaseBusy(f"the writers before this one did not end {within}: {where}")
        return DatabaseUnavailable(
            f"no answer came from {where} {within}: check that it is up and can be reached, or "
            "give a larger timeout= to calls that take longer"
        )
