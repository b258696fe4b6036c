"""The keyword arguments that open a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmeta.session.binding import UserFrom
from eventmeta.tables.names import TableOptions

if TYPE_CHECKING:
    from agents.memory import SessionSettings


class _CommonOptions(TableOptions, total=False):
    create_tables: bool
    ensure_ascii: bool
    max_value_bytes: int
    timeout: float
    retry_for: float
    clear_keeps_metadata: bool
    claim: bool
    user_from: UserFrom | None


class UrlOptions(_CommonOptions, total=False):
    """Keyword arguments that `MetadataSession.from_url` takes besides those of upstream's."""

    user_id: str | None


class HandleOptions(_CommonOptions, total=False):
    """Keyword arguments of the calls that open sessions of a user: see `MetadataSession`."""

    session_settings: SessionSettings | dict[str, Any] | None


class CreationOptions(HandleOptions, total=False):
    """Keyword arguments of `MetadataSession.create_session`."""

    session_id: str | None
    metadata: Mapping[str, Any] | None
    actor: str | None
    event_id: str | UUID | None
    connection: AsyncConnection | AsyncSession | None


class SessionOptions(HandleOptions, UrlOptions, total=False):
    """Keyword arguments that open a session; each is optional.

    `MetadataSession` explains them.
    """
