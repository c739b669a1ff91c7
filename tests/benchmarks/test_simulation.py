"""The benchmark of the simulator works, and the preset that it measures is worth measuring."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.benchmarks.__main__ import benchmarks, main
from tests.benchmarks.simulation import work_of_a_request

KEYS = {
    "mmc_asyncio_req_per_cpu_s",
    "mmc_simpy_req_per_cpu_s",
    "mmc_ratio",
    "system_req_per_cpu_s",
    "cache_hit_share",
    "timers_per_miss",
    "rss_mb_1x",
    "rss_mb_10x",
    "sweep_speedup_2_workers",
}


def test_the_quick_benchmark_prints_every_figure_as_json() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.simulation", "--json", "--quick"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures.keys() == KEYS
    assert all(figure > 0 for figure in figures.values())


def test_a_miss_of_the_chat_preset_takes_many_timers_and_most_requests_are_misses() -> None:
    work = work_of_a_request(120.0)
    assert work["timers_per_miss"] >= 9
    assert work["cache_hit_share"] <= 0.3


def test_the_benchmarks_of_this_folder_are_found_by_their_option() -> None:
    assert {"simulation", "caches", "mock_server"} <= set(benchmarks())
    assert "bare_server" not in benchmarks()


def test_an_unknown_benchmark_is_refused_with_the_names_of_those_there_are() -> None:
    assert main(["simulatoin"]) == 2
