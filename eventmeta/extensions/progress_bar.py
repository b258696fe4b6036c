"""A progress bar for rebuilds, exports and backfills, shown only in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from eventmeta.core.errors import MissingExtra
from eventmeta.log.arrow import ExportProgress
from eventmeta.projector.progress import RebuildProgress
from eventmeta.store.backfill import Backfill

Progress = RebuildProgress | ExportProgress | Backfill


@contextmanager
def progress_bar(console: Any = None) -> Generator[Callable[[Progress], None]]:
    """Show a progress bar; yield the function to pass as ``progress=``.

    ``with progress_bar() as bar: await store.rebuild("metadata", progress=bar)``

    Args:
        console: A ``rich.console.Console``; standard error if None. If it is not a terminal,
            nothing is shown.

    Raises:
        MissingExtra: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import Progress as Bars
    except ImportError:
        raise MissingExtra("rich", "progress") from None
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _show_nothing
        return
    tasks: dict[str, Any] = {}
    with Bars(console=console) as bars:

        def show(progress: Progress) -> None:
            name, done, total = _shown(progress)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield show


def _show_nothing(_: Progress) -> None:
    pass


def _shown(progress: Progress) -> tuple[str, int, int | None]:
    if isinstance(progress, ExportProgress):
        return "export", progress.position, progress.until
    if isinstance(progress, Backfill):
        return "backfill: sessions", progress.sessions, None
    return f"{progress.projection}: {progress.stage}", progress.done, progress.total
