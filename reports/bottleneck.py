"""What limits, how surely, and what to try next: the most that one run can honestly say.

Utilisation does not rank resources (a busy one may be harmless, an idle one the limit). What ranks them here is their
part in the delay of the slow requests beyond that of the typical ones; utilisation and queues then corroborate it or do
not. A what-if in the calibrated model says what a change *buys*; its results replace `Candidate.excess` as the ranking
and become the effects of the actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import pandas as pd

from reports.objectives import Attainment, attainments
from reports.resources import FAILING, RESOURCES, Resource
from reports.run import Run
from reports.stages import SlowDelay, Until, slow_delay
from reports.stations import pool_table
from reports.validity import check_run
from reports.wording import TIMES, amount, percent

__all__ = ["Candidate", "Confidence", "Headroom", "Verdict", "judge"]

Confidence = Literal["high", "medium", "low"]
# A waiting line of one, or this busy for a twentieth of the time, corroborates a bottleneck.
_BUSY: Final = 0.8
_QUEUE: Final = 1.0
# Below these, delay beyond the endpoint's own time, and failures, are no limit.
_WAITING: Final = 0.2
_FAILURES: Final = 0.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """One resource as a suspect.

    Attributes:
        excess: its part of what slow requests spend beyond typical ones (0..1). slow_s: seconds of a slow request in it.
        share: slow_s as a fraction of the slow requests' latency.
        pool: its busiest pool of stations ("" if none). utilisation_p95, queue_peak: of that pool (NaN if none).
        corroborated: whether that pool is busy or queues (for the endpoint: that none of ours does); None if no station
            could tell.
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
    """Judge one run. `seed` of the bootstrap behind the confidence; equal seeds, equal verdicts.

    Of a run that fails its validity gate little can be said: the confidence is low, except that a late load generator
    is what such a failure shows.
    """
    late = [
        a
        for a in attainments(run.requests, run.slos, run.batches)
        if a.slo.metric == "batch" and not a.met
    ]
    verdict = _judge(run, seed, kept=bool(run.slos) and not late)
    # What delays people says nothing of a queue in which nobody waits.
    told = tuple(
        f"`{a.slo.name}` is broken ({a.promise}; it was {_taken(a.value)}): more instances, or a higher "
        "`queue.concurrency`, work the queue off sooner"
        for a in late
    )
    verdict = replace(verdict, reasons=(*told, *verdict.reasons))
    failed = [check.name for check in check_run(run) if check.state == "fail"]
    if not failed or verdict.limiting == "generator":
        return verdict
    doubt = f"the run fails its validity gate ({', '.join(failed)})"
    return replace(verdict, confidence="low", reasons=(doubt, *verdict.reasons))


def _taken(value_s: float) -> str:
    return "not done" if math.isnan(value_s) else amount(value_s, "s")


def _judge(run: Run, seed: int, *, kept: bool) -> Verdict:
    frame = run.requests
    # A queue of batches is long by design, and nobody who waits for an answer stands in it.
    servers = run.servers[run.servers["kind"] != "broker"] if len(run.batches) else run.servers
    pools = pool_table(servers, int(run.worked_on["ok"].sum()))
    headroom = _headroom(pools, run)
    missed = [a for a in attainments(frame, run.slos) if not a.met]
    # A broken promise on the first token is explained by what happens before it, not by the length of the answer.
    until: Until = "first_token" if missed and _worst(missed).slo.metric == "ttft" else "done"
    slow = slow_delay(frame, np.random.default_rng(seed), until)
    candidates = _candidates(slow, pools) if slow else ()
    failing = _failing(frame, candidates)
    if failing is not None:
        return _by_failures(failing, frame, candidates, headroom, slow)
    if slow is None:
        return _too_little(len(frame), candidates, headroom)
    return _by_delay(slow, candidates, headroom, missed, pools, kept)


def _by_delay(
    slow: SlowDelay,
    candidates: tuple[Candidate, ...],
    headroom: Headroom | None,
    missed: list[Attainment],
    pools: pd.DataFrame,
    promised: bool,
) -> Verdict:
    top = candidates[0]
    own = next(c for c in candidates if c.key == "endpoint")
    confidence = _confidence(slow, top)
    reasons = _reasons(slow, top, pools)
    room = _room(headroom)
    waits = 1 - own.share >= _WAITING and top.key != "endpoint"
    if not waits and not missed:
        kept = "every promise is kept and " if promised else ""
        headline = f"Nothing of yours is limiting: {kept}{percent(own.share)} of a slow request is the endpoint's own time."
        action = f"{room} To be faster: {RESOURCES['endpoint'].action}."
        return Verdict(None, headline, action, confidence, reasons, candidates, headroom, slow)
    what = f"{top.resource.name}: {percent(top.excess)} of what slow requests spend beyond typical ones"
    if missed:
        headline = f"What limits is {what}; {_broken(missed)}."
    elif promised:
        headline = f"Every promise is kept; the next limit is {what}."
    else:
        headline = f"What limits is {what}."
    action = f"Try next: {top.resource.action}. {room}"
    return Verdict(top.key, headline, action, confidence, reasons, candidates, headroom, slow)


