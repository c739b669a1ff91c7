"""The tables of a report as words: rows of text that both the HTML and the Markdown template print."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.batches import batch_outcomes
from reports.bottleneck import Verdict
from reports.faults import fault_spans, met_a_fault
from reports.figures import Labelled
from reports.fleet import instance_seconds, largest_fleet, scaling_events
from reports.headroom import pools_of
from reports.metrics import QUANTILES, hit_ratio, quantile_of, throughput_per_s, window_s
from reports.objectives import attainments, goodput_per_s, met_all
from reports.run import Run
from reports.wording import DASH, amount, difference, interval, relative
from simulation.statistics import quantile

__all__ = [
    "Table",
    "attempts",
    "batches",
    "candidates",
    "cards",
    "faults",
    "figures_of_merit",
    "objectives",
    "outcomes",
    "provenance",
    "scaling",
    "stations",
    "twin",
]


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the heads of the columns and the rows. The first column is text, the others numbers unless `words`."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: tuple[int, ...] = ()


def twin(table: pd.DataFrame, labels: tuple[str, str], paired: bool, replayed: bool) -> Table:
    """The twin table (`reports.twin.twin_table`) in words."""
    rows = tuple(
        (
            str(row.metric),
            amount(row.live, row.unit),
            amount(row.virtual, row.unit),
            difference(row.difference, row.unit),
            relative(row.relative),
            interval(row.difference_low, row.difference_high, row.unit),
        )
        for row in _plain_rows(table)
    )
    sentences = [
        "Latency, TTFT and TPOT are of answered requests.",
        "Added time is from sent to the last byte, less the endpoint's own time, of requests that made an upstream call.",
        "The interval is of the difference, by resampling 20 stretches of the run"
        + (", the same requests in both." if paired else ", independently.")
        + " A dash: too few observations, or an exact count.",
    ]
    if replayed:
        sentences.append(
            f"The {labels[1]} run was given the instants at which the {labels[0]} run sent: compare from sent."
        )
    return Table(
        "Twin table",
        ("Measure", labels[0], labels[1], "difference", "relative", "95% interval"),
        rows,
        " ".join(sentences),
    )


def _plain_rows(table: pd.DataFrame) -> Iterator[Any]:
    """Named tuples of a frame: pandas types them as unions of every scalar there is."""
    return iter(table.itertuples(index=False))


def figures_of_merit(runs: Labelled) -> Table:
    """Load, latency, cache, fleet and cost, one column a run."""
    columns = [_merit(run) for _, run in runs]
    rows = tuple((label, *(c[label] for c in columns)) for label in columns[0])
    return Table("Figures of merit", ("Measure", *(label for label, _ in runs)), rows)


def cards(run: Run) -> tuple[tuple[str, str], ...]:
    """The dozen figures that one looks for first: (what, how much)."""
    merit = _merit(run)
    failed = float((~run.ended["ok"]).mean()) if len(run.ended) else math.nan
    wanted = (
        ("Requests", "Requests"),
        ("Throughput", "Throughput (answered within the arrivals' time)"),
        ("Goodput", "Goodput (met every promise)"),
        ("Latency p50", "Latency from intended, p50"),
        ("Latency p95", "Latency from intended, p95"),
        ("Latency p99", "Latency from intended, p99"),
        ("TTFT p50", "TTFT from intended, p50"),
        ("TTFT p95", "TTFT from intended, p95"),
        ("Cache hits", "Cache hit ratio"),
        ("Instances, most", "Largest number of instances"),
        ("Cost", "Cost"),
    )
    return (
        *((short, merit[key]) for short, key in wanted),
        ("Not answered", amount(failed, "fraction")),
    )


def _merit(run: Run) -> dict[str, str]:
    frame, window = run.requests, window_s(run.requests)
    good = int(met_all(frame, run.slos).sum())
    cost = float(frame["cost_usd"].sum())
    merit = {
        "Requests": amount(len(frame), ""),
        "Arrivals": amount(len(frame) / window, "/s"),
        "Throughput (answered within the arrivals' time)": amount(throughput_per_s(frame), "/s"),
        "Goodput (met every promise)": amount(goodput_per_s(frame, run.slos), "/s"),
    }
    merit |= {metric.label: amount(quantile_of(frame, metric), "s") for metric in QUANTILES}
    return merit | {
        "Cache hit ratio": amount(hit_ratio(frame), "fraction"),
        "Input tokens": amount(float(frame["input_tokens"].sum()), ""),
        "Output tokens": amount(float(frame["output_tokens"].sum()), ""),
        "Cost": amount(cost, "usd"),
        "Cost per 1,000 good requests": amount(1000 * cost / good if good else math.nan, "usd"),
        "Largest number of instances": amount(largest_fleet(run.stations, frame), ""),
        "Instance hours": amount(
            instance_seconds(run.stations) / 3600 if run.inside_seen else math.nan, ""
        ),
    }


def stations(label: str, run: Run) -> Table:
    """Pools of stations with demand and bound."""
    table = pools_of(run)
    rows = tuple(
        (
            str(pool),
            amount(row["members"], ""),
            amount(row["capacity"], ""),
            amount(row["utilisation"], "fraction"),
            amount(row["utilisation_p95"], "fraction"),
            amount(row["queue"], ""),
            amount(row["queue_peak"], ""),
            amount(row["demand_s"], "s"),
            amount(row["bound_per_s"], "/s"),
        )
        for pool, row in table.iterrows()
    )
    heads = (
        "Pool", "members", "capacity", "busy", "busy, p95", "waiting", "waiting, peak", "demand D", "bound on X",
    )  # fmt: skip
    note = (
        "While requests arrived; the drain is left out. Demand is busy time per answered request, of batches or not; the bound "
        "is the throughput of both at which the largest capacity seen is used up. A busy station is not by itself the bottleneck: the ranking above goes by delay."
    )
    return Table(f"Stations, {label}", heads, rows, note)


def candidates(label: str, verdict: Verdict) -> Table:
    """The suspects that have any part in the slow requests' delay."""
    rows = tuple(
        (
            c.resource.name,
            amount(c.excess, "fraction"),
            amount(c.slow_s, "s"),
            amount(c.share, "fraction"),
            amount(c.utilisation_p95, "fraction"),
            amount(c.queue_peak, ""),
            c.resource.action.replace("`", ""),
        )
        for c in verdict.candidates
        if c.excess >= 0.005 or c.share >= 0.005
    )
    heads = (
        "Resource", "part of the excess", "in a slow request", "of its latency", "busy, p95", "waiting, peak", "to try",
    )  # fmt: skip
    note = (
        "Excess: what slow requests spend beyond an unhindered one, which is the endpoint's own time of a typical request "
        "(below the median). Only an experiment tells what a change buys; run it in the simulation before you make it."
    )
    first = verdict.slow is not None and verdict.slow.until == "first_token"
    who = "requests slow to their first token" if first else "slow requests"
    return Table(f"Where {who} lose time, {label}", heads, rows, note, words=(6,))


