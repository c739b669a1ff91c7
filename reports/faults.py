"""The faults of a run: when each befell what, so that a report tells a bad hour from a bad system."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd
import pydantic

from reports.run import Run
from reports.stages import SlowDelay
from reports.wording import percent
from simulation.scenario.faults import EndpointFault, Fault, fault_windows

__all__ = ["FaultSpan", "fault_spans", "met_a_fault", "told_beside"]

_FAULTS: Final = pydantic.TypeAdapter(tuple[Fault, ...])


@dataclass(frozen=True, slots=True)
class FaultSpan:
    """One occurrence.

    Attributes:
        fault: its kind, as the scenario names it. subject: what it befell.
        from_s, until_s: from the start of the run; inf: it had not ended when the run did.
        befell: False where nothing ran that it could befall.
    """

    fault: str
    subject: str
    from_s: float
    until_s: float
    befell: bool = True


def fault_spans(run: Run) -> list[FaultSpan]:
    """All faults of a run, in order of time: those that its events tell of, and live those that the endpoint was given."""
    return sorted((*_told(run), *_planned(run)), key=lambda span: (span.from_s, span.fault))


def _told(run: Run) -> Iterator[FaultSpan]:
    open_: defaultdict[tuple[str, str], deque[float]] = defaultdict(deque)
    for event in sorted((e for e in run.events if e.kind == "fault"), key=lambda e: e.t_s):
        key = str(event.detail.get("fault", "")), event.subject
        match event.detail.get("state"):
            case "began":
                open_[key].append(event.t_s)
            case "ended" if open_[key]:
                yield FaultSpan(*key, open_[key].popleft(), event.t_s)
            case "missed":
                yield FaultSpan(*key, event.t_s, event.t_s, befell=False)
    for key, begun in open_.items():
        for from_s in begun:
            yield FaultSpan(*key, from_s, math.inf)


def _planned(run: Run) -> Iterator[FaultSpan]:
    """Live, only the endpoint has faults, and plays them without a word; it counts from its first request."""
    if run.world != "live" or not run.inside_seen or run.requests.empty:
        return
    try:
        faults = _FAULTS.validate_python(run.scenario.get("faults") or ())
    except pydantic.ValidationError:
        return  # a plan that this version does not know: the page's scenario still names it
    first_s = float(run.requests["sent_s"].min())
    horizon_s = run.scenario.get("horizon_s")
    until_s = float(horizon_s) if isinstance(horizon_s, int | float) else math.inf
    for window in fault_windows(faults, run.manifest.seed, until_s):
        if isinstance(window.fault, EndpointFault):
            yield FaultSpan(
                window.fault.kind, "endpoint", first_s + window.from_s, first_s + window.until_s
            )


def met_a_fault(frame: pd.DataFrame, spans: Sequence[FaultSpan]) -> pd.Series[bool]:
    """Per request: whether a fault befell something while it was under way."""
    met = pd.Series(data=False, index=frame.index)
    for span in spans:
        if span.befell:
            met |= frame["intended_s"].lt(span.until_s) & frame["done_s"].gt(span.from_s)
    return met


def _named(spans: Sequence[FaultSpan]) -> str:
    """How often each kind: `2 link_latency, 1 redis_outage`."""
    return ", ".join(f"{n:,} {kind}" for kind, n in Counter(s.fault for s in spans).items())


def told_beside(run: Run, slow: SlowDelay | None) -> tuple[str, ...]:
    """The reason beside a verdict: what limits under a fault may be nobody's limit without it. Empty without faults."""
    spans = fault_spans(run)
    if not spans:
        return ()
    if run.ended.empty:
        return (f"faults befell the run ({_named(spans)})",)
    met = met_a_fault(run.ended, spans)
    bad = ~run.ended["ok"]
    if slow is not None:
        end = "first_token_s" if slow.until == "first_token" else "done_s"
        bad |= run.ended[end] - run.ended["intended_s"] >= slow.threshold_s
    share = (
        f": {percent(float(met[bad].mean()))} of the slow and failed requests met one"
        if bad.any()
        else ""
    )
    return (f"faults befell the run ({_named(spans)}){share}, {percent(float(met.mean()))} of all",)
