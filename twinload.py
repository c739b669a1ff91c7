"""twinload, the command line: the only file that knows every folder. Each command imports what it needs when it runs."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# Installed, the folders with generic names stand in a private one beside this module; in a checkout, beside it. Either
# goes first, so that a user's own `simulation/` or `reports/` can neither shadow them nor be shadowed outside this process
# (docs/decisions/0001-one-private-folder.md).
_PRIVATE = Path(__file__).resolve().parent / "_twinload"
PACKAGES = _PRIVATE if _PRIVATE.is_dir() else _PRIVATE.parent
sys.path.insert(0, str(PACKAGES))

import click  # noqa: E402 - after the path is set

if TYPE_CHECKING:
    from simulation.experiments.edge import Edge
    from simulation.experiments.virtual_run import Provenance

OK, FAILED, BAD_INPUT = 0, 1, 2


def main() -> NoReturn:
    """Entry point: 0, or 2 for bad input, or 1. Errors are one line on standard error."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        cli.main(prog_name="twinload", standalone_mode=False)
    except click.ClickException as error:
        _show(error)
        sys.exit(BAD_INPUT)
    except (click.Abort, KeyboardInterrupt) as error:
        # What is kept, if anything, is said by the command that was at work; click hides that behind its own.
        kept = str(error.__cause__ or error)
        _complain(f"interrupted; {kept}" if kept else "interrupted")
        sys.exit(FAILED)
    except ValueError as error:
        if not _is_bad_input(error):
            raise
        _complain(str(error))
        sys.exit(BAD_INPUT)
    except OSError as error:
        # With a file's name it is about a path that somebody gave; one without comes from elsewhere.
        if error.filename is None and not isinstance(error, FileExistsError):
            raise
        _complain(_about_a_path(error))
        sys.exit(BAD_INPUT)
    except Exception as error:
        if not _is_failed_run(error):
            raise
        _complain(str(error))
        sys.exit(BAD_INPUT if getattr(error, "is_bad_input", False) else FAILED)
    sys.exit(OK)


_BAD_INPUT_ERRORS = {
    "ExperimentError",
    "FitError",
    "PriceError",
    "ProfileError",
    "ReportError",
    "ScenarioError",
    "SwarmRefused",
}


def _interrupt(number: int, _frame: object) -> NoReturn:
    # Shell and kernel both say that the terminal is closed: the second word would break into what the first one began.
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _show(error: click.ClickException) -> None:
    """What was wrong; of options and arguments, also where they are described. The help, where nothing was asked for."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    elif context is None:
        _complain(error.format_message())
    else:
        _complain(f"{error.format_message().rstrip('.')}; see {context.command_path} --help")


def _complain(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _about_a_path(error: OSError) -> str:
    """The path, what is wrong with it and what to do; a message of ours as it is."""
    if error.filename is None:
        return str(error)
    advice = _PATH_ADVICE.get(error.errno or 0, f"{error.strerror}; name another path")
    return f"{os.fsdecode(error.filename)}: {advice}"


_PATH_ADVICE = {
    errno.EEXIST: "a file stands where a folder is wanted; name another folder",
    errno.ENOTDIR: "a file stands where a folder is wanted; name another folder",
    errno.EISDIR: "a folder stands where a file is wanted; name another file",
    errno.ENOENT: "no such file or folder, and it cannot be made there; name another path",
    errno.EACCES: "no permission; name a path that you may use",
    errno.EPERM: "no permission; name a path that you may use",
    errno.EROFS: "the file system is read-only; name another path",
    errno.ENOSPC: "no space is left on the disk; make some, or name another path",
}


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
    "mock": (
        "loadtests.commands",
        "mock",
        "Serve the mock of the LLM API on a loopback port.",
    ),
    "profile": (
        "simulation.experiments.profile_commands",
        "profile",
        "Fit an endpoint profile to measured calls.",
    ),
    "queue": (
        "reference_impl.queues.commands",
        "queue",
        "Show what waits in a queue of tasks, and replay its dead letters.",
    ),
    "replications": (
        "simulation.experiments.commands",
        "replications",
        "Repeat a simulation until its figures are as precise as asked.",
    ),
    "report": (
        "reports.commands",
        "report",
        "Write the report of one run, or of a live and a virtual one side by side.",
    ),
    "scenarios": (
        "simulation.experiments.run_commands",
        "scenarios",
        "List the scenarios that come with twinload.",
    ),
    "sensitivity": (
        "simulation.experiments.commands",
        "sensitivity",
        "Tell which uncertain inputs matter (Morris or Sobol).",
    ),
    "services": (
        "reference_impl.live.services.commands",
        "services",
        "Start, stop and show private servers: Valkey, PostgreSQL, RabbitMQ.",
    ),
    "simulate": (
        "simulation.experiments.run_commands",
        "simulate",
        "Run a scenario in virtual time.",
    ),
    "swarm": (
        "loadtests.commands",
        "swarm",
        "Run a scenario live: a Locust swarm against gateway, instances and mock.",
    ),
    "sweep": (
        "simulation.experiments.commands",
        "sweep",
        "Simulate a grid or a list of points over any fields of a scenario.",
    ),
}


# Modules whose commands need an `Edge`.
_AT_THE_EDGE = frozenset(
    {"loadtests.commands", "simulation.experiments.commands", "simulation.experiments.run_commands"}
)


class _LazyGroup(click.Group):
    """A group some of whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _ELSEWHERE:
            return super().get_command(ctx, name)
        module, attribute, _ = _ELSEWHERE[name]
        if module in _AT_THE_EDGE:
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


