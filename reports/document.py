"""`build_report`: one HTML file that stands alone, and a Markdown file with its figures beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reports import figures, tables
from reports.bottleneck import Verdict, judge
from reports.errors import ReportError
from reports.figures import Labelled
from reports.rendering import FIGURES, render, write
from reports.resources import RESOURCES
from reports.run import Run, load_run
from reports.tables import Table
from reports.twin import Match, match_runs, twin_table
from reports.validity import Check, check_run, worst

__all__ = ["ReportPaths", "build_report"]


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """What `build_report` wrote."""

    html: Path
    markdown: Path
    figures: Path


@dataclass(frozen=True, slots=True)
class Figure:
    """A PNG with the name of its file and what it shows, for readers who cannot see it."""

    name: str
    alt: str
    png: bytes

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, what is missing and why (`note`), figures, then tables."""

    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    note: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Judged:
    """The top of the report, for one run."""

    label: str
    verdict: Verdict
    checks: Sequence[Check]
    complete: bool

    @property
    def state(self) -> str:
        return worst(list(self.checks))


@dataclass(frozen=True, slots=True)
class Report:
    """All that the templates print."""

    title: str
    judged: Sequence[Judged]
    warnings: Sequence[str]
    cards: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    provenance: Table
    figures: Sequence[Figure] = field(default=())


def build_report(runs: Sequence[Path], out: Path) -> ReportPaths:
    """Write `report.html`, `report.md` and `figures/` into the folder `out` from one or two run folders.

    Of two, the live one comes first, whichever is named first. Each file is written whole or not at all, and a report
    that is there is replaced. Raises ReportError, in one line, if a run cannot be read or `out` cannot be written.
    """
    if not 1 <= len(runs) <= 2:
        raise ReportError(f"a report is of one run or of two, {len(runs)} were named")
    loaded = [load_run(folder) for folder in runs]
    if [run.world for run in loaded] == ["virtual", "live"]:
        loaded.reverse()
    report = _compose(_labelled(loaded))
    paths = ReportPaths(out / "report.html", out / "report.md", out / FIGURES)
    try:
        paths.figures.mkdir(parents=True, exist_ok=True)
        for figure in report.figures:
            write(paths.figures / figure.name, figure.png)
        write(paths.html, render("report.html.j2", report))
        write(paths.markdown, render("report.md.j2", report))
        for stale in set(paths.figures.glob("*.png")) - {
            paths.figures / f.name for f in report.figures
        }:
            stale.unlink()
    except OSError as error:
        raise ReportError(
            f"{out}: the report cannot be written: {error.strerror or error}"
        ) from error
    return paths


def _labelled(runs: Sequence[Run]) -> Labelled:
    worlds = [run.world for run in runs]
    if len(set(worlds)) == len(worlds):
        return list(zip(worlds, runs, strict=True))
    return [(f"{run.world} {letter}", run) for letter, run in zip("AB", runs, strict=True)]


def _compose(runs: Labelled) -> Report:
    judged = [Judged(label, judge(run), check_run(run), run.complete) for label, run in runs]
    drawer = _Drawer()
    sections: list[Section] = []
    warnings: tuple[str, ...] = ()
    if len(runs) == 2:
        match = match_runs(runs[0][1], runs[1][1])
        warnings = (*match.warnings, *_disagreement(judged))
        sections.append(_twin_section(runs, match))
    sections += _sections(runs, judged, drawer)
    names = " and ".join(dict.fromkeys(run.name for _, run in runs))
    kind = (
        "live and virtual"
        if len(runs) == 2 and runs[0][1].world != runs[1][1].world
        else runs[0][1].world
    )
    return Report(
        title=f"{names} ({kind})",
        judged=judged,
        warnings=warnings,
        cards=tables.cards(runs[0][1]) if len(runs) == 1 else (),
        sections=sections,
        provenance=tables.provenance(runs),
        figures=drawer.drawn,
    )


def _twin_section(runs: Labelled, match: Match) -> Section:
    (first, a), (second, b) = runs
    table = tables.twin(twin_table(a, b), (first, second), match.paired, match.replayed)
    return Section("Twin table", tables=[table])


