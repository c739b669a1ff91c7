"""Putting the mock's parts together: the endpoint, its routes, and what says whether they keep up."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from loadtests.mock.app import MockApp
from loadtests.mock.batches import BatchRoutes
from loadtests.mock.catalog import ModelRoutes
from loadtests.mock.keys import Keys
from loadtests.mock.lag import LoopLag
from loadtests.mock.messages import MessagesRoutes
from loadtests.mock.metrics import MockMetrics
from loadtests.mock.validity import Punctuality, Verdict
from reference_impl.prices import PriceTable, load_prices
from simulation.models.llm_endpoint import AttemptRecord, LLMEndpoint
from simulation.scenario.endpoint import EndpointProfile

__all__ = ["MockParts", "build_mock_app"]


class MockParts(msgspec.Struct, frozen=True):
    """The application, what it serves, and what its server looks after: `lag` is to be watched, `batches` to be closed."""

    app: MockApp
    endpoint: LLMEndpoint
    batches: BatchRoutes
    lag: LoopLag
    verdicts: Callable[[], dict[str, Verdict]]


def build_mock_app(
    profile: EndpointProfile,
    seed: int,
    *,
    wall_clock: Callable[[], float],
    prices: PriceTable | None = None,
    keys: Keys | None = None,
    log: Callable[[AttemptRecord], None] | None = None,
    allow_faults: bool = False,
    batch_concurrency: int = 64,
) -> MockParts:
    """The mock of `profile`, for a server on either loop.

    Args:
        wall_clock: the time that people read, in seconds since 1970.
        prices: models and prices; the shipped ones by default.
        keys: who may call; anybody by default.
        log: told of every attempt.
        allow_faults: honour the header `x-mock-fault`.
        batch_concurrency: requests of one batch worked on at once.
    """
    prices = load_prices() if prices is None else prices
    answers, lag = Punctuality(), LoopLag()

    def observe(record: AttemptRecord) -> None:
        answers.observe(record)
        if log is not None:
            log(record)

    endpoint = LLMEndpoint(profile, seed, prices=prices, observer=observe)
    endpoint.prepare()
    messages = MessagesRoutes(endpoint, allow_faults=allow_faults, wall_clock=wall_clock, log=log)
    batches = BatchRoutes(
        endpoint,
        wall_clock=wall_clock,
        next_id=messages.next_untagged,
        concurrency=batch_concurrency,
    )

    def verdicts() -> dict[str, Verdict]:
        found = {"answers": answers.verdict()}
        if endpoint.engine_statistics():
            found["event_loop"] = lag.punctuality.verdict()
        return found

    app = MockApp(
        Keys() if keys is None else keys,
        messages,
        ModelRoutes(prices, profile.models),
        batches,
        MockMetrics(endpoint, lag.worst_s, verdicts),
    )
    return MockParts(app, endpoint, batches, lag, verdicts)
