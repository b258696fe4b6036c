"""Those who are compared: each a module, each doing the same work through its own public API."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.peers.base import Item, Peer, Values, offers

__all__ = [
    "OURS",
    "PEERS",
    "Item",
    "Missing",
    "Peer",
    "PeerEntry",
    "Values",
    "installed",
    "offers",
]


class Missing(Exception):
    """A peer is not installed; the message says how to install it."""


@dataclass(frozen=True)
class PeerEntry:
    """A peer that need not be installed.

    Attributes:
        name: How the command line and the tables call it.
        classes: Its `Peer` on each backend that it runs on, as ``module:class``.
        imports: What an app imports to use it; None if that says nothing about it.
        packages: What has to be installed for it.
    """

    name: str
    classes: Mapping[str, str] = field(default_factory=dict[str, str])
    imports: str | None = None
    packages: tuple[str, ...] = ()

    def load(self, backend: str) -> type[Peer]:
        """Its class for a backend.

        Raises:
            Missing: It is not installed.
        """
        module, _, name = self.classes[backend].partition(":")
        try:
            found: type[Peer] = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)
        except ImportError as error:
            packages = " ".join(self.packages) or "'.[all]'"
            raise Missing(
                f"{self.name} is not installed ({error}): pip install {packages}, "
                "or let `make bench` install all peers"
            ) from error
        return found


def _everywhere(place: str) -> dict[str, str]:
    return dict.fromkeys(("sqlite", "postgresql"), place)


OURS = "eventmeta"
PEERS = {
    entry.name: entry
    for entry in (
        PeerEntry(OURS, _everywhere("ours:Ours"), "import eventmeta"),
        PeerEntry("structured", _everywhere("ours:Structured")),
        PeerEntry(
            "upstream",
            _everywhere("upstream:Upstream"),
            "from agents.extensions.memory import SQLAlchemySession",
        ),
        PeerEntry(
            "advanced-sqlite",
            {"sqlite": "advanced_sqlite:AdvancedSQLite"},
            "from agents.extensions.memory import AdvancedSQLiteSession",
        ),
        PeerEntry("eav", _everywhere("eav:EAV")),
        PeerEntry(
            "langgraph",
            {"sqlite": "langgraph:OnSQLite", "postgresql": "langgraph:OnPostgreSQL"},
            "from langgraph.store.sqlite.aio import AsyncSqliteStore",
            ("langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres", "psycopg[binary]"),
        ),
        PeerEntry(
            "google-adk",
            _everywhere("google_adk:GoogleADK"),
            "from google.adk.sessions import DatabaseSessionService",
            ("google-adk",),
        ),
        PeerEntry(
            "eventsourcing",
            {"sqlite": "eventsourcing:OnSQLite", "postgresql": "eventsourcing:OnPostgreSQL"},
            "from eventsourcing.application import Application",
            ("eventsourcing[postgres]",),
        ),
        PeerEntry(
            "bare-driver",
            {"sqlite": "bare_sqlite:BareSQLite", "postgresql": "bare_postgresql:BarePostgreSQL"},
        ),
        PeerEntry(
            "gathered-driver",
            {
                "sqlite": "gathered_sqlite:GatheredSQLite",
                "postgresql": "gathered_postgresql:GatheredPostgreSQL",
            },
        ),
        PeerEntry("sqlalchemy", imports="import sqlalchemy.ext.asyncio"),
    )
}
"""In the order in which they take turns. The last is there for the time of its import only."""


def installed(backend: str, names: Iterable[str]) -> tuple[dict[str, type[Peer]], list[Missing]]:
    """The classes of those that run on ``backend``, and who is missing."""
    found: dict[str, type[Peer]] = {}
    missing: list[Missing] = []
    for entry in (PEERS[name] for name in names):
        if backend in entry.classes:
            try:
                found[entry.name] = entry.load(backend)
            except Missing as error:
                missing.append(error)
    return found, missing