def _disagreement(judged: Sequence[Judged]) -> tuple[str, ...]:
    """A twin that names another limit than the system does is not fit to advise on it."""
    first, second = judged
    if first.label == second.label or first.verdict.limiting == second.verdict.limiting:
        return ()
    named = [
        f"{j.label}: {RESOURCES[j.verdict.limiting].name if j.verdict.limiting else 'nothing'}"
        for j in judged
    ]
    return (f"The two runs name different limits ({'; '.join(named)}).",)


class _Drawer:
    """Draws figures and keeps them, each once under its file's name."""

    def __init__(self) -> None:
        self.drawn: list[Figure] = []

    def __call__(self, name: str, alt: str, draw: Callable[[], bytes | None]) -> list[Figure]:
        png = draw()
        if png is None:
            return []
        self.drawn.append(Figure(f"{name}.png", alt, png))
        return self.drawn[-1:]


def _sections(runs: Labelled, judged: Sequence[Judged], draw: _Drawer) -> list[Section]:
    each = [(re.sub(r"[^a-z0-9]+", "-", label.lower()), label, run) for label, run in runs]
    over_time = (
        draw("latency", "p50 and p95 of latency over time", partial(figures.latency_over_time, runs))
        + draw("throughput", "arrivals, answers and failures per second over time", partial(figures.throughput_over_time, runs))
        + draw("tail", "fraction of answers slower than a latency", partial(figures.latency_tail, runs))
    )  # fmt: skip
    delay: list[Figure] = []
    pools: list[Figure] = []
    for slug, label, run in each:
        delay += draw(f"delay-{slug}", f"mean delay by stage and band of latency, {label} run", partial(figures.delay_by_band, label, run))  # fmt: skip
        delay += draw(f"first-token-{slug}", f"mean delay to the first token by stage, {label} run", partial(figures.delay_by_band, label, run, "first_token"))  # fmt: skip
        pools += draw(f"utilisation-{slug}", f"utilisation of each pool over time, {label} run", partial(figures.utilisation, label, run))  # fmt: skip
        pools += draw(f"waiting-{slug}", f"requests waiting at each pool over time, {label} run", partial(figures.queues, label, run))  # fmt: skip
    instances = draw(
        "instances", "instances over time with scaling decisions", partial(figures.fleet, runs)
    )
    batches = [tables.batches(label, run) for _, label, run in each if len(run.batches)]
    faults = [t for _, label, run in each if (t := tables.faults(label, run)).rows]
    answered = any(run.requests["ok"].any() for _, run in runs)
    no_answer = "" if answered else "No request was answered, so there is no latency to show."
    return [
        Section("Latency and throughput", over_time, note=no_answer),
        Section(
            "Delay of slow requests, by stage",
            delay,
            [tables.candidates(j.label, j.verdict) for j in judged if j.verdict.candidates],
            note=(
                ""
                if any(j.verdict.candidates for j in judged)
                else "Too few requests were worked on to tell slow ones from typical ones."
            ),
        ),
        Section(
            "Utilisation and queues, by station",
            pools,
            [tables.stations(label, run) for _, label, run in each if len(run.stations)],
            note=_stations_note(drawn=bool(pools), queued=any("waiting" in f.name for f in pools)),
        ),
        Section(
            "Instances and scaling",
            instances,
            [t for _, label, run in each if (t := tables.scaling(label, run)).rows],
            note="" if instances else "No instance was sampled in this run.",
        ),
        Section(
            "Promises, outcomes and cost",
            tables=[
                *(t for _, label, run in each if (t := tables.objectives(label, run)).rows),
                tables.outcomes(runs),
                tables.attempts(runs),
                tables.figures_of_merit(runs),
            ],
        ),
        *(
            [Section("Faults", tables=faults, note="Shaded in the figures over time.")]
            if faults
            else []
        ),
        *([Section("Message batches", tables=batches)] if batches else []),
    ]


def _stations_note(*, drawn: bool, queued: bool) -> str:
    if not drawn:
        return "No station was sampled."
    return (
        ""
        if queued
        else "Next to nothing waited at any station, so there is no figure of waiting lines."
    )
