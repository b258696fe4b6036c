"""The progress bar."""

import io
import sys

import pytest
from rich.console import Console

from eventmeta import (
    Backfill,
    ExportProgress,
    MetadataStore,
    MissingExtra,
    RebuildProgress,
    progress_bar,
)


def test_stages_are_shown_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with progress_bar(console) as bar:
        bar(RebuildProgress("metadata", "fill", 5, 10))
        bar(RebuildProgress("metadata", "swap", 1, 1))
        bar(ExportProgress(50, 100, 40))
        bar(Backfill(7, "s7"))
    for text in ("metadata: fill", "metadata: swap", "export", "100%", "50%", "backfill"):
        assert text in screen.getvalue()


def test_nothing_is_shown_elsewhere() -> None:
    screen = io.StringIO()
    with progress_bar(Console(file=screen)) as bar:
        bar(ExportProgress(1, 1, 1))
    assert screen.getvalue().strip() == ""


async def test_a_rebuild_and_an_export_take_it(store: MetadataStore) -> None:
    await store.session("a").set_metadata({"title": "Rivers"})
    screen = io.StringIO()
    with progress_bar(Console(file=screen, force_terminal=True, width=100)) as bar:
        await store.rebuild("metadata", progress=bar)
        await store.to_arrow(progress=bar)
    for stage in ("fill", "catch up", "compare", "swap"):
        assert f"metadata: {stage}" in screen.getvalue()
    assert "export" in screen.getvalue()


def test_without_rich_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "rich":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"eventmeta\[progress\]"), progress_bar():
        pass
