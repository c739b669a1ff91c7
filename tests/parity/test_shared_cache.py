"""One code, two clocks: what a live gateway finds in a Valkey, its replay finds in the virtual server."""

from __future__ import annotations

import pandas as pd
import pytest

from loadtests.swarm import SwarmOptions, run_swarm
from reference_impl.telemetry.run_folder import read_requests
from simulation.experiments.virtual_run import replay_of
from simulation.scenario.workload import compile_workload
from tests.loadtests.workloads import small
from tests.servers.valkey import require_valkey
from tests.simulation.runs import play

HORIZON_S = 8.0
MORE = """
  prompts: {kind: zipf, exponent: 0.8, prompts: 60}
endpoint: fast
deployment:
  instances: {initial: 1, boot_s: 0, drain_s: 1, concurrency: 1000}
  autoscaler: {enabled: false}
  cache: {shared: redis, l1_ttl_s: 0.5, ttl_s: 3, timeout_s: 0.2}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The cache's result of each request, live and virtual."""
    require_valkey()
    scenario = small("{kind: poisson, rate_per_s: 60}", horizon_s=HORIZON_S, more=MORE)
    live = run_swarm(
        scenario,
        compile_workload(scenario),
        tmp_path_factory.mktemp("shared") / "live",
        options=SwarmOptions(start_delay_s=0.5),
    )
    workload, _ = replay_of(live)
    virtual = {r.request_id: r.cache for r in play(scenario, workload=workload).requests}
    requests = read_requests(live)
    assert set(requests["outcome"]) == {"ok"}
    return pd.DataFrame({"live": requests["cache"], "virtual": requests["request_id"].map(virtual)})


@pytest.mark.serial
def test_hits_of_both_levels_agree_request_by_request(results: pd.DataFrame) -> None:
    """Invariant 8. What comes within milliseconds of an expiry, or of an equal request's end, may fall either side."""
    assert len(results) > 400
    assert (results["live"] == results["virtual"]).mean() >= 0.97


@pytest.mark.serial
def test_every_level_answers_some_in_both_worlds_and_as_many(results: pd.DataFrame) -> None:
    for world in ("live", "virtual"):
        assert {"l1", "l2", "miss"} <= set(results[world])
    for level in ("l1", "l2", "miss"):
        counts = [int((results[world] == level).sum()) for world in ("live", "virtual")]
        assert counts[0] == pytest.approx(counts[1], abs=0.02 * len(results)), level