def objectives(label: str, run: Run) -> Table:
    """The promises and how far they were kept."""
    rows = tuple(
        (
            f"{a.slo.name}: {a.promise}",
            amount(a.value, "s" if a.slo.limit is None else "fraction"),
            "yes" if a.met else "no",
            amount(a.fraction, "fraction"),
        )
        for a in attainments(run.ended, run.slos, run.batches)
    )
    return Table(f"Promises, {label}", ("Promise", "measured", "kept", "requests within it"), rows)


def outcomes(runs: Labelled) -> Table:
    """Requests by outcome, and by cache result."""
    rows = []
    for column, prefix in (("outcome", ""), ("cache", "cache: ")):
        counts = [run.requests[column].value_counts() for _, run in runs]
        names = sorted(
            {str(n) for c in counts for n in c.index}, key=lambda n: -int(counts[0].get(n, 0))
        )
        rows += [
            (
                prefix + n,
                *(_counted(c, n, len(r.requests)) for c, (_, r) in zip(counts, runs, strict=True)),
            )
            for n in names
        ]
    return Table("Outcomes and cache", ("Class", *(label for label, _ in runs)), tuple(rows))


def _counted(counts: pd.Series[int], name: str, total: int) -> str:
    count = int(counts.get(name, 0))
    return f"{count:,} ({count / total:.1%})" if total else "0"


def attempts(runs: Labelled) -> Table:
    """Upstream calls and retries."""
    frames = [run.requests for _, run in runs]
    rows = (
        ("Upstream calls", *(amount(float(f["attempts"].sum()), "") for f in frames)),
        ("Retries", *(amount(float((f["attempts"] - 1).clip(lower=0).sum()), "") for f in frames)),
        ("Most calls for one request", *(amount(float(f["attempts"].max()), "") for f in frames)),
    )
    return Table("Attempts", ("Measure", *(label for label, _ in runs)), rows)


