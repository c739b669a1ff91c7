"""A virtual run with its bytes, against the mock's own application."""

from __future__ import annotations

from pathlib import Path

from loadtests.mock.app import MockApp
from loadtests.mock.batches import BatchRoutes
from loadtests.mock.catalog import ModelRoutes
from loadtests.mock.keys import Keys
from loadtests.mock.lag import LoopLag
from loadtests.mock.messages import MessagesRoutes
from loadtests.mock.metrics import MockMetrics
from loadtests.mock.protocol import CONNECTION
from loadtests.mock.validity import Punctuality
from reference_impl.prices import load_prices
from reference_impl.telemetry import RequestRecord
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.scenario.spec import Scenario
from simulation.scenario.workload import compile_workload
from simulation.wire_world import simulate_wire

__all__ = ["play_wire"]


def play_wire(scenario: Scenario, folder: Path) -> list[RequestRecord]:
    """What the clients saw; what the processes wrote is in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    records: list[RequestRecord] = []

    def endpoint_app() -> MockApp:
        prices = load_prices()
        endpoint = LLMEndpoint(scenario.endpoint, scenario.seed, prices=prices)
        messages = MessagesRoutes(endpoint, allow_faults=False, wall_clock=lambda: 0.0, log=None)
        batches = BatchRoutes(
            endpoint, wall_clock=lambda: 0.0, next_id=messages.next_untagged, concurrency=1
        )
        models = ModelRoutes(prices, scenario.endpoint.models)
        return MockApp(
            Keys(), messages, models, batches, MockMetrics(endpoint, Punctuality(), LoopLag())
        )

    simulate_wire(
        scenario,
        compile_workload(scenario),
        endpoint_app,
        folder,
        records.append,
        connection_key=CONNECTION,
    )
    return records
