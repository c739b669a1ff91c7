"""What limits, how surely, and what to try next: the most that one run can honestly say.

Utilisation does not rank resources (a busy one may be harmless, an idle one the limit). What ranks them here is their
part in the delay of the slow requests beyond that of the typical ones; utilisation and queues then corroborate it or do
not. A what-if in the calibrated model says what a change *buys*; its results replace `Candidate.excess` as the ranking
and become the effects of the actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd

from reports.objectives import Attainment, attainments
from reports.run import Run
from reports.stages import SlowDelay, parts, slow_delay
from reports.stations import pool_table
from reports.wording import TIMES

__all__ = ["RESOURCES", "Candidate", "Confidence", "Headroom", "Resource", "Verdict", "judge"]

Confidence = Literal["high", "medium", "low"]
# A waiting line of one, or this busy for a twentieth of the time, corroborates a bottleneck.
_BUSY: Final = 0.8
_QUEUE: Final = 1.0
# Below these, delay beyond the endpoint's own time, and failures, are no limit.
_WAITING: Final = 0.2
_FAILURES: Final = 0.01


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that can limit: the parts of the delay it causes, the stations that belong to it, what to try."""

    name: str
    parts: tuple[str, ...]
    kinds: tuple[str, ...]
    action: str
    owned: bool = True


