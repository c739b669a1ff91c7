"""An evaluation for people: what it means in a few lines, and its curve as a figure."""

from __future__ import annotations

from pathlib import Path

from reference_impl.caches.semantic.evaluation import Evaluation
from reference_impl.caches.semantic.smart_cache import DEFAULT_THRESHOLD

__all__ = ["MIN_PRECISION", "MIN_RECALL", "describe", "draw_curve"]

# What the semantic cache must reach on a file of pairs before it is worth its risk there.
MIN_PRECISION = 0.95
MIN_RECALL = 0.5


def describe(
    evaluation: Evaluation,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    max_false_hit_rate: float = 0.02,
) -> str:
    """Lines of text: the pairs, the rates at `threshold` with the gate and without, and the threshold for a target rate.

    `max_false_hit_rate` is the share of different questions that may be answered wrongly.
    """
    shipped = evaluation.at(threshold)
    lines = [f"{shipped.same} pairs that ask the same, {shipped.different} that do not", ""]
    lines.append(f"{'':24}{'precision':>10}{'recall':>10}{'false hits':>12}")
    for name, point in (
        (f"{threshold:.2f}, with the gate", shipped),
        (f"{threshold:.2f}, without", evaluation.at(threshold, gated=False)),
    ):
        lines.append(
            f"{name:24}{point.precision:>10.3f}{point.recall:>10.3f}{point.false_hit_rate:>12.3f}"
        )
    wrong = evaluation.wrong_by_kind(threshold)
    if wrong:
        kinds = ", ".join(f"{kind} {count}" for kind, count in wrong.most_common())
        lines += ["", f"answered wrongly at {threshold:.2f}: {kinds}"]
    safest = evaluation.safest(max_false_hit_rate)
    lines.append("")
    if safest is None:
        lines.append(f"no threshold keeps false hits within {max_false_hit_rate:.3f}")
    else:
        lines.append(
            f"from {safest.threshold:.2f} on, false hits stay within {max_false_hit_rate:.3f}: "
            f"recall {safest.recall:.3f}, precision {safest.precision:.3f}"
        )
    if shipped.precision < MIN_PRECISION or shipped.recall < MIN_RECALL:
        lines.append(
            f"warning: at {threshold:.2f} precision is below {MIN_PRECISION} or recall below {MIN_RECALL}: "
            "leave the semantic cache off for prompts like these"
        )
    return "\n".join(lines)


def draw_curve(evaluation: Evaluation, path: Path, *, threshold: float = DEFAULT_THRESHOLD) -> None:
    """Recall and false-hit rate over the threshold, with the gate and without, into a PNG or SVG at `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    thresholds = [point.threshold for point in evaluation.gated]
    for points, style, suffix in (
        (evaluation.gated, "-", "with the gate"),
        (evaluation.ungated, ":", "threshold alone"),
    ):
        axes.plot(
            thresholds,
            [point.recall for point in points],
            style,
            color="tab:blue",
            label=f"recall, {suffix}",
        )
        axes.plot(
            thresholds,
            [point.false_hit_rate for point in points],
            style,
            color="tab:red",
            label=f"false hits, {suffix}",
        )
    axes.axvline(threshold, color="tab:grey", linewidth=1, label=f"threshold {threshold:.2f}")
    axes.set(
        xlabel="similarity threshold (cosine)",
        ylabel="share of the pairs",
        ylim=(0, 1),
        xlim=(thresholds[0], thresholds[-1]),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
