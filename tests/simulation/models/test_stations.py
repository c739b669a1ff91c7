"""Extra stations: queues and delays on the way in, and a closed network of them against its exact solution."""

import asyncio
import math

import numpy as np
import pytest

from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.telemetry import RequestRecord, RequestTrace, StationSample, SystemEvent
from simulation.kernel import run
from simulation.models.stations import StationChain
from simulation.scenario.distributions import Constant
from simulation.scenario.schema import StationSpec
from simulation.scenario.spec import parse_scenario
from simulation.scenario.workload import compile_workload
from simulation.world import simulate


class Arrived:
    """The end of the chain: notes when each call came."""

    def __init__(self) -> None:
        self.at_s: dict[int, float] = {}

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        self.at_s[call.request_id] = asyncio.get_running_loop().time()
        return Completion(usage=Usage())

    async def aclose(self) -> None:
        """Nothing is held."""


def call(number: int) -> Call:
    return Call(request_id=number, model="m", max_tokens=1, stream=False, trace=RequestTrace())


def test_calls_queue_for_a_server_and_pass_a_delay_side_by_side() -> None:
    async def main() -> tuple[dict[int, float], list[StationSample]]:
        end = Arrived()
        specs = [
            StationSpec(name="desk", servers=1, service_s=Constant(value=1)),
            StationSpec(name="walk", servers=None, service_s=Constant(value=10)),
        ]
        chain = StationChain(specs, 1, end)
        await asyncio.gather(*(chain.complete(call(i)) for i in range(3)))
        return end.at_s, list(chain.samples(0))

    at_s, (desk, walk) = run(main())
    assert at_s == {0: 11, 1: 12, 2: 13}
    assert (desk.arrivals, desk.completions, desk.busy_s, desk.capacity) == (3, 3, 3, 1)
    assert desk.queue_length == pytest.approx((2 + 1) / 13)
    assert (walk.busy_s, walk.queue_length, walk.capacity) == (30, 0, math.inf)


def test_a_call_that_is_cancelled_while_it_waits_or_is_served_frees_its_place() -> None:
    async def main() -> dict[int, float]:
        end = Arrived()
        chain = StationChain([StationSpec(name="desk", service_s=Constant(value=1))], 1, end)
        tasks = [asyncio.create_task(chain.complete(call(i))) for i in range(4)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()  # in service
        tasks[2].cancel()  # in the queue
        await asyncio.gather(*tasks, return_exceptions=True)
        (desk,) = chain.samples(0)
        assert (desk.arrivals, desk.completions) == (4, 2)
        assert desk.busy_s == 2.5
        return end.at_s

    assert run(main()) == {1: 1.5, 3: 2.5}


CLOSED = """
workload:
  arrivals: {kind: closed, users: 8, think_s: {kind: exponential, mean: 2}}
  input_tokens: 1
  output_tokens: 1
stations: [{name: desk, servers: 1, service_s: {kind: exponential, mean: 0.3}}]
endpoint: {output_tokens: 1, service: {kind: service_time, service_s: {kind: exponential, mean: 0.4}}}
deployment:
  instances: {initial: 1, concurrency: 1, queue_limit: 100, boot_s: 0}
  autoscaler: {enabled: false}
  cache: {enabled: false}
  retry: {max_attempts: 1, attempt_timeout_s: 10000}
  gateway: {request_timeout_s: 10000}
cpu: 0
network: 0
horizon_s: 3000
drain_s: 1000
sample_interval_s: 100
"""


class Sink:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def request(self, record: RequestRecord, /) -> None:
        self.records.append(record)

    def station(self, sample: StationSample, /) -> None:
        """Not of interest here."""

    def event(self, event: SystemEvent, /) -> None:
        """Not of interest here."""


def mean_value_analysis(users: int, think_s: float, demands_s: list[float]) -> float:
    """Throughput of a closed product-form network (Reiser and Lavenberg, J. ACM 27, 1980)."""
    queues = [0.0] * len(demands_s)
    throughput = 0.0
    for n in range(1, users + 1):
        stays = [d * (1 + q) for d, q in zip(demands_s, queues, strict=True)]
        throughput = n / (think_s + sum(stays))
        queues = [throughput * stay for stay in stays]
    return throughput


def test_a_closed_system_of_two_stations_has_the_throughput_of_mean_value_analysis() -> None:
    rates = []
    for seed in range(1, 7):
        scenario = parse_scenario(CLOSED + f"seed: {seed}\n")
        sink = Sink()
        simulate(scenario, compile_workload(scenario), sink)
        done = np.array([r.done_s for r in sink.records])
        rates.append(np.count_nonzero((done >= 200) & (done < 3000)) / 2800)
    error = np.std(rates, ddof=1) / math.sqrt(len(rates))
    assert abs(np.mean(rates) - mean_value_analysis(8, 2, [0.3, 0.4])) < 3.5 * error
    assert error / np.mean(rates) < 0.01
