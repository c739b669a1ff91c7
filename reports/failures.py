"""What a verdict says of requests that failed. They come before delay: who was turned away is missing from every latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reports.confidence import Confidence
from reports.resources import REFUSED, RESOURCES, failing_resource
from reports.run import Run
from reports.suspects import Candidate
from reports.wording import percent

__all__ = ["Failures", "failures_of"]

# Below this part of the requests, failures are no limit.
_FEW: Final = 0.01


@dataclass(frozen=True, slots=True)
class Failures:
    """What failed most, as the parts of a verdict. `limiting`: a key of `RESOURCES`."""

    limiting: str
    headline: str
    advice: str
    confidence: Confidence
    reasons: tuple[str, ...]


def failures_of(run: Run, candidates: tuple[Candidate, ...]) -> Failures | None:
    """None if next to nothing failed. `candidates`: what requests wait for, which an outcome such as a time-out accuses."""
    frame = run.ended
    failed = frame.loc[~frame["ok"] & frame["outcome"].ne("cancelled")]
    if len(failed) <= _FEW * len(frame):
        return None
    outcome = str(failed["outcome"].value_counts().index[0])
    worst = failed[failed["outcome"].eq(outcome)]
    key = failing_resource(outcome, inside_seen=run.inside_seen)
    key = key or (candidates[0].key if candidates else "endpoint")
    resource = RESOURCES[key]
    share = len(worst) / len(frame)
    headline = (
        f"{percent(len(failed) / len(frame))} of requests fail, {percent(share)} as `{outcome}`: "
    )
    if key == "requests":
        status = int(worst["status"].mode().iloc[0])
        headline += f"they were refused with status {status}." if status else "they were refused."
        advice = REFUSED.get(status, resource.action)
    else:
        headline += f"look at {resource.name} first."
        advice = f"{resource.action}."
    return Failures(
        limiting=key,
        headline=headline,
        advice=advice,
        confidence="high" if share > 0.05 and len(frame) >= 100 else "medium",
        reasons=(f"{len(failed):,} of {len(frame):,} requests were not answered",),
    )
