"""The verdict, the gate and the decomposition, against systems whose truth is known."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from reports.bottleneck import judge
from reports.run import Run, load_run
from reports.stages import PARTS, by_band, parts, slow_delay
from reports.stations import pool_of, pool_table, pooled_series, with_host
from reports.validity import Check, check_run, worst
from tests.reports.conftest import ROOMY
from tests.reports.synthetic import Truth, from_outside, records, write_run


def checks(run: Run) -> dict[str, Check]:
    return {check.name: check for check in check_run(run)}


def changed(run: Run, **columns: Any) -> Run:
    """The run with other values in some columns of its requests."""
    return dataclasses.replace(run, requests=run.requests.assign(**columns))


class TestVerdict:
    def test_slots_that_requests_queue_for_are_the_bottleneck(self, queueing: Run) -> None:
        verdict = judge(queueing)
        assert verdict.limiting == "slots"
        assert verdict.candidates[0].corroborated
        assert "instances.concurrency" in verdict.action

    def test_with_room_nothing_is_limiting_and_the_headroom_is_the_laws(self, roomy: Run) -> None:
        verdict = judge(roomy)
        assert verdict.limiting is None
        assert "Nothing of yours is limiting" in verdict.headline
        assert verdict.headroom is not None
        # 32 slots, 0.8 of requests hold one for 1 s on average: 32 / 0.8 = 40 requests/s at most.
        assert verdict.headroom.bound_per_s == pytest.approx(40, rel=0.05)
        assert verdict.headroom.pool == "instance slots"

    def test_a_busy_station_that_nobody_waits_for_is_not_accused(self, roomy: Run) -> None:
        busy = roomy.stations.copy()
        cpu = busy["kind"] == "cpu"
        busy.loc[cpu, ["busy_s", "in_service"]] = 0.95
        verdict = judge(dataclasses.replace(roomy, stations=busy))
        assert verdict.limiting is None
        assert verdict.headroom is not None
        assert verdict.headroom.pool == "gateway cpu"
        # Nor is it acquitted: there is no room for more load.
        assert "Nothing of yours" not in verdict.headline
        assert "`gateway cpu` is nearly used up" in verdict.headline
        assert "will not help" not in verdict.action

    def test_a_busy_pool_with_a_line_is_not_acquitted(self, roomy: Run) -> None:
        line = roomy.stations.copy()
        now_and_then = (line["kind"] == "cpu") & (line["t_s"] % 100 < 15)
        line.loc[now_and_then, ["busy_s", "in_service", "queue_length"]] = (0.99, 0.99, 3.0)
        verdict = judge(dataclasses.replace(roomy, stations=line))
        assert "Nothing of yours" not in verdict.headline
        assert "`gateway cpu`" in verdict.headline
        assert "will not help" not in verdict.action

    def test_a_wait_that_everybody_has_is_a_wait(self, roomy: Run) -> None:
        frame = roomy.requests
        waiting = {c: frame[c] + 5.0 for c in ("admission_s", "done_s", "latency_s", "service_s")}
        verdict = judge(changed(roomy, **waiting))
        assert verdict.limiting == "admission"
        assert "gateway.max_in_flight" in verdict.action

    def test_advice_against_a_slow_endpoint_tells_what_of_ours_is_worth_it_too(
        self, queueing: Run
    ) -> None:
        frame = queueing.requests
        longer = {
            c: frame[c] + 3 * frame["endpoint_s"]
            for c in ("done_s", "endpoint_s", "llm_stream_s", "latency_s")
        }
        slo = {"name": "answer", "metric": "latency", "quantile": 0.95, "limit_s": 1.0}
        manifest = msgspec.structs.replace(queueing.manifest, scenario={"slos": [slo]})
        verdict = judge(dataclasses.replace(changed(queueing, **longer), manifest=manifest))
        assert verdict.limiting == "endpoint"
        assert "instances.concurrency" in verdict.action
        assert "will not help" not in verdict.action

    def test_failures_come_before_delay(self, tmp_path: Path) -> None:
        run = load_run(write_run(tmp_path / "run", dataclasses.replace(ROOMY, failing=0.2)))
        verdict = judge(run)
        assert verdict.limiting == "refusals"
        assert "rate_limited" in verdict.headline
        assert verdict.confidence == "high"

    def test_a_late_load_generator_is_named_as_the_culprit(self, tmp_path: Path) -> None:
        truth = dataclasses.replace(ROOMY, lag_s=3.0, requests=1000)
        run = load_run(write_run(tmp_path / "run", truth))
        assert judge(run).limiting == "generator"
        assert checks(run)["Load generator on time"].state == "fail"

    def test_a_missed_promise_is_quoted_with_what_was_measured(self, tmp_path: Path) -> None:
        slo = {"name": "answer", "metric": "latency", "quantile": 0.95, "limit_s": 1.0}
        run = load_run(write_run(tmp_path / "run", dataclasses.replace(ROOMY, slos=(slo,))))
        verdict = judge(run)
        assert verdict.limiting == "endpoint"
        assert "promised was p95 of latency ≤ 1 s" in verdict.headline

    def test_a_late_first_token_is_explained_by_what_comes_before_it(self, queueing: Run) -> None:
        frame = queueing.requests
        # Answers stream for minutes, so of the whole latency the endpoint is nearly all; the first token waits for a slot.
        longer = {
            c: frame[c] + 100 * frame["endpoint_s"]
            for c in ("done_s", "endpoint_s", "llm_stream_s", "latency_s")
        }
        slow = changed(queueing, **longer)
        first = {"name": "first", "metric": "ttft", "quantile": 0.95, "limit_s": 1.0}
        manifest = msgspec.structs.replace(slow.manifest, scenario={"name": "x", "slos": [first]})
        verdict = judge(dataclasses.replace(slow, manifest=manifest))
        assert verdict.limiting == "slots"
        assert "promised was p95 of ttft ≤ 1 s" in verdict.headline
        assert (
            judge(
                dataclasses.replace(slow, manifest=msgspec.structs.replace(manifest, scenario={}))
            ).limiting
            is None
        )

    def test_an_idle_system_is_acquitted_with_high_confidence(self, roomy: Run) -> None:
        verdict = judge(roomy)
        assert verdict.confidence == "high"
        assert any("none of your stations is in the way" in reason for reason in verdict.reasons)

    def test_of_a_foreign_target_only_the_time_that_it_took_is_known(self, tmp_path: Path) -> None:
        run = load_run(from_outside(tmp_path / "run", ROOMY))
        verdict = judge(run)
        assert not run.inside_seen
        assert verdict.limiting == "target"
        assert re.match(
            r"The target's inside was not seen; a slow request took it [\d.]+ s, a typical one [\d.]+ m?s;",
            verdict.headline,
        )
        assert verdict.confidence == "low"
        assert "nothing inside the target was measured" in verdict.reasons[0]
        assert "cpu" not in {c.key for c in verdict.candidates}

    def test_a_late_load_generator_is_named_against_a_foreign_target_too(
        self, tmp_path: Path
    ) -> None:
        truth = dataclasses.replace(ROOMY, lag_s=3.0, requests=1000)
        assert judge(load_run(from_outside(tmp_path / "run", truth))).limiting == "generator"

    @pytest.mark.parametrize(
        ("status", "told", "asked"),
        [
            (401, "with status 401", "is the API key right?"),
            (403, "with status 403", "is the API key right"),
            (404, "with status 404", "is the address right"),
            (400, "with status 400", "`max_tokens`"),
            (0, "they were refused.", "is the API key right?"),
        ],
    )
    def test_requests_that_are_refused_are_asked_after_and_not_the_load_generator(
        self, status: int, told: str, asked: str, tmp_path: Path
    ) -> None:
        refused = from_outside(tmp_path / "run", ROOMY, outcome="client_error", status=status)
        verdict = judge(load_run(refused))
        assert verdict.limiting == "requests"
        assert told in verdict.headline
        assert asked in verdict.action

    @pytest.mark.parametrize(
        ("outcome", "limiting"),
        [("server_error", "target"), ("connection_error", "target"), ("timeout", "target"), ("rate_limited", "refusals")],
    )  # fmt: skip
    def test_what_fails_at_a_foreign_target_accuses_nothing_that_was_not_seen(
        self, outcome: str, limiting: str, tmp_path: Path
    ) -> None:
        run = load_run(from_outside(tmp_path / "run", ROOMY, outcome=outcome))
        assert judge(run).limiting == limiting

    def test_too_few_slow_requests_are_told_as_the_reason_of_a_low_confidence(
        self, tmp_path: Path
    ) -> None:
        run = load_run(write_run(tmp_path / "run", dataclasses.replace(ROOMY, requests=150)))
        verdict = judge(run)
        assert verdict.confidence == "low"
        assert re.match(
            r"1\d requests are slow: .*; to be sure takes at least 20", verdict.reasons[0]
        )

    def test_a_ranking_that_does_not_hold_is_told_as_the_reason(self, queueing: Run) -> None:
        # Half of the waits for a slot were waits for the database.
        half = queueing.requests["instance_wait_s"] / 2
        verdict = judge(changed(queueing, instance_wait_s=half, database_s=half * 1.01))
        assert verdict.confidence == "low"
        assert any("below the 95.0% that make a verdict sure" in r for r in verdict.reasons)

    def test_a_handful_of_requests_is_too_few_to_judge(self, tmp_path: Path) -> None:
        run = load_run(write_run(tmp_path / "run", Truth(requests=10)))
        verdict = judge(run)
        assert (verdict.limiting, verdict.confidence) == (None, "low")
        assert "Too few requests" in verdict.headline

    def test_equal_seeds_give_equal_verdicts(self, queueing: Run) -> None:
        assert judge(queueing, seed=3) == judge(queueing, seed=3)


class TestStages:
    def test_the_parts_add_up_to_the_latency(self, queueing: Run) -> None:
        frame = queueing.requests
        total = parts(frame).sum(axis=1)
        assert np.allclose(total, frame["done_s"] - frame["intended_s"])

    def test_the_parts_up_to_the_first_token_add_up_to_it(self, queueing: Run) -> None:
        frame = queueing.requests[queueing.requests["first_token_s"].notna()]
        total = parts(queueing.requests, "first_token").sum(axis=1)
        assert np.allclose(total, frame["first_token_s"] - frame["intended_s"], atol=1e-6)

    def test_the_bands_partition_the_requests(self, queueing: Run) -> None:
        bands = by_band(parts(queueing.requests))
        assert bands["requests"].sum() == len(queueing.requests)
        assert bands[list(PARTS)].sum(axis=1).is_monotonic_increasing

    def test_shares_of_the_excess_add_up_to_one(self, queueing: Run) -> None:
        slow = slow_delay(queueing.requests, np.random.default_rng(0))
        assert slow is not None
        assert sum(slow.excess.values()) == pytest.approx(1)
        assert slow.requests == pytest.approx(0.05 * len(queueing.requests), abs=2)


class TestStations:
    def test_members_of_a_pool_lose_their_number(self) -> None:
        names = ["instance-3 slots", "instance-12 cpu", "gateway cpu", "worker#2", "endpoint"]
        expected = ["instance slots", "instance cpu", "gateway cpu", "worker", "endpoint"]
        assert [pool_of(n) for n in names] == expected

    def test_demand_is_busy_time_per_answer_and_bounds_the_throughput(self, roomy: Run) -> None:
        completed = int(roomy.requests["ok"].sum())
        table = pool_table(roomy.servers, completed)
        slots = table.loc["instance slots"]
        held = roomy.requests["llm_first_token_s"] + roomy.requests["llm_stream_s"]
        assert slots["demand_s"] == pytest.approx(held.sum() / completed, rel=0.01)
        assert slots["bound_per_s"] == pytest.approx(32 / slots["demand_s"])
        assert slots["members"] == 4

    def test_a_pool_without_a_bound_has_no_utilisation_and_bounds_nothing(self, roomy: Run) -> None:
        endless = roomy.servers.assign(capacity=np.inf)
        table = pool_table(endless, 100)
        assert table["utilisation"].isna().all()
        assert np.isinf(table["bound_per_s"]).all()

    def test_pooled_capacity_follows_the_instances(self, queueing: Run) -> None:
        series = pooled_series(queueing.stations)
        slots = series[series["pool"] == "instance slots"].set_index("t_s")["capacity"]
        assert slots.iloc[0] == pytest.approx(8)
        assert slots.iloc[-1] == pytest.approx(16)

    def test_processes_share_the_cores_of_their_host(self, roomy: Run) -> None:
        cpu = roomy.stations[roomy.stations["kind"] == "cpu"]
        others = [cpu.assign(station=f"instance-{i} cpu", busy_s=0.6) for i in range(3)]
        table = pool_table(with_host(pd.concat(others), cores=2), completed=100)
        assert table.loc["instance cpu", "utilisation"] == pytest.approx(0.6)
        assert table.loc["host cpu", "utilisation"] == pytest.approx(0.9, rel=0.02)
        assert table["bound_per_s"].idxmin() == "host cpu"

    def test_no_stations_is_an_empty_table_not_an_error(self, roomy: Run) -> None:
        none = roomy.stations.iloc[:0]
        assert pool_table(none, 10).empty
        assert pooled_series(none).empty


class TestGate:
    def test_an_honest_run_passes(self, queueing: Run) -> None:
        found = check_run(queueing)
        assert worst(found) == "pass", [c for c in found if c.state != "pass"]

    def test_a_lost_request_breaks_conservation(self, tmp_path: Path) -> None:
        truth = Truth(requests=300)
        rows = records(truth)
        run = load_run(write_run(tmp_path / "run", truth, rows[:100] + rows[101:]))
        assert checks(run)["Every arrival has one outcome"].state == "fail"

    def test_turns_that_were_never_reached_are_no_loss_but_a_hole_is(self, queueing: Run) -> None:
        n = len(queueing.requests)
        talk = changed(queueing, session_id=np.arange(n) // 10, turn=np.arange(n) % 10)
        ended_early = dataclasses.replace(
            talk, requests=talk.requests[talk.requests["turn"] != 9].iloc[:-1]
        )
        check = checks(ended_early)["Every arrival has one outcome"]
        assert check.state == "pass"
        assert "never reached" in check.detail
        hole = dataclasses.replace(talk, requests=talk.requests[talk.requests["turn"] != 4])
        assert checks(hole)["Every arrival has one outcome"].state == "fail"

    def test_a_run_that_fails_its_gate_is_judged_with_low_confidence(self, queueing: Run) -> None:
        verdict = judge(changed(queueing, database_s=1.0))
        assert verdict.confidence == "low"
        assert "fails its validity gate" in verdict.reasons[0]

    def test_a_first_token_before_the_request_breaks_causality(self, queueing: Run) -> None:
        sent = queueing.requests["sent_s"]
        broken = changed(queueing, first_token_s=sent - 1)
        assert checks(broken)["Causality"].state == "fail"

    def test_a_negative_stage_breaks_causality(self, queueing: Run) -> None:
        assert checks(changed(queueing, cache_s=-0.5))["Causality"].state == "fail"

    def test_stages_that_do_not_add_up_are_seen(self, queueing: Run) -> None:
        broken = changed(queueing, database_s=1.0)
        assert checks(broken)["Stages add up to the latency"].state == "fail"

    def test_hops_that_claim_more_time_than_there_was_are_seen(self, queueing: Run) -> None:
        frame = queueing.requests
        broken = changed(queueing, database_s=1.0, other_s=frame["other_s"] - 1.0)
        assert checks(broken)["Stages add up to the latency"].state == "fail"

    def test_waits_that_the_stations_did_not_see_break_littles_law(self, queueing: Run) -> None:
        doubled = changed(queueing, instance_wait_s=2 * queueing.requests["instance_wait_s"])
        assert checks(doubled)["Little's law"].state == "fail"

    def test_a_station_busier_than_its_capacity_breaks_the_utilisation_law(
        self, queueing: Run
    ) -> None:
        impossible = queueing.stations.assign(busy_s=queueing.stations["busy_s"] + 100)
        run = dataclasses.replace(queueing, stations=impossible)
        assert checks(run)["Utilisation law"].state == "fail"

    def test_requests_left_in_flight_are_counted(self, queueing: Run) -> None:
        outcome = queueing.requests["outcome"].copy()
        outcome.iloc[-300:] = "unfinished"
        run = changed(queueing, outcome=outcome, finished=outcome != "unfinished")
        assert checks(run)["Requests finished"].state == "fail"

    def test_a_run_that_was_cut_short_warns(self, queueing: Run) -> None:
        cut = dataclasses.replace(
            queueing, manifest=msgspec.structs.replace(queueing.manifest, complete=False)
        )
        assert checks(cut)["Run complete"].state == "warn"

    def test_a_queue_that_only_grows_never_settles(self, queueing: Run) -> None:
        growing = pd.Series(np.linspace(1, 100, len(queueing.requests)))
        assert checks(changed(queueing, service_s=growing))["Steady state"].state == "warn"
