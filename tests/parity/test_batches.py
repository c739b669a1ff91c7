"""One code, two clocks: a batch beside interactive load over Redis and SQLite, live and replayed in virtual time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from reference_impl.telemetry import STAGES
from reference_impl.telemetry.run_folder import read_events, read_requests, read_stations
from reports.run import load_run
from reports.validity import check_run
from simulation.scenario.manifest import Manifest
from tests.parity.test_live import twinload
from tests.servers.valkey import require_valkey

REQUESTS = 120

SCENARIO = f"""
workload:
  arrivals: {{kind: poisson, rate_per_s: 5}}
  models: [{{name: claude-haiku-4-5}}]
  batches:
    - at_s: 2
      requests: {REQUESTS}
      model: claude-haiku-4-5
      tenant: reports
      output_tokens: {{kind: lognormal, median: 80, sigma: 0.5}}
      poll_s: 0.5
endpoint: {{profile: haiku-class, speedup: 4}}
deployment:
  instances: {{initial: 2, concurrency: 16, boot_s: 0}}
  autoscaler: {{enabled: false}}
  cache: {{enabled: false}}
  queue: {{broker: redis, concurrency: 4, lease_s: 5}}
  database: {{ledger: sqlite}}
horizon_s: 12
drain_s: 30
sample_interval_s: 0.5
"""

pytestmark = [pytest.mark.serial, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    require_valkey()
    folder = tmp_path_factory.mktemp("batches")
    (folder / "night.yaml").write_text(SCENARIO)
    twinload("swarm", "night.yaml", "--out", "live", cwd=folder)
    twinload("simulate", "night.yaml", "--replay", "live", "--out", "virtual", cwd=folder)
    return folder / "live", folder / "virtual"


@pytest.fixture(scope="module")
def joined(runs: tuple[Path, Path]) -> pd.DataFrame:
    live, virtual = (read_requests(run) for run in runs)
    both = live.merge(virtual, on="request_id", suffixes=("", "_virtual"), validate="one_to_one")
    assert len(both) == len(live) == len(virtual)
    return both


def of_batch(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["kind"] == "batch"]


def test_every_request_of_the_batch_has_one_row_and_the_same_result_in_both_worlds(
    joined: pd.DataFrame,
) -> None:
    """Invariants 1 and 8."""
    rows = of_batch(joined)
    assert len(rows) == REQUESTS
    for column in ("outcome", "attempts", "tenant", "model", "input_tokens", "output_tokens", "kind"):  # fmt: skip
        assert (rows[column] == rows[f"{column}_virtual"]).all(), column
    assert set(rows["outcome"]) == {"ok"}
    assert (rows["cost_usd"] - rows["cost_usd_virtual"]).abs().max() < 1e-12
    assert rows["cost_usd"].min() > 0


def test_live_stages_of_a_batch_add_up_and_none_is_negative(runs: tuple[Path, Path]) -> None:
    """Invariant 2, live."""
    rows = of_batch(read_requests(runs[0]))
    stages = rows[list(STAGES)]
    assert stages.min().min() >= 0.0
    assert (stages.sum(axis=1) - (rows["done_s"] - rows["intended_s"])).abs().max() < 1e-6
    # They were written down by the instances: the wait is the queue's, not what nobody accounts for.
    assert rows["queue_wait_s"].max() > 2.0
    assert rows["other_s"].quantile(0.9) < 0.1
    assert set(rows["instance"]) == {"instance-1", "instance-2"}


def test_a_batch_has_the_same_luck_at_the_endpoint(joined: pd.DataFrame) -> None:
    rows = of_batch(joined)
    assert (rows["endpoint_s"] - rows["endpoint_s_virtual"]).abs().quantile(0.9) < 5e-3


def test_the_time_to_finish_agrees(runs: tuple[Path, Path]) -> None:
    """Within 1% on a quiet machine; what live adds is CPU of Redis' client and SQLite, which virtual time does not charge."""
    spans_s = []
    for run in runs:
        rows = of_batch(read_requests(run))
        spans_s.append(float(rows["done_s"].max() - rows["sent_s"].min()))
    live_s, virtual_s = spans_s
    print(f"time to finish: live {live_s:.2f} s, virtual {virtual_s:.2f} s")
    assert virtual_s == pytest.approx(live_s, rel=0.1)


def test_the_broker_is_a_station_in_both_worlds(runs: tuple[Path, Path]) -> None:
    for run in runs:
        stations = read_stations(run)
        broker = stations[stations["kind"] == "broker"]
        assert set(broker["station"]) == {"broker"}
        assert broker["arrivals"].sum() == broker["completions"].sum() == REQUESTS
        assert broker["queue_length"].max() > REQUESTS / 2
        assert broker["in_service"].max() == 8


def test_its_submitter_is_told_alike(runs: tuple[Path, Path]) -> None:
    for run in runs:
        told = [e for e in read_events(run) if e.kind == "batch"]
        assert [e.detail["state"] for e in told] == ["submitted", "ended"]
        assert told[1].detail["succeeded"] == REQUESTS


def test_the_live_run_holds_together(runs: tuple[Path, Path]) -> None:
    manifest = Manifest.read(runs[0])
    assert manifest.complete
    assert manifest.validity["missing_arrivals"] == 0
    run = load_run(runs[0])
    failed = {check.name for check in check_run(run) if check.state == "fail"}
    # How late a shared machine's timers are is not asked here.
    assert failed <= {"Load generator's own checks", "Load generator on time"}
    assert len(run.batches) == REQUESTS
    assert len(run.requests) == len(read_requests(runs[0])) - REQUESTS
