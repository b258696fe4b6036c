"""What writers write down: each attempt before it begins, and its outcome once it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Ending = Literal["acknowledged", "refused", "unknown"]


@dataclass
class Attempt:
    """A write as its writer saw it.

    Attributes:
        key: The event id; of a write by upstream's class, any unique text.
        session_id: Where it wrote.
        kind: What it did: ``add``, ``pop``, ``set``, ``delete`` or ``upstream``.
        texts: The items that it added.
        began: The number of the journal's line that says so.
        ended: Likewise; None if its process was killed before.
        ending: How it ended; ``unknown`` if it was cancelled, killed, or the connection was lost.
        seconds: How long it took.
        error: What was raised.
    """

    key: str
    session_id: str
    kind: str
    texts: Sequence[str]
    began: int
    ended: int | None = None
    ending: Ending = "unknown"
    seconds: float = 0.0
    error: str = ""


@dataclass
class History:
    """All that the writers wrote down.

    Attributes:
        attempts: By their key, in the order in which they began.
        unexpected: Errors that no writer should see, such as a cancellation of somebody else.
    """

    attempts: dict[str, Attempt] = field(default_factory=dict[str, Attempt])
    unexpected: list[str] = field(default_factory=list[str])

    def ended(self, ending: Ending) -> Iterator[Attempt]:
        """Yield the attempts that ended so."""
        return (each for each in self.attempts.values() if each.ending == ending)


class Journal:
    """A file to which several processes append lines, each at once or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, **line: Any) -> None:
        """Append a line."""
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(path: Path) -> History:
    """Return what is written down so far. The order of lines is the order of time."""
    history = History()
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines()):
        line = json.loads(text)
        match line.pop("say"):
            case "begin":
                history.attempts[line["key"]] = Attempt(began=number, **line)
            case "end":
                attempt = history.attempts[line.pop("key")]
                attempt.ended = number
                for name, value in line.items():
                    setattr(attempt, name, value)
            case _:
                history.unexpected.append(line["error"])
    return history
