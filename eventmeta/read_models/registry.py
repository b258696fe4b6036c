"""The projections of a database, and how each is kept up to date."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from eventmeta.core.projection_errors import InvalidProjection, UnknownProjection
from eventmeta.dialects.base import Dialect
from eventmeta.read_models.projection_checks import check_projection
from eventmeta.tables.tables import VERSIONED, Tables
from projections import AnyProjection, AppliedProjection, Projection


class RegisteredProjection(NamedTuple):
    """A projection, and how it is kept up to date.

    Attributes:
        projection: The projection.
        inline: It is updated in the transaction of every append; otherwise a projector updates it.
        built_in: It belongs to the store, not to the app.
    """

    projection: AnyProjection
    inline: bool
    built_in: bool = False


class ProjectionRegistry:
    """The projections of one database, by their names."""

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        self._tables = tables
        self._dialect = dialect
        self._found = {
            projection.name: RegisteredProjection(projection, inline=True, built_in=True)
            for projection in tables.built_in
        }

    def follow(self, tables: Tables) -> None:
        """Use ``tables`` from now on, among which are more built-in ones."""
        own = {
            each.name: RegisteredProjection(each, inline=True, built_in=True)
            for each in tables.built_in
        }
        for registered in self._found.values():
            if not registered.built_in:
                for table in registered.projection.tables:
                    table.to_metadata(tables.metadata).info[VERSIONED] = True
        self._tables, self._found = tables, {**self._found, **own}

    def __getitem__(self, name: object) -> RegisteredProjection:
        """Return the projection of this name.

        Raises:
            UnknownProjection: There is no projection of this name.
        """
        if not isinstance(name, str) or name not in self._found:
            raise UnknownProjection(name, sorted(self._found))
        return self._found[name]

    def __iter__(self) -> Iterator[RegisteredProjection]:
        return iter(self._found.values())

    def has_table(self, name: str) -> bool:
        """Return whether the store or a projection has a table or view called ``name``."""
        taken = [*self._tables.metadata.tables, self._tables.names.metadata_changes_view]
        return name.lower() in {each.lower() for each in taken}

    def add(self, projection: AnyProjection, *, inline: bool) -> bool:
        """Add a projection, and return False if it was registered already.

        Raises:
            InvalidProjection: It cannot be used, or another one has its name or its table.
        """
        check_projection(projection, self._tables, self._dialect)
        known = self._found.get(projection.name)
        if known == RegisteredProjection(projection, inline):
            return False
        if known is not None:
            raise InvalidProjection(
                f"projection {projection.name!r} is registered already, as another one or in "
                "another way: register each once, by a name of its own"
            )
        for table in projection.tables:
            if self.has_table(table.name):
                raise InvalidProjection(
                    f"table {table.name!r} of projection {projection.name!r} is in use already: "
                    "give each projection a table of its own"
                )
        for table in projection.tables:
            table.to_metadata(self._tables.metadata).info[VERSIONED] = True
        self._found[projection.name] = RegisteredProjection(projection, inline)
        return True

    @property
    def inline_folded(self) -> tuple[Projection, ...]:
        """Return the app's projections that the database folds in every append."""
        found = (each.projection for each in self if each.inline and not each.built_in)
        return tuple(each for each in found if isinstance(each, Projection))

    @property
    def inline_applied(self) -> tuple[AppliedProjection, ...]:
        """Return the app's projections that Python applies in every append."""
        found = (each.projection for each in self if each.inline)
        return tuple(each for each in found if isinstance(each, AppliedProjection))

    @property
    def asynchronous(self) -> list[AnyProjection]:
        """Return the projections that a projector keeps up to date."""
        return [each.projection for each in self if not each.inline]
