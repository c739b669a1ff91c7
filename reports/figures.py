"""The figures of a report. Each takes runs (with a label) and gives a PNG, or None when there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.canvas import GREY, PALETTE, RUN_COLOURS, RUN_STYLES, Canvas
from reports.faults import fault_spans
from reports.fleet import instance_counts, scaling_events
from reports.metrics import window_s
from reports.run import Run
from reports.stages import PART_LABELS, PARTS, Until, by_band, parts
from reports.stations import pooled_series

__all__ = [
    "Labelled",
    "delay_by_band",
    "fleet",
    "latency_over_time",
    "latency_tail",
    "queues",
    "throughput_over_time",
    "utilisation",
]

Labelled = Sequence[tuple[str, Run]]
_TIME: Final = "time since the start [s]"
# Parts below this fraction of every bar are drawn as one.
_SMALL: Final = 0.01
_MOST_POOLS: Final = 6
_UNSEEN: Final = "the target, not seen inside"
# A mean below this at every instant is no waiting line.
_NO_QUEUE: Final = 0.05


def _part_styles() -> dict[str, tuple[str, str]]:
    """Colour and hatch of each part, the same in every report; the likeliest suspects get the plain colours."""
    plain = (
        "instance_wait_s", "retry_wait_s", "other_s", "cache_s", "balance_s", "upstream_path_s", "failed_attempts_s",
        "lag_s",
    )  # fmt: skip
    styles = {part: (colour, "") for part, colour in zip(plain, PALETTE, strict=True)}
    # The endpoint's own time is nobody's wait: it recedes.
    styles["endpoint_s"] = ("#BFC5CE", "")
    rest = [part for part in PARTS if part not in styles]
    return styles | {part: (colour, "////") for part, colour in zip(rest, PALETTE, strict=False)}


_PART_STYLES: Final = _part_styles()


def _bins(runs: Labelled, per_bin: int, most: int = 80) -> npt.NDArray[np.float64]:
    """Edges of equal bins over the arrivals of all runs, with about `per_bin` requests each or more."""
    end = max(window_s(run.requests) for _, run in runs)
    fewest = min(len(run.requests) for _, run in runs)
    count = int(np.clip(fewest // per_bin, 1, most))
    return np.linspace(0, end * (1 + 1e-9), count + 1)


def _shade_faults(canvas: Canvas, runs: Labelled) -> None:
    """The windows of faults: of the first run that tells of any, since a twin has the same."""
    told = next((spans for _, run in runs if (spans := fault_spans(run))), [])
    canvas.shade([(s.from_s, s.until_s) for s in told if s.befell], "fault")


def latency_over_time(runs: Labelled) -> bytes | None:
    """p50 and p95 of latency from intended, by the intended instant; single requests as dots when they are few."""
    answered = [(label, run, run.requests[run.requests["ok"]]) for label, run in runs]
    if all(frame.empty for _, _, frame in answered):
        return None
    canvas = Canvas("Latency over time, from intended", _TIME, "latency [s]")
    edges = _bins(runs, per_bin=40)
    extremes: list[float] = []
    for (label, _, frame), colour, style in zip(answered, RUN_COLOURS, RUN_STYLES, strict=False):
        values = frame["latency_s"]
        if len(frame) < 200:
            canvas.axes.scatter(
                frame["intended_s"],
                values,
                s=9,
                color=colour,
                alpha=0.5,
                linewidths=0,
                label=f"{label}: each request",
            )
            extremes += [float(values.min()), float(values.max())] if len(frame) else []
        bins = pd.Series(np.digitize(frame["intended_s"], edges) - 1, index=frame.index)
        grouped = values.groupby(bins)
        for p, width, alpha in ((0.95, 1.8, 1.0), (0.5, 1.0, 0.8)):
            line = grouped.quantile(p)[grouped.count() >= 5]
            if line.empty:
                continue
            middle = (edges[line.index] + edges[line.index + 1]) / 2
            canvas.line(middle, line, f"{label} p{p * 100:.0f}", color=colour, linestyle=style, linewidth=width, alpha=alpha)  # fmt: skip
            # A median that cache hits pull down must not flatten the tail by a logarithmic axis.
            extremes += [float(line.min()), float(line.max())] if p > 0.5 else []
    for slo in runs[0][1].slos:
        if slo.metric == "latency" and slo.limit_s is not None and slo.quantile is not None:
            canvas.threshold(slo.limit_s, f"promised: p{slo.quantile * 100:g} ≤ {slo.limit_s:g} s")
            extremes.append(slo.limit_s)
    canvas.logarithmic_if_wide(min(extremes, default=0.0), max(extremes, default=1.0))
    _shade_faults(canvas, runs)
    canvas.from_start()
    canvas.legend()
    return canvas.png()


def throughput_over_time(runs: Labelled) -> bytes | None:
    """Arrivals of the first run, and answers and failures of each, per second."""
    if all(run.requests.empty for _, run in runs):
        return None
    canvas = Canvas("Arrivals and answers", _TIME, "requests per second")
    edges = _bins(runs, per_bin=30, most=60)
    width = edges[1] - edges[0]
    middle = (edges[:-1] + edges[1:]) / 2
    arrivals = np.histogram(runs[0][1].requests["intended_s"], edges)[0] / width
    canvas.axes.fill_between(
        middle, arrivals, step="mid", color="#D9DDE3", label="arrivals", linewidth=0
    )
    for (label, run), colour, style in zip(runs, RUN_COLOURS, RUN_STYLES, strict=False):
        frame = run.ended
        answered = np.histogram(frame.loc[frame["ok"], "done_s"], edges)[0] / width
        canvas.line(middle, answered, f"{label}: answered", color=colour, linestyle=style)
        failed = frame.loc[~frame["ok"], "done_s"]
        if len(failed):
            rate = np.histogram(failed, edges)[0] / width
            canvas.line(
                middle,
                rate,
                f"{label}: not answered",
                color=PALETTE[3],
                linestyle=style,
                linewidth=1.2,
            )
    _shade_faults(canvas, runs)
    canvas.from_start()
    canvas.from_zero()
    canvas.legend()
    return canvas.png()


def latency_tail(runs: Labelled) -> bytes | None:
    """Fraction of answers slower than x, from sent: straight to the quantiles that are promised."""
    samples = [(label, np.sort(run.requests["service_s"].dropna())) for label, run in runs]
    samples = [(label, values) for label, values in samples if values.size >= 2]
    if not samples:
        return None
    canvas = Canvas("Tail of the latency, from sent", "latency [s]", "fraction of answers slower")
    for (label, values), colour, style in zip(samples, RUN_COLOURS, RUN_STYLES, strict=False):
        slower = 1 - np.arange(1, values.size + 1) / (values.size + 1)
        kept = _thinned(values.size)
        values, slower = values[kept], slower[kept]
        canvas.axes.step(
            values, slower, where="post", color=colour, linestyle=style, linewidth=1.6, label=label
        )
    canvas.axes.set_yscale("log")
    for level in (0.5, 0.05, 0.01):
        canvas.axes.axhline(level, color=GREY, linewidth=0.7, linestyle=":")
        canvas.axes.annotate(
            f"p{(1 - level) * 100:.0f}", (1.0, level), xycoords=("axes fraction", "data"), fontsize=8, color=GREY,
            ha="right", va="bottom",
        )  # fmt: skip
    canvas.from_start()
    canvas.legend()
    return canvas.png()


def _thinned(n: int) -> npt.NDArray[np.int64]:
    """Indices of a sorted sample that a figure can tell apart: dense towards the tail, the ends included."""
    if n <= 4000:
        return np.arange(n)
    even, tail = np.linspace(0, n - 1, 2000), n - np.geomspace(1, n, 2000)
    return np.unique(np.concatenate([even, tail]).astype(np.int64).clip(0, n - 1))


def delay_by_band(label: str, run: Run, until: Until = "done") -> bytes | None:
    """Mean seconds by part of a request, for each band of latency: what the slow ones wait for."""
    bands = by_band(parts(run.requests, until))
    bands = bands[bands["requests"] >= 1]
    if bands.empty:
        return None
    seconds = bands[list(PARTS)].clip(lower=0)
    totals = seconds.sum(axis=1)
    large = [p for p in PARTS if (seconds[p] > _SMALL * totals.clip(lower=1e-12)).any()]
    what = "to the first token" if until == "first_token" else "to the last byte"
    canvas = Canvas(f"Delay {what}, {label}", "mean seconds of a request [s]", "", height_in=3.6)
    y = np.arange(len(bands))
    left = np.zeros(len(bands))
    for part in large:
        colour, hatch = _PART_STYLES[part]
        canvas.axes.barh(
            y, seconds[part], left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0, height=0.68,
            label=_UNSEEN if part == "other_s" and not run.inside_seen else PART_LABELS[part],
        )  # fmt: skip
        left += seconds[part].to_numpy()
    small = totals.to_numpy() - left
    if (small > 0.02 * totals).any():
        canvas.axes.barh(y, small, left=left, color=GREY, height=0.68, label="all other parts")
    canvas.axes.set_yticks(y, [f"{name}\n{int(n):,}" for name, n in bands["requests"].items()])
    canvas.axes.set_ylabel("band of latency, requests in it", fontsize=9)
    canvas.axes.invert_yaxis()
    canvas.axes.grid(visible=False, axis="y")
    for at, total in zip(y, totals, strict=True):
        canvas.axes.annotate(f" {_seconds(total)}", (total, at), va="center", fontsize=8)
    canvas.axes.set_xlim(0, float(totals.max()) * 1.16 or 1)
    canvas.legend()
    return canvas.png()


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def utilisation(label: str, run: Run) -> bytes | None:
    """Busy fraction of each pool over time."""
    return _by_pool(run, f"Utilisation, {label}", "utilisation", "busy servers ÷ capacity")


def queues(label: str, run: Run) -> bytes | None:
    """Mean number waiting at each pool over time; None if nothing worth a figure ever waited."""
    return _by_pool(run, f"Waiting, {label}", "queue", "requests waiting (mean)")


def _by_pool(run: Run, title: str, column: str, y: str) -> bytes | None:
    series = pooled_series(run.servers).dropna(subset=[column])
    if series.empty:
        return None
    peaks = series.groupby("pool")[column].max().sort_values(ascending=False, kind="stable")
    if column == "queue" and peaks.iloc[0] < _NO_QUEUE:
        return None
    canvas = Canvas(title, _TIME, y)
    # Lines that lie on the axis tell nothing; the highest one is drawn in any case.
    shown = peaks[peaks > _SMALL * float(peaks.max())].index[:_MOST_POOLS]
    for pool, colour in zip(shown if len(shown) else peaks.index[:1], PALETTE, strict=False):
        one = series[series["pool"] == pool]
        canvas.line(one["t_s"], one[column], str(pool), color=colour)
    _shade_faults(canvas, [("", run)])
    canvas.from_start()
    canvas.from_zero()
    if column == "queue":
        # Less than one waiter is no queue and should not look like one.
        canvas.axes.set_ylim(0, max(1.0, float(peaks.max()) * 1.08))
    if column == "utilisation":
        canvas.axes.set_ylim(0, max(1.05, float(peaks.max()) * 1.05))
        canvas.axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    canvas.legend()
    return canvas.png()


def fleet(runs: Labelled) -> bytes | None:
    """Instances over time; a tick below the axis line marks each decision of the autoscaler."""
    counts = [(label, run, instance_counts(run.stations)) for label, run in runs]
    counts = [(label, run, count) for label, run, count in counts if len(count)]
    if not counts:
        return None
    from matplotlib.ticker import MaxNLocator

    canvas = Canvas("Instances over time", _TIME, "instances ready")
    for (label, run, count), colour, style in zip(counts, RUN_COLOURS, RUN_STYLES, strict=False):
        canvas.axes.step(
            count.index,
            count,
            where="pre",
            color=colour,
            linestyle=style,
            linewidth=1.7,
            label=label,
        )
        decided = [e.t_s for e in scaling_events(run.events)]
        if decided:
            held = np.interp(decided, count.index, count)
            canvas.axes.scatter(decided, held, marker="^", s=26, color=colour, zorder=3, label=f"{label}: scaling decision")  # fmt: skip
    canvas.from_zero()
    canvas.axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _shade_faults(canvas, runs)
    canvas.from_start()
    canvas.legend()
    return canvas.png()
