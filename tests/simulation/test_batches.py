"""Message batches in the whole virtual world: beside interactive load, through crashes and outages."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from reference_impl.telemetry import STAGES, RequestRecord
from simulation.scenario.compiled_batches import FIRST_BATCH_ID
from simulation.scenario.errors import ScenarioError
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from tests.simulation.runs import Recorded, play

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 300

BESIDE_CHAT: dict[str, object] = {
    "horizon_s": 40,
    "drain_s": 600,
    "workload.arrivals": {"kind": "poisson", "rate_per_s": 5},
    "deployment.cache.enabled": False,
    "deployment.autoscaler.enabled": False,
    "deployment.instances": {"initial": 2, "concurrency": 8, "boot_s": 3},
    "deployment.queue": {"broker": "rabbitmq", "concurrency": 6, "lease_s": 5},
    "deployment.database.ledger": "postgres",
    "workload.batches": [
        {"at_s": 5, "requests": REQUESTS, "model": "claude-haiku-4-5", "poll_s": 2}
    ],
}


def played(overrides: Mapping[str, object] | None = None) -> Recorded:
    """A run whose rows keep invariants 1 and 2, whatever befell it."""
    run = play("demo", {**BESIDE_CHAT, **(overrides or {})})
    assert run.summary is not None
    assert run.summary.sent == run.summary.ended == len(run.requests)
    assert len({r.request_id for r in run.requests}) == len(run.requests)
    for r in run.requests:
        stages = [getattr(r, stage) for stage in STAGES]
        assert min(stages) >= 0.0
        assert math.fsum(stages) == pytest.approx(r.done_s - r.intended_s, abs=1e-6)
        assert r.intended_s <= r.sent_s <= r.done_s
    return run


def of_batches(run: Recorded) -> list[RequestRecord]:
    return [r for r in run.requests if r.kind == "batch"]


def of_chat(run: Recorded) -> list[RequestRecord]:
    return [r for r in run.requests if r.kind == "messages"]


def told(run: Recorded) -> list[tuple[float, str]]:
    return [(e.t_s, str(e.detail["state"])) for e in run.events if e.kind == "batch"]


@pytest.fixture(scope="module")
def calm() -> Recorded:
    return played()


def test_every_request_of_a_batch_has_one_row_from_submission_to_its_recorded_result(
    calm: Recorded,
) -> None:
    """Invariants 1 and 2."""
    rows = of_batches(calm)
    assert sorted(r.request_id for r in rows) == list(
        range(FIRST_BATCH_ID, FIRST_BATCH_ID + REQUESTS)
    )
    assert {(r.outcome, r.tenant, r.attempts) for r in rows} == {("ok", "default", 1)}
    # The loop's clock began with the boot of the fleet: the last bit of the difference is its.
    assert [r.intended_s for r in rows] == pytest.approx([5.0] * REQUESTS)
    assert [r.sent_s for r in rows] == pytest.approx([5.0] * REQUESTS)
    (batch,) = compile_workload(load_scenario("demo", BESIDE_CHAT)).batches
    for r in rows:
        place = r.request_id - FIRST_BATCH_ID
        assert (r.input_tokens, r.output_tokens) == (
            batch.input_tokens[place],
            batch.output_tokens[place],
        )
        # What no hop accounts for is the network and the CPU.
        assert r.other_s < 0.2
        assert r.endpoint_s > 0
    # Where they waited is their queue, and more so the later their turn came.
    assert max(r.queue_wait_s for r in rows) > 10
    assert {r.instance for r in rows} == {"instance-1", "instance-2"}


def test_a_batch_costs_half_of_what_its_requests_would(calm: Recorded) -> None:
    (row, *_) = of_batches(calm)
    assert row.cost_usd == pytest.approx((row.input_tokens * 1 + row.output_tokens * 5) / 1e6 / 2)


def test_its_submitter_hears_of_its_end_when_it_next_asks(calm: Recorded) -> None:
    (submitted_s, submitted), (ended_s, ended) = told(calm)
    assert (submitted, ended) == ("submitted", "ended")
    last_s = max(r.done_s for r in of_batches(calm))
    assert submitted_s == pytest.approx(5.0, abs=0.2)
    assert last_s <= ended_s <= last_s + 2.1


def test_a_batch_takes_no_more_slots_than_its_queue_allows_and_delays_chat_by_little(
    calm: Recorded,
) -> None:
    alone = play("demo", {**BESIDE_CHAT, "workload.batches": []})
    assert [(r.request_id, r.intended_s, r.input_tokens) for r in sorted_chat(alone)] == [
        (r.request_id, r.intended_s, r.input_tokens) for r in sorted_chat(calm)
    ]
    waits = [sum(r.instance_wait_s for r in of_chat(run)) for run in (alone, calm)]
    assert waits[0] < waits[1], "the batch takes slots"
    greedy = played({"deployment.queue.concurrency": 100})
    assert sum(r.instance_wait_s for r in of_chat(greedy)) > 3 * waits[1]
    assert max(r.done_s for r in of_batches(greedy)) < max(r.done_s for r in of_batches(calm))


def sorted_chat(run: Recorded) -> list[RequestRecord]:
    return sorted(of_chat(run), key=lambda r: r.request_id)


def test_more_instances_are_done_sooner(calm: Recorded) -> None:
    larger = played({"deployment.instances.initial": 4})
    spans = [max(r.done_s for r in of_batches(run)) - 5 for run in (calm, larger)]
    assert spans[0] / spans[1] == pytest.approx(2.0, rel=0.15)


def test_the_broker_is_a_station(calm: Recorded) -> None:
    samples = [s for s in calm.stations if s.kind == "broker"]
    assert {s.station for s in samples} == {"broker"}
    assert sum(s.arrivals for s in samples) == sum(s.completions for s in samples) == REQUESTS
    assert REQUESTS / 2 < max(s.queue_length for s in samples) <= REQUESTS
    assert max(s.in_service for s in samples) == 2 * 6
    # Little's law: time in the queue and in hand, by the broker and by the rows.
    held_s = sum((s.queue_length + s.in_service) * s.interval_s for s in samples)
    assert held_s == pytest.approx(sum(r.done_s - 5 for r in of_batches(calm)), rel=0.02)


def test_two_batches_of_two_tenants_are_played_beside_each_other() -> None:
    batches = [
        {"at_s": 1, "requests": 20, "tenant": "a", "poll_s": 1},
        {"at_s": 1, "requests": 30, "tenant": "b", "max_tokens": 7, "poll_s": 1},
    ]
    rows = of_batches(played({"workload.batches": batches}))
    assert Counter((r.tenant, r.request_id // FIRST_BATCH_ID) for r in rows) == {
        ("a", 1): 20,
        ("b", 2): 30,
    }
    assert max(r.output_tokens for r in rows if r.tenant == "b") == 7


def test_what_is_not_done_when_the_run_ends_is_unfinished() -> None:
    """Invariant 1."""
    run = played({"horizon_s": 20, "drain_s": 0})
    outcomes = Counter(r.outcome for r in of_batches(run))
    assert sum(outcomes.values()) == REQUESTS
    assert set(outcomes) == {"ok", "unfinished"}
    left = [r for r in of_batches(run) if r.outcome == "unfinished"]
    assert {r.done_s for r in left} == {20.0}
    waiting = [r for r in left if r.attempts == 0]
    assert all(r.queue_wait_s == pytest.approx(15.0) for r in waiting)
    assert 0 < len(left) - len(waiting) <= 2 * 6, "what instances had in hand"


def test_an_instance_that_crashes_loses_no_request_and_none_is_debited_twice() -> None:
    """Invariant 5. The cost of a row is its row in the ledger; repeated calls are in `attempts`."""
    run = played({"faults": [{"kind": "instance_crash", "instance": "instance-1", "at_s": 15}]})
    rows = of_batches(run)
    assert {r.outcome for r in rows} == {"ok"}
    repeated = [r for r in rows if r.attempts > 1]
    assert 0 < len(repeated) <= 6, "what the dead one had in hand"
    assert {r.attempts for r in repeated} == {2}
    for r in rows:
        price_usd = (r.input_tokens * 1 + r.output_tokens * 5) / 1e6 / 2
        assert r.cost_usd == pytest.approx(price_usd)
    # Its tasks were taken over at once: a broken connection is noticed.
    assert all(r.done_s < 40 for r in repeated)
    assert {r.instance for r in rows} == {"instance-1", "instance-2", "instance-3"}


def test_an_instance_that_hangs_gives_its_tasks_to_the_others_when_their_lease_ends() -> None:
    fault = {"kind": "instance_hang", "instance": "instance-1", "at_s": 15, "duration_s": 20}
    run = played({"faults": [fault]})
    rows = of_batches(run)
    assert {r.outcome for r in rows} == {"ok"}
    silent = [r for r in rows if r.instance == "instance-1" and 15.5 < r.done_s < 35]
    assert silent == []
    repeated = [r for r in rows if r.attempts > 1]
    assert repeated
    assert all(r.done_s > 15 + 1 for r in repeated)
    assert {r.instance for r in repeated} <= {"instance-2", "instance-3"}


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_a_broker_outage_delays_a_batch_and_harms_no_chat(outage: str, calm: Recorded) -> None:
    fault = {"kind": "broker_outage", "outage": outage, "at_s": 10, "duration_s": 15}
    run = played({"faults": [fault]})
    rows = of_batches(run)
    assert {r.outcome for r in rows} == {"ok"}
    assert {r.outcome for r in of_chat(run)} == {"ok"}
    # Nothing new is handed out while it is away: what was in hand is finished, and recorded.
    during = [r for r in rows if 16 < r.done_s < 25]
    assert len(during) <= 2 * 6
    delay_s = max(r.done_s for r in rows) - max(r.done_s for r in of_batches(calm))
    assert 5 < delay_s < 40
    away = [s.t_s for s in run.stations if s.kind == "broker" and 10 < s.t_s < 25]
    assert away == [], "nobody knows what is in a queue that is away"


def test_a_batch_that_is_turned_away_is_submitted_again() -> None:
    fault = {"kind": "broker_outage", "outage": "refusing", "at_s": 2, "duration_s": 10}
    run = played({"faults": [fault]})
    states = told(run)
    assert [state for _, state in states] == [*["refused"] * 4, "submitted", "ended"]
    assert states[4][0] == pytest.approx(13, abs=0.5)
    rows = of_batches(run)
    assert {r.outcome for r in rows} == {"ok"}
    assert [r.sent_s for r in rows] == pytest.approx([5.0] * len(rows))
    # The time until it was accepted is nobody's stage.
    assert all(r.other_s == pytest.approx(8, abs=0.5) for r in rows)


def test_an_instance_that_is_scaled_away_hands_its_tasks_back() -> None:
    run = played(
        {
            "deployment.instances": {"initial": 4, "concurrency": 8, "drain_s": 0.5},
            "deployment.autoscaler": {
                "policy": "concurrency",
                "min_instances": 1,
                "target_in_flight": 40,
                "interval_s": 5,
                "down_stabilization_s": 5,
            },
        }
    )
    stopped = [e.subject for e in run.events if e.detail.get("state") == "stopped" and e.t_s < 40]
    assert len(stopped) == 3
    rows = of_batches(run)
    assert {r.outcome for r in rows} == {"ok"}
    repeated = [r for r in rows if r.attempts > 1]
    assert 0 < len(repeated) <= 3 * 6, "what was in hand after half a second of draining"
    gone_s = max(e.t_s for e in run.events if e.subject in stopped)
    assert not any(r.instance in stopped for r in rows if r.done_s > gone_s)


def test_a_sqlite_ledger_takes_one_process_at_a_time() -> None:
    slow = {"deployment.database.ledger": "sqlite", "database.query_s": 0.1}
    run = played(slow)
    rows = of_batches(run)
    assert {r.outcome for r in rows} == {"ok"}
    # Two statements of a tenth of a second for every request, one after the other, whatever the number of instances.
    assert max(r.done_s for r in rows) - 5 > REQUESTS * 2 * 0.1


def test_a_batch_sees_the_same_requests_and_luck_whatever_is_beside_it() -> None:
    """Common random numbers: an id, and all that is drawn by it, depends on the batch alone."""
    busier = {
        "workload.arrivals": {"kind": "poisson", "rate_per_s": 8},
        "deployment.instances.initial": 3,
    }
    runs = [played(), played(busier)]
    luck = [
        {r.request_id: (r.output_tokens, r.endpoint_s) for r in of_batches(run)} for run in runs
    ]
    assert luck[0].keys() == luck[1].keys()
    for request_id, mine in luck[0].items():
        assert luck[1][request_id] == pytest.approx(mine)


DIGEST = """
from tests.simulation.test_batches import BESIDE_CHAT
from tests.simulation.runs import play
crash = {"kind": "instance_crash", "at_s": 15}
outage = {"kind": "broker_outage", "at_s": 25, "duration_s": 3}
print(play("demo", {**BESIDE_CHAT, "faults": [crash, outage]}).sha256())
"""


def test_equal_inputs_give_equal_records_in_two_processes_with_other_hash_seeds() -> None:
    """Invariant 7."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_equal_inputs_give_equal_records_after_another_run() -> None:
    """Invariant 7, in one process, with allocations perturbed."""
    first = played().sha256()
    played({"seed": 9, "drain_s": 0})
    clutter = [bytearray(n % 977 + 1) for n in range(50_000)]
    del clutter[::3]
    assert played().sha256() == first


def test_a_batch_without_a_queue_is_refused_in_one_line() -> None:
    with pytest.raises(
        ScenarioError, match=r"^demo with overrides: workload\.batches: nothing"
    ) as e:
        load_scenario("demo", {"workload.batches": [{"requests": 5}]})
    assert "deployment.queue.broker" in str(e.value)
    assert "\n" not in str(e.value)
