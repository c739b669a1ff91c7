"""One code, two clocks: a live swarm beside its replay in virtual time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reference_impl.telemetry import STAGES
from reference_impl.telemetry.run_folder import read_events, read_requests
from reports.twin import twin_table

HORIZON_S = 14

pytestmark = [pytest.mark.serial, pytest.mark.timeout(240)]


def twinload(*arguments: str, cwd: Path) -> dict[str, Any]:
    code = "import twinload; twinload.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"],
        cwd=cwd,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first seconds of the demo, live, and the same requests at the same instants in virtual time."""
    folder = tmp_path_factory.mktemp("twin")
    short = ("--set", f"horizon_s={HORIZON_S}")
    twinload("swarm", "demo", *short, "--out", "live", cwd=folder)
    twinload("simulate", "demo", *short, "--replay", "live", "--out", "virtual", cwd=folder)
    return folder / "live", folder / "virtual"


@pytest.fixture(scope="module")
def joined(runs: tuple[Path, Path]) -> pd.DataFrame:
    live, virtual = (read_requests(run) for run in runs)
    return live.merge(virtual, on="request_id", suffixes=("", "_virtual"), validate="one_to_one")


def test_every_request_is_answered_in_both_worlds(joined: pd.DataFrame) -> None:
    """Invariant 1, live."""
    assert len(joined) > 150
    assert set(joined["outcome"]) == set(joined["outcome_virtual"]) == {"ok"}


def test_live_stages_add_up_and_none_is_negative(joined: pd.DataFrame) -> None:
    """Invariant 2, live."""
    stages = joined[list(STAGES)]
    assert stages.min().min() >= 0.0
    difference = stages.sum(axis=1) - (joined["done_s"] - joined["intended_s"])
    assert difference.abs().max() < 1e-6
    assert (joined["intended_s"] <= joined["sent_s"]).all()
    assert (joined["sent_s"] <= joined["first_token_s"]).all()
    assert (joined["first_token_s"] <= joined["done_s"]).all()


def test_both_worlds_have_the_same_luck(joined: pd.DataFrame) -> None:
    """Tokens, and the endpoint's own time (live: as delivered by its timers), of what reached it in both."""
    both = joined[(joined["cache"] == "miss") & (joined["cache_virtual"] == "miss")]
    assert (both["output_tokens"] == both["output_tokens_virtual"]).all()
    assert (both["endpoint_s"] - both["endpoint_s_virtual"]).abs().quantile(0.9) < 5e-3


def test_the_cache_decides_alike(joined: pd.DataFrame) -> None:
    """Invariant 8. A request that comes within milliseconds of an equal one's end may be a hit or a follower."""
    upstream = (joined["cache"] == "miss") == (joined["cache_virtual"] == "miss")
    assert upstream.mean() >= 0.99


def test_the_autoscaler_acts_in_both_worlds(runs: tuple[Path, Path]) -> None:
    """Invariant 8. A call more or less in flight at a tick may move a decision, so the decisions are compared loosely."""
    largest = []
    for run in runs:
        scaling = [e.detail for e in read_events(run) if e.kind == "scaling"]
        assert scaling
        largest.append(max(int(str(detail["after"])) for detail in scaling))
    assert abs(largest[0] - largest[1]) <= 1


def test_latencies_agree_as_far_as_the_machine_is_quiet(runs: tuple[Path, Path]) -> None:
    table = twin_table(*runs).set_index("key")
    for key in ("latency_sent_p50_s", "ttft_sent_p50_s"):
        assert table.loc[key, "virtual"] == pytest.approx(table.loc[key, "live"], rel=0.1), key
    assert table.loc["throughput_per_s", "relative"] == pytest.approx(0.0, abs=0.02)
