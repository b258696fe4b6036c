"""What is made of the results of benchmarks: stored, compared, drawn."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import comparison, results, series
from benchmarks.cli import main
from benchmarks.results import PERCENTILES, Case, Result, Run, Spread, percentiles
from benchmarks.scenarios import digest


def result(
    scenario: str = "set",
    callers: int = 1,
    scale: float = 1,
    stored: int = 0,
    unit: str = "calls/s",
) -> Result:
    return Result(
        Case("sqlite", scenario, callers, stored=stored),
        unit,
        values={
            "eventmeta": [1000 * scale * callers, 1200 * scale * callers],
            "eav": [200 * scale, 300 * scale],
        },
        latencies={"eventmeta": [1.0] * len(PERCENTILES), "eav": [5.0] * len(PERCENTILES)},
        failures={"eventmeta": 0, "eav": 2},
        hash=digest(scenario),
    )


def run(*found: Result, machine: str = "2 CPUs") -> Run:
    return Run(
        "2026-01-01T00:00:00+00:00",
        machine,
        {"Python": "3.11.7"},
        {"size": "full"},
        {"sqlite": {"eventmeta": "synchronous=FULL"}},
        results=list(found),
    )


def test_what_is_stored_is_read_back(tmp_path: Path) -> None:
    made = run(result(), replace(result("get", 16, stored=100), latencies={}))
    results.save(made, tmp_path / "a.json")
    assert results.load(tmp_path / "a.json") == made


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        ("", "not what `run --json` has stored"),
        ('{"format": 1, "started": "20', "not what `run --json` has stored"),
        ("[]", "not what `run --json` has stored"),
        ('{"format": 7, "new": true}', "has format 7; this program reads format 1"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "plot"])
def test_a_file_of_something_else_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    problem: str,
    command: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert main([command, str(file), *([str(file)] if command == "compare" else [])]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert problem in line


def test_ratios_are_those_of_each_round() -> None:
    found = Result(Case("sqlite", "set"), values={"a": [10.0, 30.0, 20.0], "b": [5.0, 10.0, 20.0]})
    assert found.value("a") == Spread(20.0, 10.0, 30.0)
    assert found.ratio("a", "b") == Spread(2.0, 1.0, 3.0)
    assert replace(found, unit="ms").ratio("b", "a") == Spread(2.0, 1.0, 3.0)


def test_a_peer_that_did_nothing_has_a_ratio_too() -> None:
    found = Result(Case("sqlite", "set"), values={"a": [10.0], "b": [0.0]})
    assert found.ratio("a", "b").median == float("inf")


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles([i / 1000 for i in range(101)]) == pytest.approx(list(PERCENTILES))
    assert percentiles([0.002]) == [2.0] * len(PERCENTILES)
    assert percentiles([]) == []


def test_other_data_has_another_hash() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(data) for data in (1, "1", [1], {"a": 1}, {"a": 2}, True, None)}) == 7


# --- Comparing ------------------------------------------------------------------------------------


def test_a_change_is_told_from_the_spread() -> None:
    before = run(result(), result("get"), result("import", unit="ms"), result("old"))
    after = run(result(scale=2), result("get", scale=1.1), result("import", scale=2, unit="ms"))
    found = {(c.case.scenario, c.peer): c for c in comparison.changes(before, after)}
    assert {name for name, _ in found} == {"set", "get", "import"}
    assert found["set", "eventmeta"].factor == pytest.approx(2)
    assert found["set", "eventmeta"].verdict == "better"
    assert found["get", "eventmeta"].verdict == "within the spread"
    assert found["import", "eventmeta"].factor == pytest.approx(0.5)
    assert found["import", "eventmeta"].verdict == "WORSE"


def compared(a: Run, b: Run, folder: Path) -> int:
    results.save(a, folder / "a.json")
    results.save(b, folder / "b.json")
    return main(["compare", str(folder / "a.json"), str(folder / "b.json")])


def test_runs_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert compared(run(result()), run(result(scale=2), machine="64 CPUs"), tmp_path) == 0
    printed = capsys.readouterr().out
    assert "Not the same: machine: 2 CPUs | 64 CPUs" in printed
    assert "2.00" in printed
    assert "DIFFERENT DATA" not in printed


def test_runs_that_read_back_different_data_are_no_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    other = replace(result(), hash=digest("less"))
    assert compared(run(result()), run(other), tmp_path) == 1
    assert "DIFFERENT DATA was read back: sqlite: set, 1 caller" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    more = replace(run(result(), result("get"), result("get", 16)), problems=["no peer"])
    more.durability["sqlite"]["eav"] = "synchronous=FULL"
    assert compared(run(result()), more, tmp_path) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "Not the same" in line] == [
        "Not the same: only the second has eav in sqlite: get, 1 caller, and 1 more",
        "Not the same: only the second has eventmeta in sqlite: get, 1 caller, and 1 more",
        "Not the same: the second is not complete: no peer",
    ]
    assert compared(run(result()), run(result("get")), tmp_path) == 1
    assert "nothing that both have measured" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 60])
def test_no_digit_is_cut_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert compared(run(result(scale=5)), run(result(scale=7)), tmp_path) == 0
    printed = capsys.readouterr().out
    assert "5,000.0–6,000.0" in printed
    assert "7,000.0–8,400.0" in printed
    assert "…" not in printed


# --- Drawing --------------------------------------------------------------------------------------

FOUND = run(result(), result(callers=16), result(stored=1000), result("import", unit="ms"))


def test_throughput_is_drawn_by_callers() -> None:
    (panel,) = series.throughput([result(callers=16), result(callers=1), result("get")])
    assert (panel.title, panel.x, panel.y) == ("set", "callers", "calls/s")
    assert panel.lines["eav"] == [(1, 250, 200, 300), (16, 250, 200, 300)]


def test_what_points_have_in_common_is_in_the_title() -> None:
    found = [result(stored=50), result(callers=16, stored=50), result(callers=16)]
    assert [panel.title for panel in series.throughput(found)] == ["set: 50 sessions stored"]
    assert [panel.title for panel in series.growth(found)] == ["set: 16 callers"]


def test_growth_is_drawn_by_what_is_stored() -> None:
    (panel,) = series.growth([result(), result(stored=1000)])
    assert [x for x, *_ in panel.lines["eventmeta"]] == [0, 1000]


def test_latency_is_drawn_as_a_distribution() -> None:
    (panel,) = series.latency([result(), result("import", unit="ms")][:1])
    assert [(x, y) for x, y, *_ in panel.lines["eav"]] == [(percent, 5) for percent in PERCENTILES]


def test_plots_are_drawn_or_it_is_said_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    results.save(FOUND, tmp_path / "a.json")
    status = main(["plot", str(tmp_path / "a.json"), "--out", str(tmp_path / "plots")])
    printed = capsys.readouterr().out
    if importlib.util.find_spec("matplotlib") is None:
        assert status == 1
        assert "pip install matplotlib" in printed
    else:
        names = ("throughput", "latency", "growth")
        assert status == 0
        for name in names:
            png, svg = (tmp_path / "plots" / f"sqlite-{name}.{form}" for form in ("png", "svg"))
            assert png.read_bytes().startswith(b"\x89PNG")
            assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_where_there_is_nothing_to_draw_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(run(replace(result("import", unit="ms"), latencies={})), tmp_path / "a.json")
    assert main(["plot", str(tmp_path / "a.json"), "--out", str(tmp_path / "plots")]) == 1
    assert capsys.readouterr().out
    assert not (tmp_path / "plots").exists()
