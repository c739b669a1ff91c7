"""twinload, the command line: the only file that knows every folder. Each command imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# Installed, the folders with generic names stand in a private one beside this module; in a checkout, beside it. Either
# goes first, so that a user's own `simulation/` or `reports/` can neither shadow them nor be shadowed outside this process
# (docs/decisions/0001-one-private-folder.md).
_PRIVATE = Path(__file__).resolve().parent / "_twinload"
PACKAGES = _PRIVATE if _PRIVATE.is_dir() else _PRIVATE.parent
sys.path.insert(0, str(PACKAGES))

import click  # noqa: E402 - after the path is set

if TYPE_CHECKING:
    from rich.progress import Progress

    from reports.document import ReportPaths
    from simulation.experiments.edge import Edge
    from simulation.experiments.virtual_run import Provenance
    from simulation.scenario.schema import Scenario
    from simulation.scenario.workload import CompiledWorkload

OK, FAILED, BAD_INPUT = 0, 1, 2
# Characters that the twin table needs for all of its columns.
WIDE = 120


def main() -> NoReturn:
    """Entry point: 0, or 2 for bad input, or 1. Errors are one line on standard error."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted; what was recorded so far is kept and marked incomplete")
        sys.exit(FAILED)
    except ValueError as error:
        if not _is_bad_input(error):
            raise
        _complain(str(error))
        sys.exit(BAD_INPUT)
    except FileExistsError as error:
        _complain(str(error))
        sys.exit(BAD_INPUT)
    except Exception as error:
        if not _is_failed_run(error):
            raise
        _complain(str(error))
        sys.exit(FAILED)
    sys.exit(OK)


