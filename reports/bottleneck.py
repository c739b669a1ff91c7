"""What limits, how surely, and what to try next: the most that one run can honestly say.

Utilisation alone does not rank resources (a busy one may be harmless, an idle one the limit). What ranks them here is
their part in the delay of the slow requests beyond that of an unhindered one; utilisation and queues then corroborate it
or do not. One thing they say by themselves: a pool that is used up all the time, with a line all the time, sets the
throughput. A what-if in the calibrated model says what a change *buys*; its results replace `Candidate.excess` as the
ranking and become the effects of the actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from reports.confidence import (
    Confidence,
    confidence_in_saturation,
    confidence_of,
    counted,
    reasons_for,
    reasons_of_saturation,
)
from reports.failures import failures_of
from reports.faults import told_beside
from reports.headroom import Headroom, headroom_of, in_words, pools_of, tightest
from reports.objectives import Attainment, attainments
from reports.resources import RESOURCES
from reports.run import Run
from reports.stages import SlowDelay, Until, slow_delay
from reports.suspects import Candidate, is_calm, saturated, suspects
from reports.validity import check_run
from reports.wording import amount, percent

__all__ = ["Verdict", "judge"]

# Below this, delay beyond the endpoint's own time is no limit.
_WAITING: Final = 0.2
# Below this part of a slow request, a wait is not worth an advice of its own.
_WORTH: Final = 0.05
_SOONER: Final = "more instances, or a higher `queue.concurrency`, work the queue off sooner"


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


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the branches of a judgement share. `promised`: the scenario promises something; `late`: a batch broke its own."""

    slow: SlowDelay
    candidates: tuple[Candidate, ...]
    pools: pd.DataFrame
    headroom: Headroom | None
    missed: list[Attainment]
    promised: bool
    late: bool

    @property
    def kept(self) -> bool:
        """Something was promised, and all of it was kept."""
        return self.promised and not self.missed and not self.late

    def verdict(
        self,
        limiting: str | None,
        headline: str,
        action: str,
        confidence: Confidence,
        reasons: tuple[str, ...],
    ) -> Verdict:
        return Verdict(
            limiting,
            headline[0].upper() + headline[1:],
            action,
            confidence,
            reasons,
            self.candidates,
            self.headroom,
            self.slow,
        )


def judge(run: Run, seed: int = 0) -> Verdict:
    """Judge one run. `seed` of the bootstrap behind the confidence; equal seeds, equal verdicts.

    Of a run that fails its validity gate little can be said: the confidence is low, except that a late load generator
    is what such a failure shows.
    """
    late = [
        a
        for a in attainments(run.ended, run.slos, run.batches)
        if a.slo.metric == "batch" and not a.met
    ]
    verdict = _judge(run, seed, late=bool(late))
    # What delays people says nothing of a queue in which nobody waits.
    broken = [f"`{a.slo.name}` is broken ({a.promise}; it was {_taken(a.value)})" for a in late]
    if broken:
        verdict = replace(
            verdict,
            headline=f"{verdict.headline} Of the batches, {' and '.join(broken)}.",
            action=f"For the batches: {_SOONER}. {verdict.action}",
        )
    told = tuple(f"{promise}: {_SOONER}" for promise in broken)
    verdict = replace(verdict, reasons=(*told, *verdict.reasons, *told_beside(run, verdict.slow)))
    failed = [check.name for check in check_run(run) if check.state == "fail"]
    if not failed or verdict.limiting == "generator":
        return verdict
    doubt = f"the run fails its validity gate ({', '.join(failed)})"
    return replace(verdict, confidence="low", reasons=(doubt, *verdict.reasons))


def _taken(value_s: float) -> str:
    return "not done" if math.isnan(value_s) else amount(value_s, "s")


def _judge(run: Run, seed: int, *, late: bool) -> Verdict:
    frame = run.requests
    # A queue of batches is long by design, and nobody who waits for an answer stands in it.
    pools = pools_of(run)
    pools = pools[pools["kind"] != "broker"] if len(run.batches) else pools
    headroom = headroom_of(pools, run)
    missed = [a for a in attainments(run.ended, run.slos) if not a.met]
    # A broken promise on the first token is explained by what happens before it, not by the length of the answer.
    until: Until = "first_token" if missed and _worst(missed).slo.metric == "ttft" else "done"
    slow = slow_delay(frame, np.random.default_rng(seed), until)
    candidates = suspects(slow, pools, inside_seen=run.inside_seen) if slow else ()
    failures = failures_of(run, candidates)
    if failures is not None:
        action = f"Try next: {failures.advice}" + (f" {in_words(headroom)}" if headroom else "")
        return Verdict(
            failures.limiting,
            failures.headline,
            action,
            failures.confidence,
            failures.reasons,
            candidates,
            headroom,
            slow,
        )
    if slow is None:
        return _too_little(len(frame), candidates, headroom)
    evidence = _Evidence(slow, candidates, pools, headroom, missed, bool(run.slos), late)
    if candidates[0].key == "target":
        return _of_target(evidence)
    return _by_saturation(evidence) or _by_delay(evidence)


