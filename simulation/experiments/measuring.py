"""What an experiment keeps of a run: columns of a few numbers a request, and from them one row.

Nothing goes to disk. Definitions are those of the reports: latencies count from the intended instant and are of answered
requests; an early refusal is not a fast answer.
"""

from __future__ import annotations

import math
from array import array
from typing import Final

import numpy as np

from reference_impl.batches.records import BATCH
from reference_impl.telemetry import RequestRecord, StationSample, SystemEvent
from simulation.experiments.backlog import growth
from simulation.experiments.errors import ExperimentError
from simulation.scenario.diagnosis import unknown
from simulation.scenario.distributions import Floats
from simulation.scenario.schema import SLO, Scenario
from simulation.statistics import mser5, quantile

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "MeasuringSink",
    "Row",
    "attained_column",
    "number_of",
    "slo_column",
]

# One run's results by column; None where there is no such number.
Row = dict[str, float | int | str | bool | None]

_HITS: Final = ("l1", "l2", "semantic", "coalesced")

# The columns that every row has beside those of its SLOs, with what they mean. NaN is written as None.
METRICS: Final[dict[str, str]] = {
    "latency_mean_s": "mean latency of answers, from the intended instant",
    "latency_p50_s": "its median",
    "latency_p95_s": "its 95th percentile",
    "latency_p99_s": "its 99th percentile",
    "ttft_mean_s": "mean time to the first token, from the intended instant",
    "ttft_p50_s": "its median",
    "ttft_p95_s": "its 95th percentile",
    "ttft_p99_s": "its 99th percentile",
    "wait_mean_s": "mean wait for a slot of an instance",
    "error_rate": "requests that did not end ok, of all",
    "throughput_per_s": "answers that were complete by the horizon, per second",
    "goodput_per_s": "requests that kept every SLO, per second of arrivals",
    "attempts_mean": "calls of the endpoint per request",
    "cache_hit_ratio": "requests answered without a call of their own, of those that asked the cache",
    "cost_usd": "price of all tokens, those of batches left out",
    "cost_per_1000_usd": "price per thousand answers",
    "instance_s": "instance-seconds, boots included",
    "utilisation": "busy share of the instances' slots",
    "backlog_growth_per_s": "how fast the number in the system grew in the second half of the arrivals",
    "batch_done_s": "when the last result of all message batches was recorded; none while one is missing",
    "batch_unfinished": "requests of batches without a result",
    "batch_cost_usd": "price of all tokens of batches",
}
HIGHER_IS_BETTER: Final = frozenset(
    {"throughput_per_s", "goodput_per_s", "cache_hit_ratio", "slos_met"}
)


def slo_column(slo: SLO) -> str:
    """The column of the value that the promise bounds: a quantile in seconds, or the error rate."""
    return f"slo:{slo.name}"


def attained_column(slo: SLO) -> str:
    """The column of the fraction of requests that kept the promise."""
    return f"attained:{slo.name}"


def check_metric(scenario: Scenario, metric: str) -> None:
    """Raises ExperimentError, which names the nearest, unless runs of `scenario` have the number `metric`."""
    promised = [column(slo) for slo in scenario.slos for column in (slo_column, attained_column)]
    known = [*METRICS, "slos_met", "requests", *promised]
    if metric not in known:
        raise ExperimentError(unknown("metric", metric, known))


def number_of(row: Row, metric: str) -> float:
    """The metric of a row, truth as 0 or 1; raises ExperimentError where the run has no such number."""
    value = row[metric]
    if value is None or isinstance(value, str):
        raise ExperimentError(
            f"{metric}: a run has no such number (requests: {row['requests']}, error rate: {row['error_rate']})"
        )
    return float(value)


