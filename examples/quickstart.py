"""A database of the Agents SDK gains metadata, and its history, by a change of one import.

Runs by itself: a scripted model stands for the real one, and nothing leaves this machine.
"""

import asyncio
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from agents import Agent, Runner, set_tracing_disabled
from agents.extensions.memory import SQLAlchemySession
from agents.memory import Session
from agents.testing import ScriptedModel, assistant_message

from eventmeta import MISSING, MetadataSession, ValueChange, acting_as

ANSWERS = [
    "Hello Ada! Which order is it about?",
    "Order 4711 left our house this morning.",
    "You are welcome.",
]
clerk = Agent(name="Clerk", model=ScriptedModel([[assistant_message(text)] for text in ANSWERS]))


async def main() -> None:
    """From upstream's session to ours, and into its past."""
    set_tracing_disabled(True)
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite+aiosqlite:///{Path(directory) / 'conversations.db'}"

        heading("The app as it was: upstream's SQLAlchemySession")
        before = SQLAlchemySession.from_url("chat-1", url=url, create_tables=True)
        await ask("Hi, this is Ada. Where is my parcel?", before)
        await before.engine.dispose()

        heading("One import later: MetadataSession opens the same database")
        session = MetadataSession.from_url("chat-1", url=url, create_tables=True)
        print(f"{len(await session.get_items())} items are there already.")
        await ask("4711.", session)
        await show_metadata(session)
        await ask("Thank you!", session)
        await show_history(session)
        await session.engine.dispose()


async def show_metadata(session: MetadataSession) -> None:
    """Two actors say what they know of the conversation, and it is found by that."""
    heading("Two actors set metadata")
    with acting_as("triage-bot", run="r-17"):
        await session.set_metadata({"customer": "Ada", "topic": "parcel", "priority": 2})
    with acting_as("support:bob", reason="she waits since Monday"):
        await session.set_metadata({"priority": 1, "tags": ["late", "parcel"]})
    print(await session.get_metadata())

    heading("Which sessions have priority 1?")
    print(await session.find_sessions_by_metadata("priority", 1))


async def show_history(session: MetadataSession) -> None:
    """Who changed what, when; and how it was before."""
    heading("The history of the session")
    history = await session.history()
    rows = [
        (
            entry.version,
            f"{entry.recorded_at:%H:%M:%S.%f}",
            entry.actor or "",
            entry.type,
            ", ".join(spelled_out(key, change) for key, change in entry.changes.items()),
        )
        for entry in history
    ]
    print_table(["version", "time (UTC)", "actor", "event", "change"], rows)

    last = [entry for entry in history if entry.changes][-1]
    heading(f"The metadata as it was before {last.actor} changed it (version {last.version - 1})")
    print(await session.get_metadata(as_of=last.version - 1))


def spelled_out(key: str, change: ValueChange) -> str:
    """One change in words."""
    if change.old is MISSING:
        return f"{key} = {change.new!r}"
    return f"{key}: {change.old!r} -> {change.new!r}"


async def ask(question: str, session: Session) -> None:
    """One turn of the conversation."""
    result = await Runner.run(clerk, question, session=session)
    print(f"  user:  {question}\n  clerk: {result.final_output}")


def heading(text: str) -> None:
    """A line that says what comes next."""
    print(f"\n{text}\n{'-' * len(text)}")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows in columns of one width."""
    table = [titles, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    asyncio.run(main())