def _of_target(seen: _Evidence) -> Verdict:
    """Nothing inside was measured, so what limits there is not known: only how long it took."""
    target, slow = seen.candidates[0], seen.slow
    typical_s = sum(slow.typical[p] for p in target.resource.parts)
    took = f"a slow request took it {amount(target.slow_s, 's')}, a typical one {amount(typical_s, 's')}"
    kept = "; every promise is kept" if seen.kept else ""
    end = f"; {_broken(seen.missed)}" if seen.missed else kept
    return seen.verdict(
        "target",
        f"the target's inside was not seen; {took}{end}.",
        f"Try next: {target.resource.action}.",
        "low",
        (
            "nothing inside the target was measured, so what limits it is not known",
            counted(slow),
        ),
    )


def _by_saturation(seen: _Evidence) -> Verdict | None:
    """A pool that is used up limits, unless what holds it up is a resource of ours behind it that delays even more."""
    found = saturated(seen.pools)
    if found is None:
        return None
    full = next((c for c in seen.candidates if found.kind in c.resource.kinds), None)
    if full is None or seen.candidates[0].key not in (full.key, "endpoint"):
        return None
    what = f"{full.resource.name}: `{found.pool}` is {found.in_words}, {percent(full.share)} of a slow request"
    return seen.verdict(
        full.key,
        _limit(what, seen, "what limits the throughput"),
        f"Try next: {full.resource.action}. {in_words(seen.headroom)}",
        confidence_in_saturation(seen.slow, full),
        reasons_of_saturation(seen.slow, full, found),
    )


def _by_delay(seen: _Evidence) -> Verdict:
    top = seen.candidates[0]
    own = next(c for c in seen.candidates if c.key == "endpoint")
    confidence = confidence_of(seen.slow, top)
    reasons = reasons_for(seen.slow, top, seen.pools)
    room = in_words(seen.headroom)
    if 1 - own.share >= _WAITING or seen.missed:
        part = f"{percent(top.excess)} of what slow requests spend beyond an unhindered one"
        headline = _limit(f"{top.resource.name}: {part}", seen)
        action = f"Try next: {_advice(top, seen)}. {room}"
        return seen.verdict(top.key, headline, action, confidence, reasons)
    kept = "every promise is kept and " if seen.kept else ""
    endpoint = f"{percent(own.share)} of a slow request is the endpoint's own time"
    tight = tightest(seen.headroom, seen.pools)
    if tight is None:
        whom = "delays those who wait" if seen.late else "is limiting"
        headline = f"nothing of yours {whom}: {kept}{endpoint}."
        action = f"{room} To be faster: {_advice(own, seen)}."
    else:
        pool, how = tight
        headline = f"{kept}{endpoint}, but there is no room for more load: `{pool}` {how}."
        action = f"{_before_more(pool, seen)}{room}"
    return seen.verdict(None, headline, action, confidence, reasons)


def _before_more(pool: str, seen: _Evidence) -> str:
    kind = seen.pools.loc[pool, "kind"]
    found = [r.action for r in RESOURCES.values() if kind in r.kinds]
    return f"Before more load comes: {found[0]}. " if found else ""


def _advice(top: Candidate, seen: _Evidence) -> str:
    """What to try against `top`; against the endpoint's own time, whether something of ours is worth it too."""
    if top.key != "endpoint":
        return top.resource.action
    ours = max((c for c in seen.candidates if c.key != "endpoint"), key=lambda c: c.share)
    if ours.share >= _WORTH:
        told = f"{percent(ours.share)} of a slow request is {ours.resource.name}"
        return f"{top.resource.action}. Or, since {told}: {ours.resource.action}"
    calm = is_calm(seen.pools) and not seen.late
    room = calm and tightest(seen.headroom, seen.pools) is None
    return top.resource.action + ("; more instances will not help" if room else "")


def _limit(what: str, seen: _Evidence, next_limit: str = "the next limit") -> str:
    if seen.missed:
        return f"What limits is {what}; {_broken(seen.missed)}."
    if seen.kept:
        return f"Every promise is kept; {next_limit} is {what}."
    return f"What limits is {what}."


def _worst(missed: list[Attainment]) -> Attainment:
    return max(missed, key=lambda a: a.value / a.limit if a.limit > 0 else math.inf)


def _broken(missed: list[Attainment]) -> str:
    worst = _worst(missed)
    unit = "fraction" if worst.slo.quantile is None else "s"
    return f"it was {amount(worst.value, unit)}, promised was {worst.promise}"


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
