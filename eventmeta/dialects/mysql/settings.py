"""Settings of the session of a MySQL connection: set for the store, and put back afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

LOCK_TIMEOUT = "innodb_lock_wait_timeout"
_STRICT = {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"}
_SPELLING = {"ANSI_QUOTES", "NO_BACKSLASH_ESCAPES"}
"""Modes that SQLAlchemy and the driver know, and for which they spell their statements."""

_HARMLESS = {
    *_STRICT,
    *_SPELLING,
    "ALLOW_INVALID_DATES",
    "ERROR_FOR_DIVISION_BY_ZERO",
    "NO_AUTO_CREATE_USER",
    "NO_DIR_IN_CREATE",
    "NO_ENGINE_SUBSTITUTION",
    "NO_ZERO_DATE",
    "NO_ZERO_IN_DATE",
}
_CHARSETS = ("character_set_client", "character_set_connection", "character_set_results")
_ISOLATION = ("tx_isolation", "transaction_isolation")
_NEEDED = {
    **dict.fromkeys(_CHARSETS, "utf8mb4"),
    "sql_safe_updates": "0",
    "sql_select_limit": "18446744073709551615",
    "sql_big_selects": "1",
    "completion_type": "NO_CHAIN",
    "foreign_key_checks": "1",
    "unique_checks": "1",
}


class Settings(NamedTuple):
    """A statement that sets the session up for the store, and one that puts it back.

    The old values are kept in user variables meanwhile, so the app may change them in between.
    """

    set_up: str
    put_back: str

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Settings:
        """Return the settings for the session variables ``values``; their values are SQL."""
        kept = ", ".join(f"@eventmeta_{name} = @@{name}" for name in values)
        wanted = ", ".join(f"SESSION {name} = {value}" for name, value in values.items())
        back = ", ".join(f"SESSION {name} = @eventmeta_{name}" for name in values)
        return cls(f"SET {kept}, {wanted}", f"SET {back}")


@dataclass
class Facts:
    """The facts found out about a connection when it was prepared.

    Attributes:
        max_packet: The longest statement that the server takes, in bytes.
        reading: The settings for reads; None if an ordinary session is good enough.
        writing: The settings for transactions that write.
        is_set_up: Whether the session has the settings for transactions that write.
    """

    max_packet: int
    reading: Settings | None
    writing: Settings
    is_set_up: bool = False


def find_out(dbapi_connection: Any, *, is_mariadb: bool, lock_timeout: int) -> Facts:
    """Return the facts about the session of a connection."""
    names = ["max_allowed_packet", "sql_mode", *_NEEDED, _ISOLATION[not is_mariadb]]
    cursor = dbapi_connection.cursor()
    cursor.execute("SELECT " + ", ".join(f"CAST(@@{name} AS CHAR)" for name in names))
    found = dict(zip(names, map(str, cursor.fetchone()), strict=True))
    cursor.close()
    special = {name: value for name, value in _NEEDED.items() if found[name] != value}
    mode = set(filter(None, found["sql_mode"].split(",")))
    if not mode & _STRICT or mode - _HARMLESS:
        special["sql_mode"] = f"'{','.join(['STRICT_TRANS_TABLES', *sorted(mode & _SPELLING)])}'"
    if found[names[-1]] != "REPEATABLE-READ":
        special[names[-1]] = "'REPEATABLE-READ'"
    return Facts(
        int(found["max_allowed_packet"]),
        Settings.of(special) if special else None,
        Settings.of({**special, LOCK_TIMEOUT: str(lock_timeout)}),
    )