class MeasuringSink:
    """A sink of `simulation.world.simulate` for one run of `scenario`; about 60 bytes a request."""

    def __init__(self, scenario: Scenario) -> None:
        self._slos = scenario.slos
        self._horizon_s = scenario.horizon_s
        self._intended_s = array("d")
        self._sent_s = array("d")
        self._done_s = array("d")
        self._ttft_s = array("d")
        self._tpot_s = array("d")
        self._wait_s = array("d")
        self._cost_usd = array("d")
        self._attempts = array("l")
        self._ok = array("b")
        self._asked_cache = array("b")
        self._hit = array("b")
        # Of every station sample: instant, instance-seconds; instant, busy and possible slot-seconds.
        self._fleet: list[tuple[float, float]] = []
        # Of requests of batches: when their result came, and how long after they were due (infinite: there is none).
        self._batch_done_s = array("d")
        self._batch_took_s = array("d")
        self._batch_cost_usd = 0.0
        self._slots: list[tuple[float, float, float]] = []

    def request(self, record: RequestRecord, /) -> None:
        if record.kind == BATCH:
            self._request_of_batch(record)
            return
        ok = record.outcome == "ok"
        hit = record.cache in _HITS
        first_s, done_s = record.first_token_s, record.done_s
        self._intended_s.append(record.intended_s)
        self._sent_s.append(record.sent_s)
        self._done_s.append(done_s)
        self._ttft_s.append(first_s - record.intended_s if ok else math.nan)
        streamed = ok and not hit and record.output_tokens > 1 and first_s < done_s
        self._tpot_s.append(
            (done_s - first_s) / (record.output_tokens - 1) if streamed else math.nan
        )
        self._wait_s.append(record.instance_wait_s)
        self._cost_usd.append(record.cost_usd)
        self._attempts.append(record.attempts)
        self._ok.append(ok)
        self._asked_cache.append(record.cache != "off")
        self._hit.append(hit)

    def _request_of_batch(self, record: RequestRecord) -> None:
        """Nobody waits for it, so it counts in nothing else."""
        done_s = math.inf if record.outcome == "unfinished" else record.done_s
        self._batch_done_s.append(done_s)
        self._batch_took_s.append(done_s - record.intended_s)
        self._batch_cost_usd += record.cost_usd

    def station(self, sample: StationSample, /) -> None:
        if sample.kind == "fleet":
            instances = sample.in_service + sample.queue_length
            self._fleet.append((sample.t_s, instances * sample.interval_s))
        elif sample.kind == "slots":
            self._slots.append((sample.t_s, sample.busy_s, sample.capacity * sample.interval_s))

    def event(self, event: SystemEvent, /) -> None:
        """Rows tell of requests and stations."""

    def row(self, warm_up: float | str, limit: str = "") -> Row:
        """The columns METRICS, those of the SLOs, and `requests`, `warm_up_s`, `settled`, `slos_met`, `status`, `note`.

        Args:
            warm_up: seconds that are not measured, or "mser5": by that rule on the latencies in order of arrival.
            limit: which limit ended the run early ("": none did).

        `status` is "done", "unstable" (the backlog grew to the end) or "limit"; `settled` is False where MSER-5 found no
        steady state.
        """
        order = np.argsort(np.frombuffer(self._intended_s), kind="stable")
        intended_s = np.frombuffer(self._intended_s)[order]
        ok = answered = np.frombuffer(self._ok, dtype=np.int8)[order].astype(bool)
        latency_s = np.where(ok, np.frombuffer(self._done_s)[order] - intended_s, math.nan)
        warm_up_s, settled = _warm_up(warm_up, intended_s, latency_s)
        kept = order[intended_s >= warm_up_s]
        latency_s, ok = latency_s[intended_s >= warm_up_s], ok[intended_s >= warm_up_s]
        ttft_s = np.frombuffer(self._ttft_s)[kept]
        measures = {"latency": latency_s, "ttft": ttft_s, "tpot": np.frombuffer(self._tpot_s)[kept]}
        until_s = self._arrival_window_s(limit)
        over_s = until_s - warm_up_s
        done_s = np.frombuffer(self._done_s)[order]
        in_time = int(((done_s > warm_up_s) & (done_s <= until_s) & answered).sum())
        good = ok.copy()
        row: Row = {"requests": len(kept), "warm_up_s": warm_up_s, "settled": settled}
        for slo in self._slos:
            if slo.metric == "batch":
                row[slo_column(slo)], row[attained_column(slo)] = self._batch_promise(slo)
                continue
            value, keeps = _promise(slo, measures, ok)
            row[slo_column(slo)] = _number(value)
            row[attained_column(slo)] = _number(float(keeps.mean()) if len(kept) else math.nan)
            good &= keeps
        limits = [(row[slo_column(slo)], slo.limit_s or slo.limit or 0.0) for slo in self._slos]
        row["slos_met"] = all(isinstance(v, float) and v <= most for v, most in limits)
        cost_usd = float(np.frombuffer(self._cost_usd)[kept].sum())
        answers = int(ok.sum())
        asked = np.frombuffer(self._asked_cache, dtype=np.int8)[kept].astype(bool)
        hits = np.frombuffer(self._hit, dtype=np.int8)[kept][asked]
        attempts = np.frombuffer(self._attempts, dtype=np.dtype("l"))[kept]
        slots = [(busy, possible) for t_s, busy, possible in self._slots if t_s > warm_up_s]
        possible_s = math.fsum(possible for _, possible in slots)
        busy_s = math.fsum(busy for busy, _ in slots)
        grown = growth(np.frombuffer(self._sent_s), np.frombuffer(self._done_s), self._horizon_s)
        batch_done_s = self._batch_done_s
        last_s = max(batch_done_s, default=math.nan)
        found = {
            **_latencies("latency", latency_s[ok]),
            **_latencies("ttft", ttft_s[ok]),
            "wait_mean_s": _mean(np.frombuffer(self._wait_s)[kept]),
            "error_rate": 1 - answers / len(kept) if len(kept) else math.nan,
            "throughput_per_s": in_time / over_s if over_s > 0 else math.nan,
            "goodput_per_s": float(good.sum()) / over_s if over_s > 0 else math.nan,
            "attempts_mean": _mean(attempts.astype(np.float64)),
            "cache_hit_ratio": _mean(hits.astype(np.float64)),
            "cost_usd": cost_usd,
            "cost_per_1000_usd": 1000 * cost_usd / answers if answers else math.nan,
            "instance_s": math.fsum(s for t_s, s in self._fleet if t_s > warm_up_s),
            "utilisation": busy_s / possible_s if possible_s else math.nan,
            "backlog_growth_per_s": grown.per_s,
            "batch_done_s": last_s if math.isfinite(last_s) else math.nan,
            "batch_unfinished": batch_done_s.count(math.inf) if batch_done_s else math.nan,
            "batch_cost_usd": self._batch_cost_usd if batch_done_s else math.nan,
        }
        row.update({name: _number(found[name]) for name in METRICS})
        notes = [limit] if limit else []
        row["status"] = "limit" if limit else "done"
        if grown.significant:
            row["status"] = "unstable"
            notes.insert(0, f"beyond capacity: the backlog grows at {grown.per_s:.3g} requests/s")
        row["note"] = "; ".join(notes)
        return row

    def _batch_promise(self, slo: SLO) -> tuple[float | None, float]:
        """How long the slowest result took (None: one is missing; 0: there are no batches), and the fraction in time."""
        took_s = np.frombuffer(self._batch_took_s) if self._batch_took_s else np.zeros(1)
        slowest_s = float(took_s.max())
        in_time = float((took_s <= (slo.limit_s or 0.0)).mean())
        return slowest_s if math.isfinite(slowest_s) else None, in_time

    def _arrival_window_s(self, limit: str) -> float:
        if not limit:
            return self._horizon_s
        return min(self._horizon_s, max(self._done_s, default=0.0))


def _warm_up(rule: float | str, intended_s: Floats, latency_s: Floats) -> tuple[float, bool]:
    """How many seconds to leave out, and whether the rest is settled."""
    if not isinstance(rule, str):
        return rule, True
    answered = ~np.isnan(latency_s)
    found = mser5(latency_s[answered])
    if not found.truncate:
        return 0.0, found.settled
    return float(intended_s[answered][found.truncate]), found.settled


def _promise(
    slo: SLO, measures: dict[str, Floats], ok: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[float, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """The value that the promise bounds, and which requests kept it."""
    if slo.quantile is None or slo.metric == "error_rate":
        return (1 - float(ok.mean()) if len(ok) else math.nan), ok
    values = measures[slo.metric]
    # An answer without the measure (one token, a cache hit) cannot violate it.
    return quantile(values[~np.isnan(values)], slo.quantile), ok & ~(values > (slo.limit_s or 0.0))


def _latencies(name: str, sample: Floats) -> dict[str, float]:
    values = np.sort(sample[~np.isnan(sample)])
    levels = {f"{name}_p{level}_s": quantile(values, level / 100) for level in (50, 95, 99)}
    return {f"{name}_mean_s": _mean(values), **levels}


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
