"""The faults of a run in its report: spans, bands in the figures, a table, and a reason beside the verdict."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from reference_impl.telemetry import SystemEvent
from reports import figures
from reports.bottleneck import judge
from reports.document import build_report
from reports.faults import FaultSpan, fault_spans, met_a_fault
from reports.run import Run, load_run
from reports.summary import summarise
from tests.reports.synthetic import Truth, from_outside, write_run


def told(
    t_s: float, state: str, fault: str = "redis_outage", subject: str = "redis"
) -> SystemEvent:
    return SystemEvent(
        t_s=t_s, kind="fault", subject=subject, detail={"fault": fault, "state": state}
    )


def with_faults(run: Run, *events: SystemEvent) -> Run:
    return dataclasses.replace(run, events=(*run.events, *events))


def test_what_began_and_ended_is_a_span_and_overlapping_ones_are_told_apart(roomy: Run) -> None:
    run = with_faults(
        roomy,
        told(10, "began"),
        told(20, "began"),
        told(30, "ended"),
        told(40, "ended"),
        told(15, "began", "instance_crash", "instance-2"),
        told(50, "missed", "instance_hang", "instance-9"),
    )
    assert fault_spans(run) == [
        FaultSpan("redis_outage", "redis", 10, 30),
        FaultSpan("instance_crash", "instance-2", 15, math.inf),
        FaultSpan("redis_outage", "redis", 20, 40),
        FaultSpan("instance_hang", "instance-9", 50, 50, befell=False),
    ]
    assert fault_spans(roomy) == []
    nobody = dataclasses.replace(run, requests=run.requests.iloc[:0])
    assert (
        judge(nobody).reasons[-1]
        == "faults befell the run (2 redis_outage, 1 instance_crash, 1 instance_hang)"
    )


def test_a_request_meets_a_fault_that_is_there_while_it_is_under_way(roomy: Run) -> None:
    frame = roomy.requests.assign(intended_s=range(len(roomy.requests)))
    frame = frame.assign(done_s=frame["intended_s"] + 2.0)
    met = met_a_fault(frame, [FaultSpan("x", "y", 10.5, 12.5), FaultSpan("x", "y", 50, 60, False)])
    assert met[met].index.tolist() == [9, 10, 11, 12]


def test_the_verdict_names_the_faults_and_how_many_of_the_slow_requests_met_one(
    queueing: Run,
) -> None:
    run = with_faults(queueing, told(0, "began"), told(100, "ended"))
    (reason,) = set(judge(run).reasons) - set(judge(queueing).reasons)
    assert "1 redis_outage" in reason
    # All that waited for a slot came in the first minutes, of which the fault takes a third of the run's time.
    shares = [float(share) for share in re.findall(r"([\d.]+)%", reason)]
    assert shares[0] > 80 > 50 > shares[1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda run: figures.latency_over_time([("virtual", run)]),
        lambda run: figures.throughput_over_time([("virtual", run)]),
        lambda run: figures.utilisation("virtual", run),
        lambda run: figures.queues("virtual", run),
        lambda run: figures.fleet([("virtual", run)]),
    ],
    ids=["latency", "throughput", "utilisation", "waiting", "instances"],
)
def test_every_figure_over_time_shades_the_faults(
    draw: Callable[[Run], bytes | None], queueing: Run
) -> None:
    run = with_faults(queueing, told(100, "began"), told(150, "ended"))
    assert draw(run) != draw(queueing)
    missed = with_faults(queueing, told(100, "missed"))
    assert draw(missed) == draw(queueing)


def test_the_report_and_the_summary_tell_of_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Truth(requests=300, steps=((0.0, 4),)))
    quiet = build_report([folder], tmp_path / "quiet").markdown.read_text()
    assert "## Faults" not in quiet
    assert summarise(folder)["faults"] == []
    with (folder / "events.jsonl").open("ab") as events:
        for event in (told(5, "began"), told(10, "ended"), told(20, "began", "instance_slow", "instance-1")):  # fmt: skip
            events.write(msgspec.json.encode(event) + b"\n")
    page = build_report([folder], tmp_path / "out").markdown.read_text()
    part = page.split("\n## Faults\n", 1)[1].split("\n## ")[0]
    assert "| redis\\_outage | redis | 5 s | 10 s |" in part
    assert "| instance\\_slow | instance-1 | 20 s | the end |" in part
    summary = summarise(folder)
    json.dumps(summary, allow_nan=False)
    assert summary["faults"][1]["until_s"] is None


def test_live_the_faults_that_the_endpoint_plays_are_those_of_the_scenario(
    roomy: Run, tmp_path: Path
) -> None:
    plan = [
        {"kind": "endpoint_slow", "at_s": 30.0, "duration_s": 10.0},
        {"kind": "redis_outage", "at_s": 5.0},
    ]
    scenario = {**roomy.manifest.scenario, "faults": plan, "horizon_s": 300.0}
    manifest = msgspec.structs.replace(roomy.manifest, world="live", scenario=scenario)
    live = dataclasses.replace(roomy, manifest=manifest)
    (span,) = fault_spans(live)
    first_s = float(live.requests["sent_s"].min())
    assert span == FaultSpan("endpoint_slow", "endpoint", first_s + 30, first_s + 40)
    foreign = load_run(from_outside(tmp_path / "run", Truth(requests=50)))
    assert fault_spans(dataclasses.replace(foreign, manifest=manifest)) == []