_BAD_INPUT_ERRORS = {
    "ExperimentError",
    "FitError",
    "PriceError",
    "ProfileError",
    "ReportError",
    "ScenarioError",
}


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _complain(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _is_bad_input(error: ValueError) -> bool:
    """Every folder has an error of its own for what its users got wrong; they are told by name, so none is imported here."""
    return any(kind.__name__ in _BAD_INPUT_ERRORS for kind in type(error).__mro__)


def _is_failed_run(error: Exception) -> bool:
    from simulation.experiments.errors import WorkersLost
    from simulation.kernel.errors import KernelError

    if isinstance(error, (KernelError, WorkersLost)):
        return True
    from loadtests.stack import StackError
    from loadtests.swarm import SwarmError

    return isinstance(error, (SwarmError, StackError))


# Commands that live with what they command: name -> (module, attribute, one line of help), imported when called.
_ELSEWHERE: dict[str, tuple[str, str, str]] = {
    "cache": (
        "reference_impl.caches.evaluation",
        "cache",
        "Tell how right the semantic cache is.",
    ),
    "capacity": (
        "simulation.experiments.commands",
        "capacity",
        "Find the largest load, or the smallest fleet, that keeps the promises.",
    ),
    "compare": (
        "simulation.experiments.commands",
        "compare",
        "Compare variants under the same requests, and rank what can be told apart.",
    ),
    "db": (
        "reference_impl.database.commands",
        "db",
        "Advise on indexes, batches and the pool of a PostgreSQL database.",
    ),
    "ledger": (
        "reference_impl.database.commands",
        "ledger",
        "Show what the ledger says was spent, by key, model and day.",
    ),
    "profile": (
        "simulation.experiments.profile_commands",
        "profile",
        "Fit an endpoint profile to measured calls.",
    ),
    "replications": (
        "simulation.experiments.commands",
        "replications",
        "Repeat a simulation until its figures are as precise as asked.",
    ),
    "sensitivity": (
        "simulation.experiments.commands",
        "sensitivity",
        "Tell which uncertain inputs matter (Morris or Sobol).",
    ),
    "sweep": (
        "simulation.experiments.commands",
        "sweep",
        "Simulate a grid or a list of points over any fields of a scenario.",
    ),
}


class _LazyGroup(click.Group):
    """A group some of whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _ELSEWHERE:
            return super().get_command(ctx, name)
        module, attribute, _ = _ELSEWHERE[name]
        if module == "simulation.experiments.commands":
            ctx.obj = _edge()
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        rows = []
        for name in self.list_commands(ctx):
            if name in _ELSEWHERE:
                rows.append((name, _ELSEWHERE[name][2]))
            elif (command := super().get_command(ctx, name)) is not None:
                rows.append((name, command.get_short_help_str(limit=80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="twinload")
def cli() -> None:
    """Load tests and capacity simulation for applications that run on LLM calls."""


_scenario = click.argument("scenario")
_set = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Replace a field of the scenario; repeatable.",
)
_trace = click.option(
    "--trace", type=click.Path(path_type=Path), help="Replay a recorded trace instead."
)
_speed = click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Play the trace so many times as fast.",
)
_limit = click.option(
    "--limit", type=click.IntRange(1), help="Only the first so many requests of the trace."
)
_seed = click.option("--seed", type=click.IntRange(0), help="Seed of every draw.")
_out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run; default: runs/NAME-WORLD-TIME.",
)
_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object and nothing else on standard output.",
)


@cli.command()
@_json
def scenarios(as_json: bool) -> None:
    """List the scenarios that come with twinload."""
    from simulation.scenario.spec import presets

    found = presets()
    if as_json:
        _print_json({"scenarios": [{"name": n, "description": d} for n, d in found.items()]})
    else:
        _print_rows("Scenarios", ("name", "what it is"), found.items())


@cli.command()
@_scenario
@_set
@_trace
@_speed
@_limit
@_seed
@_out
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    help="A live run: its requests, at the instants it really sent them.",
)
@_json
def simulate(
    scenario: str,
    assignments: Sequence[str],
    trace: Path | None,
    speed: float,
    limit: int | None,
    seed: int | None,
    out: Path | None,
    replay: Path | None,
    as_json: bool,
) -> None:
    """Run SCENARIO (a preset's name or a YAML file) in virtual time."""
    from simulation.experiments.virtual_run import replay_of
    from simulation.scenario.workload import compile_workload

    chosen = _load(scenario, assignments, trace, speed, limit, seed)
    lead_s = 0.0
    if replay is not None:
        workload, lead_s = replay_of(replay)
    else:
        workload = compile_workload(chosen)
    folder = _simulate(
        chosen,
        workload,
        out or _default_folder(chosen.name, "virtual"),
        lead_s=lead_s,
        quiet=as_json,
    )
    _show_run(folder, as_json)


@cli.command()
@_scenario
@_set
@_trace
@_speed
@_limit
@_seed
@_out
@click.option("--target", metavar="URL", help="Swarm this address instead of a stack of our own.")
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    help="Injector processes beside the first.",
)
@click.option("--web", is_flag=True, help="Show Locust's page, on a loopback port.")
@_json
def swarm(
    scenario: str,
    assignments: Sequence[str],
    trace: Path | None,
    speed: float,
    limit: int | None,
    seed: int | None,
    out: Path | None,
    target: str | None,
    workers: int,
    web: bool,
    as_json: bool,
) -> None:
    """Run SCENARIO live: a Locust swarm against a gateway, its instances and a mock of the LLM API.

    With --target, the key for it is read from ANTHROPIC_API_KEY.
    """
    from simulation.scenario.workload import compile_workload

    chosen = _load(scenario, assignments, trace, speed, limit, seed)
    folder = _swarm(
        chosen,
        compile_workload(chosen),
        out or _default_folder(chosen.name, "live"),
        target=target,
        workers=workers,
        web=web,
        quiet=as_json,
    )
    _show_run(folder, as_json)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the report; default: report/ in the last run.",
)
@_json
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write the report of one run, or of a live and a virtual one side by side."""
    paths = _report(runs, out or runs[-1] / "report")
    if as_json:
        from reports.summary import summarise

        _print_json(
            {
                "html": str(paths.html),
                "markdown": str(paths.markdown),
                "runs": [summarise(run) for run in runs],
                "twin": _twin_rows(runs),
            }
        )
        return
    for run in runs:
        _print_verdict(run)
    if len(runs) == 2:
        _print_twin(runs)
    click.echo(f"Report: {paths.html}")


@cli.command()
@_seed
@_out
@_json
def demo(seed: int | None, out: Path | None, as_json: bool) -> None:
    """The main job in about a minute: one scenario live and virtual, and the report that compares them."""
    from simulation.experiments.virtual_run import replay_of
    from simulation.scenario.workload import compile_workload

    chosen = _load("demo", (), None, 1.0, None, seed)
    folder = out or _default_folder("demo", "twin")
    if not as_json:
        click.echo(f"{chosen.name}: {chosen.description}")
    live = _swarm(chosen, compile_workload(chosen), folder / "live", quiet=as_json)
    workload, lead_s = replay_of(live)
    virtual = _simulate(chosen, workload, folder / "virtual", lead_s=lead_s, quiet=as_json)
    paths = _report((live, virtual), folder / "report")
    if as_json:
        from reports.summary import summarise

        runs = (live, virtual)
        _print_json(
            {
                "html": str(paths.html),
                "runs": [summarise(run) for run in runs],
                "twin": _twin_rows(runs),
            }
        )
        return
    _print_verdict(live)
    _print_twin((live, virtual))
    click.echo(f"Report: {paths.html}")


@cli.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def mock(arguments: tuple[str, ...]) -> None:
    """Serve the mock of the LLM API on a loopback port (`twinload mock --help`)."""
    from loadtests.mock_llm import main as serve

    serve(list(arguments))


# What the commands share.


def _load(
    name: str,
    assignments: Sequence[str],
    trace: Path | None,
    speed: float,
    limit: int | None,
    seed: int | None,
) -> Scenario:
    from simulation.scenario.spec import load_scenario, parse_overrides, with_trace

    overrides = parse_overrides(assignments)
    if seed is not None:
        overrides["seed"] = seed
    chosen = load_scenario(name, overrides)
    if trace is not None:
        return with_trace(chosen, trace, speed=speed, limit=limit)
    if speed != 1.0 or limit is not None:
        raise click.UsageError("--speed and --limit go with --trace")
    return chosen


def _default_folder(name: str, world: str) -> Path:
    stem = f"{name}-{world}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    folder = Path("runs") / stem
    suffix = 1
    while folder.exists():
        suffix += 1
        folder = Path("runs") / f"{stem}-{suffix}"
    return folder


def _provenance() -> Provenance:
    from loadtests.provenance import commit, machine, now_iso, versions
    from simulation.experiments.virtual_run import Provenance

    return Provenance(
        commit=commit(PACKAGES), versions=versions(), machine=machine(), started_at=now_iso()
    )


def _edge() -> Edge:
    """What only the edge knows, for experiments."""
    from simulation.experiments.edge import Edge

    return Edge(wall_clock=time.monotonic, provenance=_provenance)


def _simulate(
    scenario: Scenario, workload: CompiledWorkload, folder: Path, *, lead_s: float, quiet: bool
) -> Path:
    from simulation.experiments.virtual_run import run_virtual

    with _progress(quiet) as progress:
        bar = progress.add_task(f"simulating {scenario.name}", total=scenario.horizon_s)

        def advance(simulated_s: float, _ended: int) -> None:
            progress.update(bar, completed=min(simulated_s, scenario.horizon_s))

        run_virtual(scenario, workload, folder, _provenance(), lead_s=lead_s, on_progress=advance)
        progress.update(bar, completed=scenario.horizon_s)
    return folder


def _swarm(
    scenario: Scenario,
    workload: CompiledWorkload,
    folder: Path,
    *,
    quiet: bool,
    target: str | None = None,
    workers: int = 0,
    web: bool = False,
) -> Path:
    import os

    from loadtests.swarm import SwarmProgress, run_swarm

    with _progress(quiet) as progress:
        bar = progress.add_task("starting the live system", total=scenario.horizon_s)
        shown = False

        def advance(state: SwarmProgress) -> None:
            nonlocal shown
            if state.web_url and not shown:
                shown = True
                click.echo(f"Locust's page: {state.web_url}", err=True)
            progress.update(
                bar,
                description=f"{state.phase}: {state.requests} requests, {state.failures} failed",
                completed=min(state.t_s, scenario.horizon_s),
            )

        run_swarm(
            scenario,
            workload,
            folder,
            target_url=target,
            api_key=os.environ.get("ANTHROPIC_API_KEY", "") if target else "",
            workers=workers,
            web=web,
            on_progress=advance,
        )
    return folder


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Bars on standard error, where somebody looks at it; they leave nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    if quiet or not console.is_terminal:
        yield progress  # never started: it shows nothing
        return
    with progress:
        yield progress


def _report(runs: Sequence[Path], out: Path) -> ReportPaths:
    from reports.document import build_report

    return build_report(runs, out)


def _show_run(folder: Path, as_json: bool) -> None:
    from reports.summary import summarise

    summary = summarise(folder)
    if as_json:
        _print_json(summary)
        return
    _print_verdict(folder)
    _print_rows("Run", ("figure", "value"), _headline(summary))
    click.echo(f"Run: {folder}\nReport: twinload report {folder}")


def _headline(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from reports.wording import amount

    latency = summary["latency"]
    yield "requests", f"{summary['requests']:,}"
    yield "outcomes", ", ".join(f"{n:,} {k}" for k, n in summary["outcomes"].items())
    yield "throughput", f"{summary['throughput_per_s']:.2f} /s"
    for name in ("p50", "p95", "p99"):
        value = latency.get(f"latency_intended_{name}_s")
        if value is not None:
            yield f"latency {name}", amount(value, "s")
    hits = summary["cache_hit_ratio"]
    yield "cache hits", "no cache" if hits is None else f"{hits:.1%}"
    yield "largest fleet", f"{summary['largest_instances']} instances"
    yield "cost", f"${summary['cost_usd']:.4f}"


def _print_verdict(run: Path) -> None:
    from reports.summary import summarise

    verdict = summarise(run)["verdict"]
    click.echo(f"{verdict['headline']}\n{verdict['action']}")


def _twin_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    import json

    from reports.twin import twin_table

    if len(runs) != 2:
        return []
    rows: list[dict[str, Any]] = json.loads(twin_table(runs[0], runs[1]).to_json(orient="records"))
    return rows


def _print_twin(runs: Sequence[Path]) -> None:
    from reports import tables
    from reports.run import load_run
    from reports.twin import match_runs, twin_table

    live, virtual = (load_run(run) for run in runs)
    match = match_runs(live, virtual)
    table = tables.twin(
        twin_table(live, virtual), (live.world, virtual.world), match.paired, match.replayed
    )
    # On a narrow terminal the last column, the interval, would make every row three lines high.
    columns = len(table.heads) if shutil.get_terminal_size().columns >= WIDE else -1
    _print_rows(table.title, table.heads[:columns], [row[:columns] for row in table.rows])
    for warning in match.warnings:
        click.echo(warning)


def _print_rows(title: str, heads: Sequence[str], rows: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_json(document: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
