"""Instances that crash, hang or slow, in the whole virtual world."""

from __future__ import annotations

from reference_impl.telemetry import STAGES
from tests.simulation.runs import Recorded, play

STEADY: dict[str, object] = {
    "horizon_s": 60,
    "workload.arrivals": {"kind": "poisson", "rate_per_s": 20},
    "workload.stream_fraction": 0.5,
    "deployment.cache.enabled": False,
    "deployment.autoscaler.enabled": False,
    "deployment.instances.initial": 2,
    "deployment.instances.boot_s": 3,
}


def played(**fault: object) -> Recorded:
    fields = {"at_s": 20.0, "duration_s": 5.0, "instance": "instance-1", **fault}
    if fields["at_s"] is None:
        del fields["at_s"]
    run = play("demo", {**STEADY, "faults": [fields]})
    assert run.summary is not None
    assert run.summary.sent == run.summary.ended == len(run.requests)
    for r in run.requests:
        assert min(getattr(r, stage) for stage in STAGES) >= 0
    return run


def states(run: Recorded) -> list[tuple[float, str, str]]:
    return [
        (round(e.t_s, 3), e.subject, str(e.detail["state"]))
        for e in run.events
        if e.kind in ("instance", "fault") and e.t_s > 0
    ]


def test_a_crash_loses_streams_under_way_and_nothing_else_and_the_fleet_is_filled_up() -> None:
    run = played(kind="instance_crash")
    lost = [r for r in run.requests if r.outcome != "ok"]
    assert lost, "some streams were under way"
    assert all(abs(r.done_s - 20.0) < 0.01 and r.sent_s <= 20.0 for r in lost)
    assert {r.outcome for r in lost} == {"connection_error"}
    # Calls whose answer had not begun were taken over by the other instance.
    taken_over = [
        r
        for r in run.requests
        if r.outcome == "ok" and r.sent_s < 20.0 < r.done_s and r.done_s > 20.2
    ]
    assert any(r.instance == "instance-2" for r in taken_over)
    changes = states(run)
    assert (20.0, "instance-1", "died") in changes
    # Its provider may start a replacement after the 5 s of the fault; it takes 3 s to boot.
    assert (28.0, "instance-3", "ready") in changes
    after = [r for r in run.requests if r.sent_s > 28.5]
    assert {r.instance for r in after} == {"instance-2", "instance-3"}


def test_a_hanging_instance_holds_its_calls_until_it_goes_on() -> None:
    run = played(kind="instance_hang")
    held = [r for r in run.requests if r.instance == "instance-1" and 20.0 < r.sent_s < 20.2]
    assert held
    assert all(r.done_s >= 25.0 for r in held)
    assert {r.outcome for r in run.requests} == {"ok"}
    # Least loaded sends it less and less, and nothing more once its silence has been noticed.
    later = [r for r in run.requests if 22.5 < r.sent_s < 25.0]
    assert {r.instance for r in later} == {"instance-2"}
    assert {r.instance for r in run.requests if r.sent_s > 26} == {"instance-1", "instance-2"}


def test_a_slow_instance_is_slow_for_as_long_as_the_fault_lasts() -> None:
    run = played(kind="instance_slow", factor=200.0)

    def added(low_s: float, high_s: float) -> float:
        found = [
            r.done_s - r.sent_s - r.endpoint_s
            for r in run.requests
            if r.instance == "instance-1" and low_s < r.sent_s < high_s
        ]
        return sum(found) / len(found)

    assert added(20.5, 24.5) > 20 * added(5.0, 19.0)
    assert added(30.0, 59.0) < 2 * added(5.0, 19.0)


def test_any_instance_is_drawn_by_the_seed() -> None:
    fault = {"kind": "instance_slow", "instance": "any", "at_s": None, "rate_per_hour": 3600.0}
    runs = [played(**fault) for _ in range(2)]
    assert runs[0].sha256() == runs[1].sha256()
    befallen = {subject for _, subject, state in states(runs[0]) if state == "began"}
    assert befallen == {"instance-1", "instance-2"}


def test_a_fault_of_an_instance_that_does_not_run_is_told_and_changes_nothing() -> None:
    run = played(kind="instance_crash", instance="instance-9")
    assert (20.0, "instance-9", "missed") in states(run)
    assert {r.outcome for r in run.requests} == {"ok"}
