"""Runs in memory, for tests of the virtual world."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from reference_impl.telemetry import RequestRecord, StationSample, SystemEvent
from simulation.scenario.spec import Scenario, load_scenario
from simulation.scenario.workload import CompiledWorkload, compile_workload
from simulation.world import SimulationSummary, simulate

__all__ = ["Recorded", "play"]


class Recorded:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self.stations: list[StationSample] = []
        self.events: list[SystemEvent] = []
        self.summary: SimulationSummary | None = None

    def request(self, record: RequestRecord, /) -> None:
        self.requests.append(record)

    def station(self, sample: StationSample, /) -> None:
        self.stations.append(sample)

    def event(self, event: SystemEvent, /) -> None:
        self.events.append(event)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for rows in (self.requests, self.stations, self.events):
            digest.update(msgspec.msgpack.encode(rows))
        return digest.hexdigest()


def play(
    name: str | Scenario,
    overrides: Mapping[str, object] | None = None,
    workload: CompiledWorkload | None = None,
) -> Recorded:
    scenario = load_scenario(name, overrides) if isinstance(name, str) else name
    recorded = Recorded()
    recorded.summary = simulate(scenario, workload or compile_workload(scenario), recorded)
    return recorded
