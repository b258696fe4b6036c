"""The benchmarks run, and would notice a peer that does not keep what it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.peers import OURS, PEERS, peers_for
from benchmarks.peers.ours import Ours
from benchmarks.runner import SIZES, Result, Size, Spread, measure
from benchmarks.scenarios import SCENARIOS, WrongData

TINY = Size(rounds=1, seconds=0.01)
BENCHMARKS = Path(report.__file__).parent
MAX_MODULE_LINES = 150


def test_a_run_prints_all_that_one_needs_to_judge_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(SIZES, "small", TINY)
    status = command.main(["--backend", "sqlite", "--callers", "2", "--size", "small"])
    printed = capsys.readouterr().out
    assert status == 0
    for expected in (
        *PEERS,
        *SCENARIOS,
        "Machine: ",
        "Python ",
        "sqlalchemy ",
        "Database: SQLite ",
        "Durability, the same for all: journal_mode=wal, synchronous=FULL",
        f"{OURS}, times as fast as",
    ):
        assert expected in printed
    assert "failed and were repeated" not in printed


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_every_peer_takes_its_turn(tmp_path: Path, scenario: str) -> None:
    openers = peers_for("sqlite")
    peers = {
        name: await opener(f"sqlite+aiosqlite:///{tmp_path / f'{i}.db'}")
        for i, (name, opener) in enumerate(openers.items())
    }
    turns: list[str] = []
    try:
        size = Size(rounds=2, seconds=0.01)
        result = await measure(peers, SCENARIOS[scenario], 2, size, turns.append)
    finally:
        for peer in peers.values():
            await peer.close()
    assert turns == [*PEERS, *PEERS]
    assert set(result.rates) == set(PEERS)
    assert all(len(rates) == 2 and min(rates) > 0 for rates in result.rates.values())


class Forgetful(Ours):
    """Fast, as it does not write what it is given."""

    async def set_metadata(self, session_id: str, metadata: Any) -> None:
        pass

    async def add_items(self, session_id: str, items: list[Any]) -> None:
        pass


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_peer_that_does_less_is_found_out(tmp_path: Path, scenario: str) -> None:
    peer = await Forgetful.open(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
    try:
        with pytest.raises(WrongData):
            await measure({"forgetful": peer}, SCENARIOS[scenario], 1, TINY)
    finally:
        await peer.close()


def test_ratios_are_those_of_each_round() -> None:
    result = Result("set", 1, rates={"a": [10.0, 30.0, 20.0], "b": [5.0, 10.0, 20.0]})
    assert result.rate("a") == Spread(20.0, 10.0, 30.0)
    assert result.ratio("a", "b") == Spread(2.0, 1.0, 3.0)


def test_unequal_durability_is_not_overlooked() -> None:
    assert report.durability({"a": "x", "b": "x"}) == "Durability, the same for all: x"
    assert report.durability({"a": "x", "b": "y"}).startswith("UNEQUAL DURABILITY")


@pytest.mark.parametrize("arguments", [["--callers", "0"], ["--size", "huge"]])
def test_wrong_arguments_are_refused(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit):
        command.parser().parse_args(arguments)


def test_modules_are_short() -> None:
    lines = {
        path: path.read_text(encoding="utf-8").count("\n") for path in BENCHMARKS.rglob("*.py")
    }
    assert not [path for path, count in lines.items() if count > MAX_MODULE_LINES]