def batches(label: str, run: Run) -> Table:
    """Each batch: results, when it was done, rate, cost, waste."""
    found = batch_outcomes(run)
    rows = tuple(
        (
            f"{b.number}: {b.tenant}, {b.model}",
            amount(b.requests, ""),
            amount(b.succeeded, ""),
            amount(b.requests - b.succeeded - b.unfinished, ""),
            amount(b.unfinished, ""),
            amount(b.submitted_s, "s"),
            amount(b.done_s, "s"),
            amount(b.took_s, "s"),
            amount(b.rate_per_s, "/s"),
            amount(b.queue_wait_s, "s"),
            amount(b.cost_usd, "usd"),
            amount(b.wasted_calls, ""),
        )
        for b in found
    )
    heads = (
        "Batch", "requests", "succeeded", "without an answer", "unfinished", "submitted at", "done at", "took", "rate",
        "in the queue, mean", "cost", "calls made again",
    )  # fmt: skip
    note = (
        "Requests of batches are in none of the figures above: nobody waits for them. A dash: the batch was not done when the "
        "run ended."
    )
    return Table(f"Batches, {label}", heads, rows, note)


def faults(label: str, run: Run, most: int = 40) -> Table:
    """When each fault befell what, and how the requests fared that met it, beside those that met none."""
    spans = fault_spans(run)
    rows = [
        (
            s.fault,
            s.subject if s.befell else f"{s.subject}: nothing ran that it could befall",
            amount(s.from_s, "s"),
            "the end" if math.isinf(s.until_s) else amount(s.until_s, "s"),
            *_fared(run.ended[met_a_fault(run.ended, [s])]),
        )
        for s in spans[:most]
    ]
    if rows:
        rows.append(("none", "", DASH, DASH, *_fared(run.ended[~met_a_fault(run.ended, spans)])))
    note = "Requests that were under way during a fault; the last row: those that met none."
    note += f" The first {most} of {len(spans)} faults." if len(spans) > most else ""
    heads = (
        "Fault",
        "on",
        "from",
        "until",
        "requests",
        "not answered",
        "latency p50",
        "latency p95",
    )
    return Table(f"Faults, {label}", heads, tuple(rows), note, words=(1,))


def _fared(frame: pd.DataFrame) -> tuple[str, str, str, str]:
    failed = float((~frame["ok"]).mean()) if len(frame) else math.nan
    p50, p95 = (quantile(frame["latency_s"].dropna().to_numpy(), p) for p in (0.5, 0.95))
    return amount(len(frame), ""), amount(failed, "fraction"), amount(p50, "s"), amount(p95, "s")


def scaling(label: str, run: Run, most: int = 20) -> Table:
    """The autoscaler's first decisions."""
    events = scaling_events(run.events)
    rows = tuple(
        (amount(e.t_s, "s"), e.subject, ", ".join(f"{k} {_detail(v)}" for k, v in e.detail.items()))
        for e in events[:most]
    )
    note = f"The first {most} of {len(events)}." if len(events) > most else ""
    return Table(
        f"Scaling decisions, {label}", ("At", "subject", "detail"), rows, note, words=(1, 2)
    )


def _detail(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def provenance(runs: Labelled) -> Table:
    """What repeats the run."""
    manifests = [run.manifest for _, run in runs]
    rows = (
        ("World", *(m.world for m in manifests)),
        ("Scenario", *(run.name for _, run in runs)),
        ("Started", *(m.started_at or DASH for m in manifests)),
        ("Seed", *(str(m.seed) for m in manifests)),
        ("Commit", *(m.commit[:12] or DASH for m in manifests)),
        ("Scenario sha256", *(m.scenario_sha256[:16] for m in manifests)),
        ("Workload sha256", *(m.workload_sha256[:16] for m in manifests)),
        (
            "Machine",
            *(", ".join(f"{k} {v}" for k, v in m.machine.items()) or DASH for m in manifests),
        ),
        (
            "Versions",
            *(", ".join(f"{k} {v}" for k, v in m.versions.items()) or DASH for m in manifests),
        ),
        ("Notes", *(" ".join(m.notes) or DASH for m in manifests)),
    )
    heads = ("", *(label for label, _ in runs))
    return Table("Provenance", heads, rows, words=(1, 2))
