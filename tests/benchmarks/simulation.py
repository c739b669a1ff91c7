"""The simulator's speed, memory and parallelism: the kernel beside textbook SimPy, and the whole system.

    python -m tests.benchmarks.simulation [--json] [--quick] [--hour]

Speeds are requests per CPU second of this process and memory is the peak of a process of its own, so that neighbours on the
machine change them little; the speed-up of a sweep is by the clock, and needs two idle cores. Every figure is the median of
five runs (`--quick`: of one small run, which proves no more than that the benchmark works).

- `mmc_*`: M/M/8, as `simulation_kernel.py` says; the ratio is the median over pairs of runs that alternate.
- `system_req_per_cpu_s`: the preset `chat` in full, from the compiled workload to the run folder on disk. `cache_hit_share`
  is the share of its requests that the cache answered; `timers_per_miss` is how many instants a request awaits that it
  did not (median), the two time limits that it normally cancels left out.
- `rss_mb_1x`, `rss_mb_10x`: peak resident memory of a run of `chat`, and of one over ten times the horizon.
- `sweep_speedup_2_workers`: seconds of a sweep of `chat` in this process over those of two that have started.
- `--hour` adds an hour of 100 requests/s: `hour_requests`, `hour_cpu_s` (one run).
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reference_impl.telemetry import RequestRecord, StationSample, SystemEvent
from reference_impl.time_limit import TimeLimit
from simulation.experiments.runner import JobRunner
from simulation.experiments.sweep import sweep
from simulation.experiments.virtual_run import Provenance, run_virtual
from simulation.experiments.workers import choose_workers
from simulation.kernel import SimulationLoop
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from simulation.world import simulate
from tests.benchmarks.simulation_kernel import cpu_s, plain_asyncio, textbook_simpy

ROUNDS = 5
HORIZON_S = 600.0
HOUR: Mapping[str, object] = {
    "workload.arrivals.rate_per_s": 100,
    "horizon_s": 3600,
    "deployment.instances.initial": 40,
    "deployment.autoscaler.max_instances": 100,
}


def mmc(rounds: int, requests: int) -> dict[str, float]:
    """The kernel against SimPy; raises AssertionError where the two simulate different things."""
    cpu_s(textbook_simpy, requests // 10, 0)
    cpu_s(plain_asyncio, requests // 10, 0)
    pairs = []
    for seed in range(rounds):
        simpy_s, simpy_wait_s = cpu_s(textbook_simpy, requests, seed)
        asyncio_s, asyncio_wait_s = cpu_s(plain_asyncio, requests, seed)
        if abs(simpy_wait_s - asyncio_wait_s) > 1e-9:
            raise AssertionError(f"mean waits differ: {simpy_wait_s} and {asyncio_wait_s} s")
        pairs.append((simpy_s, asyncio_s))
    return {
        "mmc_asyncio_req_per_cpu_s": statistics.median(requests / own for _, own in pairs),
        "mmc_simpy_req_per_cpu_s": statistics.median(requests / peer for peer, _ in pairs),
        "mmc_ratio": statistics.median(peer / own for peer, own in pairs),
    }


def run_on_disk(overrides: Mapping[str, object]) -> tuple[int, float]:
    """Requests of a run of `chat` into a folder, and its CPU seconds (user and system, all threads)."""
    scenario = load_scenario("chat", overrides)
    workload = compile_workload(scenario)
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        started_s = time.process_time()
        summary = run_virtual(scenario, workload, Path(folder) / "run", Provenance())
        return summary.ended, time.process_time() - started_s


def system(rounds: int, horizon_s: float) -> dict[str, float]:
    run_on_disk({"horizon_s": horizon_s / 10})
    runs = [run_on_disk({"horizon_s": horizon_s, "seed": seed + 1}) for seed in range(rounds)]
    return {"system_req_per_cpu_s": statistics.median(ended / spent_s for ended, spent_s in runs)}


class TimerCounts:
    """A sink that knows how many timers the task of each request made."""

    def __init__(self) -> None:
        self.by_task: collections.Counter[Any] = collections.Counter()
        self.hits = 0
        self.misses: list[int] = []

    def request(self, record: RequestRecord, /) -> None:
        timers = self.by_task.pop(asyncio.current_task(), 0)
        if record.cache == "miss":
            self.misses.append(timers)
        else:
            self.hits += 1

    def station(self, sample: StationSample, /) -> None:
        """Not asked for."""

    def event(self, event: SystemEvent, /) -> None:
        """Not asked for."""


@contextmanager
def counting_timers(counts: TimerCounts) -> Iterator[None]:
    """Have the loops of this block count who makes timers, time limits left out."""
    whole = {name: getattr(SimulationLoop, name) for name in ("call_at", "call_later")}
    make_until = SimulationLoop._fast_until

    def counted(make: Any) -> Any:
        def wrapper(loop: SimulationLoop, when: float, callback: Any, *args: Any, **kw: Any) -> Any:
            if not isinstance(getattr(callback, "__self__", None), TimeLimit):
                counts.by_task[asyncio.current_task(loop)] += 1
            return make(loop, when, callback, *args, **kw)

        return wrapper

    def counted_until(loop: SimulationLoop) -> Any:
        until = make_until(loop)

        def wrapper(when: float) -> asyncio.Future[None]:
            counts.by_task[asyncio.current_task(loop)] += 1
            return until(when)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name, method in whole.items():
            patch.setattr(SimulationLoop, name, counted(method))
        patch.setattr(SimulationLoop, "_fast_until", counted_until)
        yield


def work_of_a_request(horizon_s: float) -> dict[str, float]:
    """What the preset asks of the system, so that its speed can be judged."""
    scenario = load_scenario("chat", {"horizon_s": horizon_s})
    counts = TimerCounts()
    with counting_timers(counts):
        simulate(scenario, compile_workload(scenario), counts)
    return {
        "cache_hit_share": counts.hits / (counts.hits + len(counts.misses)),
        "timers_per_miss": statistics.median(counts.misses),
    }


def peak_rss_mb(horizon_s: float) -> float:
    """Of a fresh process that runs `chat` over `horizon_s`."""
    command = [sys.executable, "-m", "tests.benchmarks.simulation", "--rss-of", str(horizon_s)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def memory(rounds: int, horizon_s: float) -> dict[str, float]:
    return {
        "rss_mb_1x": statistics.median(peak_rss_mb(horizon_s) for _ in range(rounds)),
        "rss_mb_10x": statistics.median(peak_rss_mb(10 * horizon_s) for _ in range(rounds)),
    }


def sweep_seconds(runner: JobRunner, horizon_s: float, first_seed: int, runs: int) -> float:
    points = [{"seed": first_seed + n} for n in range(runs)]
    scenario = load_scenario("chat", {"horizon_s": horizon_s})
    started_s = time.perf_counter()
    frame = sweep(scenario, points, runner)
    spent_s = time.perf_counter() - started_s
    assert len(frame) == runs
    return spent_s


def parallelism(rounds: int, horizon_s: float, runs: int) -> dict[str, float]:
    speedups = []
    with JobRunner(choose_workers(1)) as one, JobRunner(choose_workers(2)) as two:
        sweep_seconds(two, horizon_s / 10, 0, 4)  # both workers have started and imported
        for number in range(1, rounds + 1):
            serial_s = sweep_seconds(one, horizon_s, 1000 * number, runs)
            speedups.append(serial_s / sweep_seconds(two, horizon_s, 1000 * number, runs))
    return {"sweep_speedup_2_workers": statistics.median(speedups)}


def hour() -> dict[str, float]:
    requests, spent_s = run_on_disk(HOUR)
    return {"hour_requests": requests, "hour_cpu_s": spent_s}


def measure(*, quick: bool) -> dict[str, float]:
    """All figures by name; about two minutes."""
    rounds, horizon_s = (1, 20.0) if quick else (ROUNDS, HORIZON_S)
    return {
        **mmc(rounds, 2_000 if quick else 30_000),
        **system(rounds, horizon_s),
        **work_of_a_request(horizon_s),
        **memory(rounds, horizon_s),
        **parallelism(rounds, horizon_s / 4, 4 if quick else 12),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="one small run of each")
    parser.add_argument("--hour", action="store_true", help="also an hour of 100 requests/s")
    parser.add_argument("--rss-of", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rss_of is not None:
        run_on_disk({"horizon_s": options.rss_of})
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    figures = measure(quick=options.quick)
    if options.hour:
        figures |= hour()
    if options.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:26} {figure:>12,.4g}")


if __name__ == "__main__":
    main()