RESOURCES: Final[Mapping[str, Resource]] = {
    "slots": Resource(
        "the instances' concurrency slots",
        ("instance_wait_s",),
        ("slots",),
        "raise `instances.concurrency`, or have more instances sooner (`autoscaler.min_instances`, a lower target)",
    ),
    "fleet": Resource(
        "instances ready to take a request",
        ("balance_s",),
        (),
        "raise `autoscaler.min_instances` or shorten the boot time",
    ),
    "admission": Resource(
        "the gateway's admission",
        ("admission_s",),
        (),
        "raise `gateway.max_in_flight`, or add capacity behind it",
    ),
    "queue": Resource(
        "the task queue's workers",
        ("queue_wait_s",),
        ("queue", "broker"),
        "add workers for the queue",
    ),
    "cache": Resource(
        "the cache (look-ups and shared computations)",
        ("cache_s",),
        ("cache",),
        "look at the waits for shared computations; warm the cache or lengthen `cache.ttl_s`",
    ),
    "database": Resource(
        "the database",
        ("database_s",),
        ("pool", "database"),
        "enlarge the connection pool or batch the ledger",
    ),
    "refusals": Resource(
        "the endpoint's limits (retries and failed attempts)",
        ("retry_wait_s", "failed_attempts_s"),
        (),
        "have the endpoint's rate limit raised, or admit less than it allows; more instances would make it worse",
        owned=False,
    ),
    "endpoint": Resource(
        "the LLM endpoint's own time",
        ("endpoint_s",),
        ("endpoint",),
        "shorter answers, a faster model or more cache hits; more instances will not help",
        owned=False,
    ),
    "path": Resource(
        "the way between instance and endpoint",
        ("upstream_path_s",),
        ("connections",),
        "look at the connection pool and the CPU of the instance processes",
    ),
    "cpu": Resource(
        "CPU of the event loops, and the network",
        ("other_s",),
        ("cpu",),
        "profile the busiest process; add gateway or instance processes, or cores",
    ),
    "generator": Resource(
        "the load generator",
        ("lag_s",),
        (),
        "the test is late, not the system: give the swarm more workers or a lower rate, and repeat the run",
        owned=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One resource as a suspect.

    Attributes:
        excess: its part of what slow requests spend beyond typical ones (0..1). slow_s: seconds of a slow request in it.
        share: slow_s as a fraction of the slow requests' latency.
        pool: its busiest pool of stations ("" if none). utilisation_p95, queue_peak: of that pool (NaN if none).
        corroborated: whether that pool is busy or queues; None if it has no station that could tell.
    """

    key: str
    resource: Resource
    excess: float
    slow_s: float
    share: float
    pool: str
    utilisation_p95: float
    queue_peak: float
    corroborated: bool | None


@dataclass(frozen=True, slots=True)
class Headroom:
    """Bound of the throughput by the operational laws: `pool` is used up at `bound_per_s`, `factor` times today's."""

    pool: str
    throughput_per_s: float
    bound_per_s: float

    @property
    def factor(self) -> float:
        return self.bound_per_s / self.throughput_per_s if self.throughput_per_s > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Verdict:
    """Two lines, and what they stand on. `limiting`: a key of `RESOURCES`, or None if nothing limits."""

    limiting: str | None
    headline: str
    action: str
    confidence: Confidence
    reasons: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    headroom: Headroom | None
    slow: SlowDelay | None


def judge(run: Run, seed: int = 0) -> Verdict:
    """Judge one run. `seed` of the bootstrap behind the confidence; equal seeds, equal verdicts."""
    frame = run.requests
    completed = int(frame["ok"].sum())
    pools = pool_table(run.servers, completed)
    slow = slow_delay(parts(frame), np.random.default_rng(seed))
    headroom = _headroom(pools, run)
    candidates = _candidates(slow, pools) if slow else ()
    missed = [a for a in attainments(frame, run.slos) if not a.met]
    failed = float((~frame["ok"] & frame["outcome"].ne("cancelled")).mean()) if len(frame) else 0.0
    refused = _refusal(frame, failed)
    if slow is None and refused is None:
        return _too_little(len(frame), candidates, headroom)
    if refused is not None:
        key, headline = refused
        confidence: Confidence = "high" if failed > 0.05 else "medium"
        reasons = (f"{failed:.1%} of all requests were not answered",)
        action = RESOURCES[key].action
        return Verdict(key, headline, action, confidence, reasons, candidates, headroom, slow)
    assert slow is not None
    return _by_delay(slow, candidates, headroom, missed, bool(run.slos))


def _by_delay(
    slow: SlowDelay,
    candidates: tuple[Candidate, ...],
    headroom: Headroom | None,
    missed: list[Attainment],
    promised: bool,
) -> Verdict:
    top = candidates[0]
    own = next(c for c in candidates if c.key == "endpoint")
    waiting = 1 - own.share
    quiet = waiting < _WAITING or (top.key == "endpoint" and own.excess > 1 - _WAITING)
    confidence = _confidence(slow, top)
    reasons = _reasons(slow, top)
    room = _room(headroom)
    if quiet and not missed:
        kept = "every objective is met and " if promised else ""
        headline = f"Nothing of yours is limiting: {kept}{own.share:.0%} of a slow request is the endpoint's own time."
        action = f"{room} To be faster: {RESOURCES['endpoint'].action}."
        return Verdict(None, headline, action, confidence, reasons, candidates, headroom, slow)
    what = f"{top.resource.name}: {top.excess:.0%} of what slow requests spend beyond typical ones"
    if missed:
        headline = f"What limits is {what}; {_broken(missed)}."
    elif promised:
        headline = f"Every objective is met; the next limit is {what}."
    else:
        headline = f"What limits is {what}."
    action = f"Try next: {top.resource.action}. {room}".strip()
    return Verdict(top.key, headline, action, confidence, reasons, candidates, headroom, slow)


def _broken(missed: list[Attainment]) -> str:
    worst = max(missed, key=lambda a: a.value / a.limit if a.limit > 0 else math.inf)
    value = f"{worst.value:.2%}" if worst.slo.quantile is None else f"{worst.value:.3g} s"
    return f"it was {value}, promised was {worst.promise}"


def _candidates(slow: SlowDelay, pools: pd.DataFrame) -> tuple[Candidate, ...]:
    found = []
    for key, resource in RESOURCES.items():
        seconds = sum(slow.seconds[p] for p in resource.parts)
        pool, utilisation, queue = _evidence(resource, pools)
        told = pool != "" and math.isfinite(utilisation)
        found.append(
            Candidate(
                key=key,
                resource=resource,
                excess=sum(slow.excess[p] for p in resource.parts),
                slow_s=seconds,
                share=max(0.0, seconds) / slow.latency_s if slow.latency_s > 0 else 0.0,
                pool=pool,
                utilisation_p95=utilisation,
                queue_peak=queue,
                corroborated=(utilisation >= _BUSY or queue >= _QUEUE) if told else None,
            )
        )
    return tuple(sorted(found, key=lambda c: (c.excess, c.share), reverse=True))


def _evidence(resource: Resource, pools: pd.DataFrame) -> tuple[str, float, float]:
    own = pools[pools["kind"].isin(resource.kinds)]
    if own.empty:
        return "", math.nan, math.nan
    busiest = own.iloc[0]
    return str(own.index[0]), float(busiest["utilisation_p95"]), float(busiest["queue_peak"])


def _confidence(slow: SlowDelay, top: Candidate) -> Confidence:
    stable = slow.top_stability >= 0.95
    if stable and top.corroborated and slow.requests >= 20:
        return "high"
    if slow.requests >= 20 and (stable or top.corroborated) and top.corroborated is not False:
        return "medium"
    return "low"


def _reasons(slow: SlowDelay, top: Candidate) -> tuple[str, ...]:
    reasons = [
        f"{slow.requests:,} slow requests: above p{slow.quantile * 100:.0f}, {slow.threshold_s:.2f} s",
        f"the same part comes out on top in {slow.top_stability:.0%} of resampled runs",
    ]
    if top.corroborated is None:
        reasons.append(f"no station of {top.resource.name} has a capacity that could confirm it")
    else:
        verb = "confirms it" if top.corroborated else "does not confirm it"
        reasons.append(
            f"`{top.pool}` {verb}: {top.utilisation_p95:.0%} busy (p95 over time), "
            f"up to {top.queue_peak:.1f} waiting"
        )
    return tuple(reasons)


def _headroom(pools: pd.DataFrame, run: Run) -> Headroom | None:
    """The first pool to be used up, taking the throughput as completions over the sampled time."""
    bounded = pools[np.isfinite(pools["bound_per_s"])]
    if bounded.empty:
        return None
    span = float(run.stations["t_s"].max())
    throughput = float(run.requests["ok"].sum()) / span if span > 0 else 0.0
    pool = bounded["bound_per_s"].idxmin()
    return Headroom(str(pool), throughput, float(bounded["bound_per_s"].min()))


def _room(headroom: Headroom | None) -> str:
    if headroom is None:
        return "No station has a bound, so the headroom is unknown."
    return (
        f"By the operational laws `{headroom.pool}` is used up at {headroom.bound_per_s:.3g} requests/s, "
        f"{headroom.factor:.1f}{TIMES} this run's {headroom.throughput_per_s:.3g} (at the largest capacity seen)."
    )


_REFUSALS: Final[Mapping[str, str]] = {
    "rejected": "slots",
    "rate_limited": "refusals",
    "overloaded": "refusals",
    "server_error": "refusals",
    "connection_error": "path",
    "stream_broken": "path",
    "timeout": "endpoint",
    "unfinished": "slots",
    "client_error": "generator",
}


def _refusal(frame: pd.DataFrame, failed: float) -> tuple[str, str] | None:
    """Failures come before delay: requests that were turned away are missing from every latency."""
    if failed <= _FAILURES:
        return None
    counts = frame.loc[~frame["ok"] & frame["outcome"].ne("cancelled"), "outcome"].value_counts()
    outcome = str(counts.index[0])
    key = _REFUSALS[outcome]
    share = int(counts.iloc[0]) / len(frame)
    headline = f"{failed:.1%} of requests fail, {share:.1%} as `{outcome}`: look at {RESOURCES[key].name} first."
    return key, headline


def _too_little(n: int, candidates: tuple[Candidate, ...], headroom: Headroom | None) -> Verdict:
    return Verdict(
        None,
        f"Too few requests to judge: {n:,} recorded, at least 20 must have been worked on.",
        "Run longer or at a higher rate.",
        "low",
        (),
        candidates,
        headroom,
        None,
    )
