"""The virtual world as a whole: the invariants of docs/architecture.md on real scenarios."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from reference_impl.telemetry import OUTCOMES, STAGES
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from tests.simulation.runs import Recorded, play

ROOT = Path(__file__).resolve().parents[2]

# What bends the path: nothing, overload of the slots, an endpoint that fails, a run that is cut off, impatient clients.
SITUATIONS: dict[str, dict[str, object]] = {
    "calm": {},
    "overloaded": {
        "deployment.instances.concurrency": 1,
        "deployment.instances.queue_limit": 2,
        "deployment.autoscaler.enabled": False,
    },
    "failing endpoint": {
        "endpoint.faults": [
            {"kind": "529", "probability": 0.2},
            {"kind": "429", "probability": 0.1, "retry_after_s": 0.3},
            {"kind": "drop_stream", "probability": 0.1},
            {"kind": "drop_connection", "probability": 0.05},
        ]
    },
    "cut off": {"horizon_s": 20, "drain_s": 0},
    "impatient": {"workload.patience_s": {"kind": "exponential", "mean": 0.3}},
}


@pytest.fixture(scope="module", params=SITUATIONS)
def situation(request: pytest.FixtureRequest) -> tuple[str, Recorded]:
    return request.param, play("demo", {"horizon_s": 30, **SITUATIONS[request.param]})


def test_every_arrival_ends_in_exactly_one_outcome(situation: tuple[str, Recorded]) -> None:
    """Invariant 1."""
    name, run = situation
    assert run.summary is not None
    workload = compile_workload(load_scenario("demo", {"horizon_s": 30, **SITUATIONS[name]}))
    assert sorted(r.request_id for r in run.requests) == list(range(len(workload)))
    assert run.summary.sent == run.summary.ended == len(workload)
    assert {r.outcome for r in run.requests} <= set(OUTCOMES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("calm", {"ok"}),
        ("overloaded", {"ok", "rejected"}),
        ("failing endpoint", {"ok", "stream_broken"}),
        ("cut off", {"ok", "unfinished"}),
        ("impatient", {"ok", "cancelled"}),
    ],
)
def test_each_situation_shows_the_outcomes_that_it_is_about(name: str, expected: set[str]) -> None:
    run = play("demo", {"horizon_s": 30, **SITUATIONS[name]})
    assert expected <= {r.outcome for r in run.requests}


def test_time_runs_forward_and_stages_add_up(situation: tuple[str, Recorded]) -> None:
    """Invariant 2."""
    _, run = situation
    for r in run.requests:
        assert r.intended_s <= r.sent_s <= r.done_s
        assert math.isnan(r.first_token_s) or r.sent_s <= r.first_token_s <= r.done_s
        stages = [getattr(r, stage) for stage in STAGES]
        assert min(stages) >= 0.0
        assert math.fsum(stages) == pytest.approx(r.done_s - r.intended_s, abs=1e-9)


def test_nothing_is_still_held_when_the_run_is_over(situation: tuple[str, Recorded]) -> None:
    """Invariant 6, seen from outside: every station's arrivals have left it, unless the run was cut off."""
    name, run = situation
    if name == "cut off":
        pytest.skip("what was in flight at the end is counted as unfinished")
    arrived: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for sample in run.stations:
        if sample.kind in ("slots", "endpoint"):
            arrived[sample.station] += sample.arrivals
            left[sample.station] += sample.completions
    assert arrived["endpoint"] > 0
    if name != "impatient":  # a waiter that left is no completion
        assert arrived == left


def test_samples_and_events_are_in_order_of_time(situation: tuple[str, Recorded]) -> None:
    """Invariant 3, as far as records show it."""
    _, run = situation
    assert [s.t_s for s in run.stations] == sorted(s.t_s for s in run.stations)
    assert [e.t_s for e in run.events] == sorted(e.t_s for e in run.events)
    done = [r.done_s for r in run.requests]
    assert done == sorted(done)


def test_utilisation_follows_from_throughput_and_demand() -> None:
    """Invariant 4: busy slots = throughput x mean time in a slot; Little's law over the whole run."""
    run = play("demo")
    slots = [s for s in run.stations if s.kind == "slots"]
    missed = [r for r in run.requests if r.cache == "miss"]
    in_slot_s = sum(r.llm_first_token_s + r.llm_stream_s for r in missed)
    assert sum(s.busy_s for s in slots) == pytest.approx(in_slot_s, rel=0.01)


def test_the_autoscaler_acts() -> None:
    changes = [e.detail["delta"] for e in play("demo").events if e.kind == "scaling"]
    deltas = [change for change in changes if isinstance(change, int)]
    assert max(deltas) > 0
    assert min(deltas) < 0


DIGEST = "from tests.simulation.runs import play; print(play('demo', {'horizon_s': 15}).sha256())"


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


def test_equal_inputs_give_equal_records_after_another_run_with_allocations_perturbed() -> None:
    """Invariant 7: order by address does not show across hash seeds, but it shows here."""
    overrides = {"horizon_s": 15, **SITUATIONS["failing endpoint"]}
    first = play("demo", overrides).sha256()
    play("chat", {"horizon_s": 5, "seed": 9})
    clutter = [bytearray(n % 977 + 1) for n in range(50_000)]
    del clutter[::3]
    assert play("demo", overrides).sha256() == first


def test_another_seed_gives_other_records() -> None:
    assert (
        play("demo", {"horizon_s": 5, "seed": 1}).sha256()
        != play("demo", {"horizon_s": 5, "seed": 2}).sha256()
    )


def test_two_policies_meet_the_same_requests_and_the_same_luck() -> None:
    """Common random numbers: a change of the deployment changes no request and no endpoint's draw."""
    one = play("demo", {"horizon_s": 10, "deployment.cache.enabled": False})
    other = play(
        "demo",
        {
            "horizon_s": 10,
            "deployment.cache.enabled": False,
            "deployment.balancer.policy": "round_robin",
        },
    )
    endpoint = [{r.request_id: r.endpoint_s for r in run.requests} for run in (one, other)]
    assert endpoint[0] == pytest.approx(endpoint[1])