@cli.command(short_help="Run one scenario live and virtual, and compare them, in a minute.")
@click.option("--seed", type=click.IntRange(0), help="Seed of every draw.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of both runs and the report; default: runs/demo-twin-TIME.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object and nothing else on standard output.",
)
def demo(seed: int | None, out: Path | None, as_json: bool) -> None:
    """The main job in about a minute: one scenario live and virtual, and the report that compares them."""
    from loadtests.commands import run_live_swarm
    from reports.console import show_reports
    from reports.document import build_report
    from simulation.experiments.run_commands import run_in_virtual_time
    from simulation.experiments.run_options import chosen_scenario
    from simulation.experiments.virtual_run import replay_of
    from simulation.scenario.workload import compile_workload

    chosen = chosen_scenario("demo", seed=seed)
    folder = out or _new_run_folder("demo", "twin")
    live, virtual = folder / "live", folder / "virtual"
    if not as_json:
        click.echo(f"{chosen.name}: {chosen.description}")
    run_live_swarm(chosen, compile_workload(chosen), live, quiet=as_json)
    workload, lead_s = replay_of(live)
    run_in_virtual_time(_edge(), chosen, workload, virtual, lead_s=lead_s, quiet=as_json)
    paths = build_report((live, virtual), folder / "report")
    show_reports((live, virtual), paths, as_json=as_json)


def _edge() -> Edge:
    """What only this file knows: the clock on the wall, where this code comes from, and who can tell of a run."""
    from simulation.experiments.edge import Edge

    return Edge(
        wall_clock=time.monotonic,
        provenance=_provenance,
        new_run_folder=_new_run_folder,
        show_run=_show_run,
    )


def _provenance() -> Provenance:
    from loadtests.provenance import commit, machine, now_iso, versions
    from simulation.experiments.virtual_run import Provenance

    return Provenance(
        commit=commit(PACKAGES), versions=versions(), machine=machine(), started_at=now_iso()
    )


def _new_run_folder(name: str, world: str) -> Path:
    stem = f"{name}-{world}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    folder = Path("runs") / stem
    suffix = 1
    while folder.exists():
        suffix += 1
        folder = Path("runs") / f"{stem}-{suffix}"
    return folder


def _show_run(folder: Path, *, as_json: bool) -> None:
    from reports.console import show_run

    show_run(folder, as_json=as_json)


if __name__ == "__main__":
    main()
