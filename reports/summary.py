"""The machine-readable summary of one run."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from reports.batches import batch_outcomes
from reports.bottleneck import judge
from reports.faults import fault_spans
from reports.fleet import instance_seconds, largest_fleet, scaling_events
from reports.metrics import QUANTILES, hit_ratio, quantile_of, throughput_per_s, window_s
from reports.objectives import attainments, goodput_per_s, met_all
from reports.run import Run, load_run
from reports.validity import check_run, worst

__all__ = ["SUMMARY_KEYS", "summarise"]

# What `summarise` returns: key -> meaning. docs/reports.md shows this table; a test holds the two together.
SUMMARY_KEYS: Final[dict[str, str]] = {
    "run": "the run's folder",
    "name": "name of the scenario",
    "world": "`live` or `virtual`",
    "complete": "whether the run ended by itself",
    "inside_seen": "whether anything inside the system was measured; false of a foreign target",
    "requests": "arrivals recorded",
    "outcomes": "requests by outcome (object of counts)",
    "window_s": "time from the start to the last intended arrival; rates are over it",
    "arrivals_per_s": "arrivals ÷ window",
    "throughput_per_s": "requests answered within the window ÷ window; null if all answers came after it",
    "goodput_per_s": "requests answered within the window that met all objectives ÷ window; null as above",
    "latency": "quantiles in seconds, by key (`latency_sent_p95_s`, `ttft_intended_p50_s`, `added_p50_s`, `lag_p99_s`, ...)",
    "objectives": "list of {name, promise, metric, quantile, limit, value, fraction (of requests that kept it), met}",
    "cache_hit_ratio": "answers without an upstream call of their own ÷ look-ups; null if there was no cache",
    "cache": "requests by cache result (object of counts)",
    "attempts": "upstream calls",
    "retries": "upstream calls beyond the first of each request",
    "input_tokens": "prompt tokens",
    "output_tokens": "generated tokens",
    "cost_usd": "dollars",
    "cost_per_good_request_usd": "dollars ÷ requests that met all objectives; null if there was none",
    "largest_instances": "largest number of instances at a sample; null if none was seen",
    "instance_seconds": "time of instances paid for: booting, ready and draining",
    "scaling_events": "decisions of the autoscaler",
    "faults": "list of {fault, subject, from_s, until_s (null: not ended when the run did), befell}",
    "batches": "list of {number, tenant, model, requests, outcomes, submitted_s, done_s (null: not done), took_s, rate_per_s, queue_wait_s, cost_usd, wasted_calls}; their requests are in no other key",
    "verdict": "{limiting (a resource key or null), headline, action, confidence, reasons, slow_until (`done` or `first_token`), candidates, headroom}",
    "validity": "{state: pass|warn|fail, checks: list of {name, state, detail}}",
}


def summarise(run: Run | Path) -> dict[str, Any]:
    """Everything a script wants of one run; keys and meanings in `SUMMARY_KEYS`, JSON-able, no NaN (null instead).

    Raises ReportError if `run` is a folder that cannot be read.
    """
    run = run if isinstance(run, Run) else load_run(run)
    frame, window = run.requests, window_s(run.requests)
    good = int(met_all(frame, run.slos).sum())
    cost = float(frame["cost_usd"].sum())
    checks = check_run(run)
    most = largest_fleet(run.stations, frame)
    summary: dict[str, Any] = {
        "run": str(run.folder),
        "name": run.name,
        "world": run.world,
        "complete": run.complete,
        "inside_seen": run.inside_seen,
        "requests": len(frame),
        "outcomes": _counts(frame["outcome"]),
        "window_s": window,
        "arrivals_per_s": len(frame) / window,
        "throughput_per_s": throughput_per_s(frame),
        "goodput_per_s": goodput_per_s(frame, run.slos),
        "latency": {metric.key: quantile_of(frame, metric) for metric in QUANTILES},
        "objectives": [
            {
                "name": a.slo.name,
                "promise": a.promise,
                "metric": a.slo.metric,
                "quantile": a.slo.quantile,
                "limit": a.limit,
                "value": a.value,
                "fraction": a.fraction,
                "met": a.met,
            }
            for a in attainments(run.ended, run.slos, run.batches)
        ],
        "cache_hit_ratio": hit_ratio(frame),
        "cache": _counts(frame["cache"]),
        "attempts": int(frame["attempts"].sum()),
        "retries": int((frame["attempts"] - 1).clip(lower=0).sum()),
        "input_tokens": int(frame["input_tokens"].sum()),
        "output_tokens": int(frame["output_tokens"].sum()),
        "cost_usd": cost,
        "cost_per_good_request_usd": cost / good if good else math.nan,
        "largest_instances": None if math.isnan(most) else int(most),
        "instance_seconds": instance_seconds(run.stations),
        "scaling_events": len(scaling_events(run.events)),
        "faults": [asdict(span) for span in fault_spans(run)],
        "batches": [{**asdict(batch), "took_s": batch.took_s} for batch in batch_outcomes(run)],
        "verdict": _verdict(run),
        "validity": {
            "state": worst(checks),
            "checks": [{"name": c.name, "state": c.state, "detail": c.detail} for c in checks],
        },
    }
    cleaned: dict[str, Any] = _without_nan(summary)
    return cleaned


def _verdict(run: Run) -> dict[str, Any]:
    verdict = judge(run)
    headroom = verdict.headroom
    return {
        "limiting": verdict.limiting,
        "headline": verdict.headline,
        "action": verdict.action,
        "confidence": verdict.confidence,
        "reasons": list(verdict.reasons),
        "slow_until": verdict.slow.until if verdict.slow else None,
        "candidates": [
            {
                "resource": c.key,
                "excess": c.excess,
                "slow_s": c.slow_s,
                "share": c.share,
                "pool": c.pool or None,
                "utilisation_p95": c.utilisation_p95,
                "queue_peak": c.queue_peak,
            }
            for c in verdict.candidates
        ],
        "headroom": None
        if headroom is None
        else {
            "pool": headroom.pool,
            "throughput_per_s": headroom.throughput_per_s,
            "peak_per_s": headroom.peak_per_s,
            "bound_per_s": headroom.bound_per_s,
        },
    }


def _counts(column: Any) -> dict[str, int]:
    return {str(k): int(v) for k, v in column.value_counts().items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return value