def _worst(missed: list[Attainment]) -> Attainment:
    return max(missed, key=lambda a: a.value / a.limit if a.limit > 0 else math.inf)


def _broken(missed: list[Attainment]) -> str:
    worst = _worst(missed)
    unit = "fraction" if worst.slo.quantile is None else "s"
    return f"it was {amount(worst.value, unit)}, promised was {worst.promise}"


def _candidates(slow: SlowDelay, pools: pd.DataFrame) -> tuple[Candidate, ...]:
    found = []
    for key, resource in RESOURCES.items():
        seconds = sum(slow.seconds[p] for p in resource.parts)
        pool, utilisation, queue = _evidence(resource, pools)
        corroborated: bool | None = None
        if key == "endpoint":
            # Its capacity is not ours to see: what speaks for it is that none of our own stations is in the way.
            corroborated = _calm(pools) if len(pools) else None
        elif math.isfinite(utilisation):
            corroborated = utilisation >= _BUSY or queue >= _QUEUE
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
                corroborated=corroborated,
            )
        )
    return tuple(sorted(found, key=lambda c: (c.excess, c.share), reverse=True))


def _calm(pools: pd.DataFrame) -> bool:
    """No pool is busy or has a waiting line."""
    return bool(~((pools["utilisation_p95"] >= _BUSY) | (pools["queue_peak"] >= _QUEUE)).any())


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


def _reasons(slow: SlowDelay, top: Candidate, pools: pd.DataFrame) -> tuple[str, ...]:
    what = "slow to their first token" if slow.until == "first_token" else "slow"
    counted = f"{slow.requests:,} requests are {what}: above p{slow.quantile * 100:.0f}, {amount(slow.threshold_s, 's')}"
    stable = f"the same part comes out on top in {percent(slow.top_stability)} of resampled runs"
    if top.corroborated is None:
        seen = f"no station of {top.resource.name} was sampled that could confirm it"
    elif top.key == "endpoint":
        busiest = pools["utilisation_p95"].max()
        longest = pools["queue_peak"].max()
        none = "none of your stations is" if top.corroborated else "but your own stations are"
        seen = f"{none} in the way: busiest {_busy(busiest)}, longest line {_line(longest)}"
    else:
        verb = "confirms it" if top.corroborated else "does not confirm it"
        seen = f"`{top.pool}` {verb}: {_busy(top.utilisation_p95)}, up to {_line(top.queue_peak)}"
    return counted, stable, seen


def _busy(utilisation: float) -> str:
    return (
        f"{percent(utilisation)} busy (p95 over time)" if math.isfinite(utilisation) else "unknown"
    )


def _line(queue: float) -> str:
    return f"{amount(queue, '')} waiting" if queue >= 1 else "less than one waiting"


def _headroom(pools: pd.DataFrame, run: Run) -> Headroom | None:
    """The first pool to be used up, taking the throughput as completions over the sampled time."""
    bounded = pools[np.isfinite(pools["bound_per_s"])]
    if bounded.empty:
        return None
    span = float(run.stations["t_s"].max())
    throughput = float(run.worked_on["ok"].sum()) / span if span > 0 else 0.0
    pool = bounded["bound_per_s"].idxmin()
    return Headroom(str(pool), throughput, float(bounded["bound_per_s"].min()))


def _room(headroom: Headroom | None) -> str:
    if headroom is None:
        return "No station has a bound, so the headroom is unknown."
    return (
        f"By the operational laws `{headroom.pool}` is used up at {amount(headroom.bound_per_s, '')} requests/s, "
        f"{headroom.factor:.1f}{TIMES} this run's {amount(headroom.throughput_per_s, '')} (at the largest capacity seen)."
    )


def _failing(frame: pd.DataFrame, candidates: tuple[Candidate, ...]) -> tuple[str, str] | None:
    """Failures come before delay: requests that were turned away are missing from every latency."""
    failed = frame.loc[~frame["ok"] & frame["outcome"].ne("cancelled"), "outcome"]
    if len(failed) <= _FAILURES * len(frame):
        return None
    outcome = str(failed.value_counts().index[0])
    key = FAILING.get(outcome) or (candidates[0].key if candidates else "endpoint")
    return key, outcome


def _by_failures(
    failing: tuple[str, str],
    frame: pd.DataFrame,
    candidates: tuple[Candidate, ...],
    headroom: Headroom | None,
    slow: SlowDelay | None,
) -> Verdict:
    key, outcome = failing
    failed = float((~frame["ok"] & frame["outcome"].ne("cancelled")).mean())
    share = float(frame["outcome"].eq(outcome).mean())
    resource = RESOURCES[key]
    headline = f"{percent(failed)} of requests fail, {percent(share)} as `{outcome}`: look at {resource.name} first."
    confidence: Confidence = "high" if share > 0.05 and len(frame) >= 100 else "medium"
    reasons = (f"{round(failed * len(frame)):,} of {len(frame):,} requests were not answered",)
    action = f"Try next: {resource.action}. {_room(headroom)}"
    return Verdict(key, headline, action, confidence, reasons, candidates, headroom, slow)


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
