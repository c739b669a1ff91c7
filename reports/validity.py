"""Whether a run can be believed, asked before anything is concluded from it.

The laws are checks of the book-keeping, not findings: they join two recordings that were made independently (request
rows by the client and the hops, station samples by the stations), so a disagreement means that one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pandas as pd

from reference_impl.telemetry.records import STAGES
from reports.batches import batch_outcomes
from reports.objectives import lag_allowance_s
from reports.run import Run
from simulation.statistics import mser5, quantile

__all__ = ["Check", "check_run", "worst"]

State = Literal["pass", "warn", "fail", "skip"]
# Clocks of two live processes are read at different instants: differences below this are no finding.
_CLOCK_S: Final = 1e-3
# Relative disagreement of two recordings that is a sampling error (a sample period at either end), and one that is not.
_NEAR: Final = 0.05
_FAR: Final = 0.15
# A load generator later than this fraction of the objective measures itself (p99 of the lag).
LAG_FRACTION: Final = 0.05


@dataclass(frozen=True, slots=True)
class Check:
    """One question of the gate. `fail`: do not conclude from this run. `skip`: it could not be asked."""

    name: str
    state: State
    detail: str


def check_run(run: Run) -> list[Check]:
    """All checks of one run, in the order in which a reader should mind them."""
    frame = run.requests
    return [
        _complete(run),
        _conservation(run),
        _causality(run.worked_on),
        _stages(run.worked_on),
        _little(run),
        _utilisation(run.servers),
        _lag(run),
        _generator(run),
        _unfinished(frame),
        _steady(frame),
    ]


def worst(checks: list[Check]) -> State:
    """`fail` if any check failed, else `warn` if any warns, else `pass`."""
    states = {c.state for c in checks}
    return "fail" if "fail" in states else "warn" if "warn" in states else "pass"


def _complete(run: Run) -> Check:
    if run.complete:
        return Check("Run complete", "pass", "the run ended by itself")
    return Check("Run complete", "warn", "cut short: what follows describes only what was recorded")


def _conservation(run: Run) -> Check:
    name = "Every arrival has one outcome"
    n = len(run.requests)
    if n == 0 and run.batches.empty:
        return Check(name, "fail", "no request was recorded")
    missing = run.manifest.validity.get("missing_arrivals")
    if missing and run.complete:
        return Check(name, "fail", f"the load generator counts {missing:,} arrivals without a row")
    lacking = [b.number for b in batch_outcomes(run) if b.requests != _batch_size(run, b.number)]
    if lacking and run.complete:
        return Check(name, "fail", f"requests of batch {lacking[0]} have no row")
    if n == 0:
        return Check(name, "pass", f"{len(run.batches):,} requests of batches, each with one row")
    frame = run.requests
    gaps = int(frame["request_id"].iloc[-1]) + 1 - n
    if not run.complete or gaps == 0:
        return Check(name, "pass", f"{n:,} requests, each with one row and one outcome")
    turns = (
        frame[frame["session_id"] >= 0].groupby("session_id")["turn"].agg(["min", "max", "count"])
    )
    # A later turn is sent only if the one before it was answered in time: it may be missing at the end of a session.
    skipped = int(((turns["min"] > 0) | (turns["max"] + 1 > turns["count"])).sum())
    if turns.empty or skipped:
        what = f"; {skipped:,} sessions lack a turn in the middle" if skipped else ""
        return Check(name, "fail", f"{gaps:,} request ids have no row{what}")
    return Check(
        name,
        "pass",
        f"{n:,} requests, each with one outcome; {gaps:,} later turns were never reached",
    )


def _batch_size(run: Run, number: int) -> int | None:
    """How many requests the scenario's batch has; None where the manifest does not say."""
    workload = run.scenario.get("workload")
    batches = workload.get("batches") if isinstance(workload, Mapping) else None
    if not isinstance(batches, list) or not number < len(batches):
        return None
    size = batches[number].get("requests")
    return size if isinstance(size, int) else None


def _causality(frame: pd.DataFrame) -> Check:
    name = "Causality"
    if frame.empty:
        return Check(name, "skip", "no request")
    early = -_CLOCK_S
    wrong = (
        (frame["sent_s"] - frame["intended_s"] < early)
        | (frame["done_s"] - frame["sent_s"] < early)
        | (frame["first_token_s"] - frame["sent_s"] < early)
        | (frame["done_s"] - frame["first_token_s"] < early)
        | (frame[list(STAGES)].drop(columns="other_s") < early).any(axis=1)
    )
    count = int(wrong.sum())
    if count:
        first = int(frame.loc[wrong, "request_id"].iloc[0])
        return Check(
            name, "fail", f"{count:,} requests run backwards, the first is request {first}"
        )
    return Check(name, "pass", "intended ≤ sent ≤ first token ≤ done, no stage is negative")


