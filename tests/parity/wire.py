"""A virtual run with its bytes, against the mock's own application."""

from __future__ import annotations

from pathlib import Path

from loadtests.mock.app import MockApp
from loadtests.mock.build import build_mock_app
from loadtests.mock.protocol import CONNECTION
from reference_impl.telemetry import RequestRecord
from simulation.scenario.spec import Scenario
from simulation.scenario.workload import compile_workload
from simulation.wire_world import simulate_wire

__all__ = ["play_wire"]


def play_wire(scenario: Scenario, folder: Path) -> list[RequestRecord]:
    """What the clients saw; what the processes wrote is in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    records: list[RequestRecord] = []

    def endpoint_app() -> MockApp:
        return build_mock_app(scenario.endpoint, scenario.seed, wall_clock=lambda: 0.0).app

    simulate_wire(
        scenario,
        compile_workload(scenario),
        endpoint_app,
        folder,
        records.append,
        connection_key=CONNECTION,
    )
    return records
