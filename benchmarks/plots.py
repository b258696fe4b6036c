"""A run as diagrams, each as SVG and as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import series
from benchmarks.peers import Missing
from benchmarks.results import Result, Run
from benchmarks.series import Panel

PLOTS: dict[str, Callable[[Sequence[Result]], list[Panel]]] = {
    "throughput": series.throughput,
    "latency": series.latency,
    "growth": series.growth,
}
X_SCALES = {series.CALLERS: "log", series.STORED: "symlog", series.PERCENT: "linear"}
CROWDED = {5, 10, 95}
COLUMNS = 3
WIDTH, HEIGHT = 4.6, 3.4
FORMATS = ("svg", "png")


def draw(run: Run, folder: Path) -> list[Path]:
    """Write a file per backend, kind and format, as far as there is something to draw.

    Raises:
        Missing: matplotlib is not installed.
        OSError: The files cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise Missing(
            "plots need matplotlib: pip install matplotlib, or let `make bench` install it"
        ) from error
    matplotlib.use("agg")
    written: list[Path] = []
    for backend in dict.fromkeys(result.case.backend for result in run.results):
        found = [result for result in run.results if result.case.backend == backend]
        for name, panels_of in PLOTS.items():
            if panels := panels_of(found):
                folder.mkdir(parents=True, exist_ok=True)
                figure = _figure(f"{backend}: {name}", panels)
                for form in FORMATS:
                    file = folder / f"{backend}-{name}.{form}"
                    figure.savefig(file, dpi=110)
                    written.append(file)
    return written


def _figure(title: str, panels: Sequence[Panel]) -> Any:
    """All panels in rows, with one legend; a peer has the same colour in each."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    peers = list(dict.fromkeys(peer for panel in panels for peer in panel.lines))
    colours = {peer: colormaps["tab10"](number % 10) for number, peer in enumerate(peers)}
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, colours)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [handles[peer] for peer in peers], peers, loc="outside lower center", ncols=len(peers)
    )
    figure.suptitle(title)
    return figure


def _draw(axis: Any, panel: Panel, colours: dict[str, Any]) -> None:
    """Logarithmic, as peers differ by orders of magnitude; bands from the lowest to the highest."""
    from matplotlib import ticker

    for peer, points in panel.lines.items():
        x, y, low, high = zip(*points, strict=True)
        axis.plot(x, y, marker=".", label=peer, color=colours[peer])
        axis.fill_between(x, low, high, alpha=0.15, color=colours[peer])
    axis.set_title(panel.title, fontsize="medium")
    axis.set_xlabel(panel.x)
    axis.set_ylabel(panel.y)
    axis.set_yscale("log")
    axis.set_xscale(X_SCALES[panel.x])
    every_x = {x for line in panel.lines.values() for x, *_ in line}
    ticks = sorted(every_x - CROWDED if panel.x == series.PERCENT else every_x)
    if not ticks[0]:
        axis.set_xlim(left=0)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    lowest = min(low for line in panel.lines.values() for _, _, low, _ in line)
    highest = max(high for line in panel.lines.values() for *_, high in line)
    if 0 < highest < 10 * lowest:  # too little for a tick at each power of ten
        axis.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
    axis.minorticks_off()
    axis.grid(visible=True, alpha=0.3)
