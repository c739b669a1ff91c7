"""What the accuracy of the semantic cache means for people: a few lines, a figure, and the command that makes both."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from reference_impl.caches.semantic.accuracy import LABELLED_PAIRS, Evaluation, evaluate, read_pairs
from reference_impl.caches.semantic.embedder import EmbedderUnavailable
from reference_impl.caches.semantic.minilm import MiniLMEmbedder
from reference_impl.caches.semantic.smart_cache import DEFAULT_THRESHOLD
from reference_impl.output_paths import check_output_file

__all__ = ["MIN_PRECISION", "MIN_RECALL", "cache", "describe", "draw_curve"]

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


@click.group()
def cache() -> None:
    """Tell how right the semantic cache is."""


@cache.command("evaluate")
@click.argument(
    "pairs_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=LABELLED_PAIRS,
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=DEFAULT_THRESHOLD,
    show_default=True,
    help="Similarity from which prompts may share an answer.",
)
@click.option(
    "--max-false-hits",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="Share of different questions that may be answered wrongly.",
)
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the curve into this PNG or SVG.",
)
def evaluate_command(
    pairs_file: Path, threshold: float, max_false_hits: float, figure: Path | None
) -> None:
    """Recall and false hits of the semantic cache on PAIRS_FILE, by default the project's own.

    PAIRS_FILE has four columns divided by tabs under the header `same kind first second`: 0 or 1, a word, two prompts.
    """
    if figure is not None:
        check_output_file(figure)
    try:
        evaluation = asyncio.run(evaluate(read_pairs(pairs_file), MiniLMEmbedder()))
    except (ValueError, EmbedderUnavailable) as error:
        raise click.ClickException(str(error)) from error
    click.echo(describe(evaluation, threshold=threshold, max_false_hit_rate=max_false_hits))
    if figure is not None:
        draw_curve(evaluation, figure, threshold=threshold)
        click.echo(f"\ncurve: {figure}")