def _stages(frame: pd.DataFrame) -> Check:
    name = "Stages add up to the latency"
    done = frame[frame["finished"]]
    if done.empty:
        return Check(name, "skip", "no request finished")
    total = done["done_s"] - done["intended_s"]
    off = (done[list(STAGES)].sum(axis=1) - total).abs() > _CLOCK_S + 1e-6 * total.abs()
    # The rest is what no hop accounts for; below 0 the hops claim more time than there was.
    over = done["other_s"] < -_CLOCK_S
    count = int((off | over).sum())
    if count:
        state: State = "fail" if count > 0.01 * len(done) else "warn"
        return Check(name, state, f"{count:,} of {len(done):,} requests do not add up")
    return Check(name, "pass", f"all {len(done):,}; the unexplained rest is a stage of its own")


def _little(run: Run) -> Check:
    """∫ queue dt of the slots (stations) against Σ waits (requests): Little's law, L·T = λ·W·T, from two sources."""
    name = "Little's law"
    slots = run.stations[run.stations["kind"] == "slots"]
    if slots.empty:
        return Check(name, "skip", "no station with slots was sampled")
    queued = float((slots["queue_length"] * slots["interval_s"]).sum())
    waited = float(run.worked_on["instance_wait_s"].sum())
    larger = max(queued, waited)
    # Below a waiter in a hundred there is no queue to check the law on.
    if larger <= 0.01 * float(slots["interval_s"].sum()):
        return Check(name, "pass", "next to nothing waited for a slot in either recording")
    error = abs(queued - waited) / larger
    detail = f"waiting for slots: {queued:,.1f} s by the stations, {waited:,.1f} s by the requests ({error:.1%} apart)"
    return Check(name, _graded(error), detail)


def _utilisation(stations: pd.DataFrame) -> Check:
    """Busy time against the mean in service, and never above the capacity."""
    name = "Utilisation law"
    servers = stations[stations["interval_s"] > 0]
    if servers.empty:
        return Check(name, "skip", "no station was sampled")
    offered = servers["capacity"] * servers["interval_s"]
    above = servers["busy_s"] > offered * (1 + _NEAR) + _CLOCK_S
    if above.any():
        who = str(servers.loc[above, "station"].iloc[0])
        state: State = "fail" if above.mean() > 0.01 else "warn"
        return Check(
            name, state, f"{int(above.sum()):,} samples busier than their capacity, first at {who}"
        )
    busy = servers.groupby("station")["busy_s"].sum()
    held = (servers["in_service"] * servers["interval_s"]).groupby(servers["station"]).sum()
    larger = busy.where(busy > held, held).clip(lower=_CLOCK_S)
    error = ((busy - held).abs() / larger).max()
    detail = (
        f"busy time is throughput times the time in service within {error:.1%} at every station"
    )
    return Check(name, _graded(float(error)), detail)


def _graded(error: float) -> State:
    return "pass" if error <= _NEAR else "warn" if error <= _FAR else "fail"


def _lag(run: Run) -> Check:
    name = "Load generator on time"
    if run.requests.empty:
        return Check(name, "skip", "no request")
    lag = quantile(run.requests["lag_s"].to_numpy(), 0.99)
    bound = lag_allowance_s(run.slos)
    if bound is None:
        return Check(
            name, "skip", f"p99 of the lag {lag * 1e3:.1f} ms; no objective to judge it by"
        )
    share = lag / bound
    detail = f"p99 of the lag {lag * 1e3:.1f} ms, {share:.1%} of the tightest objective (allowed {LAG_FRACTION:.0%})"
    return Check(name, "pass" if share <= LAG_FRACTION else "fail", detail)


def _generator(run: Run) -> Check:
    """What the load generator said of itself when the run ended."""
    name = "Load generator's own checks"
    valid = run.manifest.validity.get("valid")
    if valid is None:
        return Check(
            name,
            "skip",
            "a virtual client is never late" if run.world == "virtual" else "none recorded",
        )
    if valid:
        return Check(name, "pass", "all passed")
    return Check(name, "fail", "; ".join(run.manifest.notes) or "failed, without a note")


def _unfinished(frame: pd.DataFrame) -> Check:
    name = "Requests finished"
    if frame.empty:
        return Check(name, "skip", "no request")
    left = int((~frame["finished"]).sum())
    share = left / len(frame)
    if left == 0:
        return Check(name, "pass", "none was left in flight at the end")
    state: State = "warn" if share <= 0.01 else "fail"
    return Check(
        name,
        state,
        f"{left:,} ({share:.1%}) in flight at the end: the slowest are missing from the quantiles",
    )


def _steady(frame: pd.DataFrame) -> Check:
    name = "Steady state"
    latency = frame["service_s"].dropna().to_numpy()
    if latency.size < 50:
        return Check(name, "skip", "fewer than 50 answers")
    warm_up = mser5(latency)
    if not warm_up.settled:
        return Check(
            name, "warn", "latency never settled (MSER-5): a transient, or the run is too short"
        )
    share = warm_up.truncate / latency.size
    return Check(
        name, "pass", f"settled after {share:.0%} of the requests (MSER-5; nothing was dropped)"
    )
