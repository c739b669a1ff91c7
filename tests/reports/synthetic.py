"""Run folders of a known truth: a multi-server queue by recursion, with a cache, retries and a scaling fleet.

Not a simulation of the project: a few lines whose answer one can work out, so that a report can be held against it.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from reference_impl.telemetry import RequestRecord, StationSample, SystemEvent
from reference_impl.telemetry.records import STAGES
from reference_impl.telemetry.run_folder import REQUESTS_FILE, STATIONS_FILE, RunWriter
from simulation.scenario.manifest import Manifest

SAMPLE_S = 1.0


@dataclass(frozen=True)
class Truth:
    """What the synthetic system is. `steps`: (from second, instances). Service is lognormal with `mean_service_s`."""

    requests: int = 3000
    rate_per_s: float = 10.0
    slots: int = 8
    steps: tuple[tuple[float, int], ...] = ((0.0, 2),)
    mean_service_s: float = 1.0
    sigma: float = 0.5
    hit_fraction: float = 0.2
    failing: float = 0.0
    lag_s: float = 0.0
    other_s: float = 0.004
    world: Literal["live", "virtual"] = "virtual"
    seed: int = 1
    noise: float = 0.0
    slos: tuple[dict[str, object], ...] = (
        {"name": "answer", "metric": "latency", "quantile": 0.95, "limit_s": 6.0},
    )
    complete: bool = True


def records(truth: Truth) -> list[RequestRecord]:
    """First come, first served, over the slots of all instances; a slot of a later instance opens when it boots."""
    rng = np.random.default_rng(truth.seed)
    n = truth.requests
    arrivals = np.cumsum(rng.exponential(1 / truth.rate_per_s, n))
    mu = math.log(truth.mean_service_s) - truth.sigma**2 / 2
    service = rng.lognormal(mu, truth.sigma, n)
    hits, failures = rng.random(n) < truth.hit_fraction, rng.random(n) < truth.failing
    tokens = rng.integers(50, 400, n)
    other = np.random.default_rng(truth.seed + 1)
    if truth.noise:
        service = service * other.lognormal(0, truth.noise, n)
    free: list[tuple[float, int]] = []
    previous = 0
    for at, instances in truth.steps:
        for instance in range(previous, instances):
            free.extend((at, instance) for _ in range(truth.slots))
        previous = max(previous, instances)
    heapq.heapify(free)
    rows = []
    for i in range(n):
        intended = float(arrivals[i])
        lag = float(other.exponential(truth.lag_s)) if truth.lag_s else 0.0
        sent = intended + lag
        gateway = truth.other_s * float(other.exponential())
        if hits[i]:
            rows.append(
                RequestRecord(
                    request_id=i, intended_s=intended, sent_s=sent, first_token_s=sent + gateway, done_s=sent + gateway,
                    outcome="ok", status=200, cache="l1", input_tokens=200, output_tokens=int(tokens[i]), lag_s=lag,
                    other_s=gateway,
                )
            )  # fmt: skip
            continue
        ready, instance = heapq.heappop(free)
        start = max(sent + gateway, ready)
        wait, took = start - sent - gateway, float(service[i])
        done = start + took
        heapq.heappush(free, (done, instance))
        first = 0.2 * took
        failed = bool(failures[i])
        rows.append(
            RequestRecord(
                request_id=i, intended_s=intended, sent_s=sent,
                first_token_s=math.nan if failed else start + first, done_s=done,
                outcome="rate_limited" if failed else "ok", status=429 if failed else 200,
                attempts=3 if failed else 1, instance=f"instance-{instance}", cache="miss", input_tokens=200,
                output_tokens=0 if failed else int(tokens[i]), cost_usd=0.0 if failed else 3e-6 * 200 + 15e-6 * float(tokens[i]),
                endpoint_s=0.0 if failed else took, lag_s=lag, instance_wait_s=wait,
                failed_attempts_s=took if failed else 0.0, llm_first_token_s=0.0 if failed else first,
                llm_stream_s=0.0 if failed else took - first, other_s=gateway,
            )
        )  # fmt: skip
    return rows


def _overlap(starts: np.ndarray, ends: np.ndarray, low: float, high: float) -> float:
    return float(np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None).sum())


def samples(truth: Truth, rows: list[RequestRecord]) -> list[StationSample]:
    """Slots of each instance and the fleet, sampled every second from the rows, as stations would."""
    worked = [r for r in rows if r.instance]
    last = math.ceil(max((r.done_s for r in rows), default=0.0))
    instances = max(n for _, n in truth.steps)
    found = []
    for instance in range(instances):
        mine = [r for r in worked if r.instance == f"instance-{instance}"]
        done = np.array([r.done_s for r in mine])
        start = np.array(
            [r.done_s - r.llm_first_token_s - r.llm_stream_s - r.failed_attempts_s for r in mine]
        )
        queued = start - np.array([r.instance_wait_s for r in mine])
        boot = min(at for at, n in truth.steps if n > instance)
        for k in range(last):
            low, high = float(k), float(k + 1)
            busy = _overlap(start, done, low, high)
            found.append(
                StationSample(
                    t_s=high, interval_s=SAMPLE_S, station=f"instance-{instance} slots", kind="slots",
                    arrivals=int(((queued >= low) & (queued < high)).sum()),
                    completions=int(((done >= low) & (done < high)).sum()), busy_s=busy,
                    queue_length=_overlap(queued, start, low, high), in_service=busy,
                    capacity=float(truth.slots) if k >= boot else 0.0,
                )
            )  # fmt: skip
    for k in range(last):
        count = max(n for at, n in truth.steps if at <= k)
        found.append(
            StationSample(
                t_s=k + 1.0, interval_s=SAMPLE_S, station="fleet", kind="fleet", arrivals=0, completions=0,
                busy_s=float(count), queue_length=0.0, in_service=float(count), capacity=float(count),
            )
        )  # fmt: skip
        gateway = min(0.9, 0.002 * truth.rate_per_s)
        found.append(
            StationSample(
                t_s=k + 1.0, interval_s=SAMPLE_S, station="gateway cpu", kind="cpu", arrivals=10, completions=10,
                busy_s=gateway, queue_length=0.01, in_service=gateway, capacity=1.0,
            )
        )  # fmt: skip
    return found


def from_outside(folder: Path, truth: Truth, **columns: Any) -> Path:
    """A run folder of `truth` as it is recorded against a foreign target: only what the client sees, no stations."""
    write_run(folder, truth)
    requests = pd.read_parquet(folder / REQUESTS_FILE)
    untold: dict[str, Any] = dict.fromkeys([*STAGES, "endpoint_s", "attempts"], 0)
    untold |= {"cache": "off", "instance": "", "lag_s": requests["lag_s"]}
    untold["other_s"] = requests["done_s"] - requests["sent_s"]
    requests.assign(**untold | columns).to_parquet(folder / REQUESTS_FILE)
    pd.read_parquet(folder / STATIONS_FILE).iloc[:0].to_parquet(folder / STATIONS_FILE)
    return folder


def write_run(folder: Path, truth: Truth, rows: list[RequestRecord] | None = None) -> Path:
    """A run folder of `truth` (or of `rows`, if given), as a run writes it."""
    rows = records(truth) if rows is None else rows
    with RunWriter(folder) as writer:
        for row in rows:
            writer.request(row)
        for sample in samples(truth, rows):
            writer.station(sample)
        before = 0
        for at, instances in truth.steps:
            if before:
                writer.event(
                    SystemEvent(
                        t_s=at,
                        kind="scaling",
                        subject="fleet",
                        detail={"from": before, "to": instances},
                    )
                )
            before = instances
    Manifest(
        world=truth.world,
        scenario={
            "name": "synthetic",
            "slos": list(truth.slos),
            "deployment": {"slots": truth.slots},
        },
        scenario_sha256="0" * 64,
        workload_sha256=f"{truth.seed:064d}",
        seed=truth.seed,
        commit="0000000",
        complete=truth.complete,
        started_at="2026-01-01T00:00:00Z",
    ).write(folder)
    return folder
