"""The twin table: what it compares, how sure it is, and when it must warn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from reports.run import Run, load_run
from reports.twin import COLUMNS, match_runs, twin_table
from tests.reports.conftest import QUEUEING
from tests.reports.synthetic import Truth, write_run


@pytest.fixture(scope="module")
def table(live: Run, queueing: Run) -> pd.DataFrame:
    return twin_table(live, queueing).set_index("key")


def test_every_measure_of_the_twin_is_there(table: pd.DataFrame) -> None:
    wanted = {
        "throughput_per_s", "latency_sent_p50_s", "latency_sent_p95_s", "latency_sent_p99_s",
        "latency_intended_p50_s", "latency_intended_p95_s", "latency_intended_p99_s", "lag_p99_s",
        "ttft_sent_p50_s", "ttft_sent_p95_s", "tpot_p50_s", "cache_hit_ratio", "added_p50_s", "added_p95_s",
        "retries", "largest_instances",
    }  # fmt: skip
    assert wanted <= set(table.index)


def test_the_difference_is_virtual_minus_live(table: pd.DataFrame) -> None:
    assert np.allclose(table["difference"], table["virtual"] - table["live"])
    row = table.loc["latency_sent_p95_s"]
    assert row["relative"] == pytest.approx(row["difference"] / row["live"])


def test_a_run_against_itself_differs_by_exactly_nothing(queueing: Run) -> None:
    same = twin_table(queueing, queueing)
    assert (same["difference"] == 0).all()
    assert (same[["difference_low", "difference_high"]].fillna(0) == 0).all(axis=None)


def test_the_same_requests_with_a_little_noise_agree_within_the_interval(
    table: pd.DataFrame,
) -> None:
    row = table.loc["latency_sent_p50_s"]
    assert row["difference_low"] <= 0 <= row["difference_high"]


def test_a_real_difference_is_outside_of_it(tmp_path: Path, queueing: Run) -> None:
    slower = dataclasses.replace(QUEUEING, mean_service_s=1.2, world="live")
    run = load_run(write_run(tmp_path / "slow", slower))
    row = twin_table(run, queueing).set_index("key").loc["latency_sent_p50_s"]
    assert row["difference_high"] < 0


def test_pairing_narrows_the_interval(live: Run, queueing: Run, tmp_path: Path) -> None:
    stranger = load_run(write_run(tmp_path / "other", dataclasses.replace(QUEUEING, seed=9)))
    assert not match_runs(live, stranger).paired
    width = {
        name: float((t["difference_high"] - t["difference_low"]).loc["latency_sent_p50_s"])
        for name, t in (
            ("paired", twin_table(live, queueing).set_index("key")),
            ("apart", twin_table(live, stranger).set_index("key")),
        )
    }
    assert width["paired"] < width["apart"]


def test_no_interval_is_made_up_for_a_p99_of_few_requests(tmp_path: Path) -> None:
    runs = [
        load_run(write_run(tmp_path / str(i), Truth(requests=300, noise=0.01 * i))) for i in (0, 1)
    ]
    low = twin_table(runs[0], runs[1]).set_index("key")["difference_low"]
    assert np.isnan(low["latency_sent_p99_s"])
    assert np.isfinite(low["latency_sent_p50_s"])


def test_equal_seeds_give_equal_tables(live: Run, queueing: Run) -> None:
    pd.testing.assert_frame_equal(twin_table(live, queueing, 5), twin_table(live, queueing, 5))


def test_the_columns_are_those_documented(live: Run, queueing: Run) -> None:
    assert tuple(twin_table(live, queueing).columns) == COLUMNS


class TestWarnings:
    def test_different_workloads_are_called_out(self, live: Run, tmp_path: Path) -> None:
        other = load_run(
            write_run(tmp_path / "other", dataclasses.replace(QUEUEING, requests=500, seed=4))
        )
        warnings = match_runs(live, other).warnings
        assert any("different workloads" in w and "3,000 and 500" in w for w in warnings)

    def test_requests_that_one_run_lacks_are_counted(self, live: Run, queueing: Run) -> None:
        half = dataclasses.replace(queueing, requests=queueing.requests.iloc[:1500])
        match = match_runs(live, half)
        assert match.paired
        assert any("only 1,500 are in both" in w for w in match.warnings)

    def test_two_runs_of_one_world_are_no_twins(self, queueing: Run, roomy: Run) -> None:
        assert any("Both runs are virtual" in w for w in match_runs(queueing, roomy).warnings)

    def test_other_deployments_are_called_out(self, live: Run, tmp_path: Path) -> None:
        other = load_run(write_run(tmp_path / "other", dataclasses.replace(QUEUEING, slots=9)))
        assert any("different deployments" in w for w in match_runs(live, other).warnings)

    def test_other_code_is_called_out(self, live: Run, queueing: Run) -> None:
        newer = msgspec.structs.replace(queueing.manifest, commit="fffffff")
        warnings = match_runs(live, dataclasses.replace(queueing, manifest=newer)).warnings
        assert any("different commits" in w for w in warnings)

    def test_a_run_that_was_cut_short_is_called_out(self, live: Run, tmp_path: Path) -> None:
        cut = load_run(write_run(tmp_path / "cut", dataclasses.replace(QUEUEING, complete=False)))
        assert any("cut short" in w for w in match_runs(live, cut).warnings)

    def test_true_twins_need_no_warning(self, live: Run, queueing: Run) -> None:
        assert match_runs(live, queueing).warnings == ()

    def test_replayed_send_instants_are_recognised(self, live: Run, queueing: Run) -> None:
        assert not match_runs(live, queueing).replayed
        sent = live.requests["sent_s"]
        replay = dataclasses.replace(queueing, requests=queueing.requests.assign(intended_s=sent))
        assert match_runs(live, replay).replayed
