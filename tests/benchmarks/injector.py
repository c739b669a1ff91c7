"""How fast and how true the injector is: requests per CPU second, dispatch lag, and the true time to first token.

One injector in Locust against the small server of the tests, each in a process of its own.

    PYTHONPATH=. python tests/benchmarks/injector.py [seconds a run]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

from loadtests.child_process import ChildProcess, python_module
from loadtests.swarm import SwarmOptions, SwarmProgress, run_swarm
from reference_impl.telemetry.run_folder import read_requests
from simulation.scenario.workload import compile_workload
from tests.loadtests.workloads import small

FIRST_TOKEN_S = 0.1


class CpuMeter:
    """Requests per CPU second of the injector's process, between the first and the last progress that it reported."""

    def __init__(self) -> None:
        self._readings: list[tuple[int, float]] = []

    def __call__(self, progress: SwarmProgress) -> None:
        if progress.phase != "running":
            return
        for process in psutil.Process().children():
            if "locust" in process.cmdline():
                used = process.cpu_times()
                self._readings.append((progress.requests, used.user + used.system))

    def requests_per_s(self) -> float:
        (first, from_s), (last, to_s) = self._readings[0], self._readings[-1]
        return (last - first) / (to_s - from_s)


def measure(rate_per_s: float, horizon_s: float, *server: str, workers: int = 0) -> None:
    scenario = small(f"{{kind: poisson, rate_per_s: {rate_per_s}}}", horizon_s=horizon_s)
    workload = compile_workload(scenario)
    cpu = CpuMeter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = ChildProcess(
            "tiny", python_module("tests.loadtests.tiny_server", *server), folder
        )
        try:
            out = run_swarm(
                scenario,
                workload,
                folder / "run",
                target_url=process.wait_ready(10.0)["ready"],
                options=SwarmOptions(start_delay_s=0.5, workers=workers),
                on_progress=cpu,
            )
        finally:
            process.stop(2.0)
        rows = read_requests(out)
    lag_ms = np.quantile(rows["sent_s"] - rows["intended_s"], [0.5, 0.99]) * 1e3
    first_ms = np.quantile(rows["first_token_s"] - rows["sent_s"], [0.5, 0.99]) * 1e3
    # With workers the reading would be the master's.
    speed = "" if workers else f", {cpu.requests_per_s():,.0f} requests per CPU second"
    print(
        f"{rate_per_s:7,.0f}/s {max(1, workers)} injector(s): {len(rows):6,} requests, "
        f"lag p50 {lag_ms[0]:5.2f} p99 {lag_ms[1]:6.2f} ms, "
        f"first token p50 {first_ms[0]:6.2f} p99 {first_ms[1]:7.2f} ms{speed}"
    )


def main() -> None:
    horizon_s = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    print("a server that answers at once:")
    for rate_per_s in (200, 1000, 2000):
        measure(rate_per_s, horizon_s)
    measure(1000, horizon_s, workers=2)
    print(f"a server whose first token comes after {FIRST_TOKEN_S * 1e3:.0f} ms:")
    measure(200, horizon_s, "--first-s", str(FIRST_TOKEN_S), "--stream-s", "0.2")


if __name__ == "__main__":
    main()
