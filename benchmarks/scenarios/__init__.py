"""What is measured. A new scenario is an entry in one of these modules; what it asks of peers that
none was asked before is one more operation of `benchmarks.peers.Peer`.
"""

from __future__ import annotations

from benchmarks.scenarios import items, log, metadata, queries
from benchmarks.scenarios.base import KEYS, Scenario, WrongData, digest
from benchmarks.scenarios.probes import PROBES, Probe

__all__ = ["KEYS", "PROBES", "SCENARIOS", "Probe", "Scenario", "WrongData", "digest"]

SCENARIOS: dict[str, Scenario | Probe] = {
    scenario.name: scenario
    for scenario in (
        *metadata.SCENARIOS,
        *items.SCENARIOS,
        *queries.SCENARIOS,
        *log.SCENARIOS,
        *PROBES,
    )
}
"""All by name, in the order in which they are measured."""
