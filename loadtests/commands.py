"""`twinload swarm` and `twinload mock`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from loadtests.swarm import SwarmProgress, run_swarm
from simulation.experiments.edge import Edge
from simulation.experiments.run_options import (
    chosen_scenario,
    progress_bars,
    run_options,
    telling_what_is_kept,
)
from simulation.scenario.schema import Scenario
from simulation.scenario.workload import CompiledWorkload, compile_workload

__all__ = ["mock", "run_live_swarm", "swarm"]


@click.command()
@run_options
@click.option("--target", metavar="URL", help="Swarm this address instead of a stack of our own.")
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    help="Injector processes, under a master; 0: one process does everything.",
)
@click.option("--web", is_flag=True, help="Show Locust's page, on a loopback port.")
@click.pass_obj
def swarm(
    edge: Edge,
    scenario: str,
    assignments: Sequence[str],
    trace: Path | None,
    speed: float,
    limit: int | None,
    seed: int | None,
    out: Path | None,
    as_json: bool,
    target: str | None,
    workers: int,
    web: bool,
) -> None:
    """Run SCENARIO live: a Locust swarm against a gateway, its instances and a mock of the LLM API.

    With --target, the key for it is read from ANTHROPIC_API_KEY.
    """
    chosen = chosen_scenario(scenario, assignments, trace, speed, limit, seed)
    workload = compile_workload(chosen)
    folder = out or edge.new_run_folder(chosen.name, "live")
    run_live_swarm(chosen, workload, folder, target=target, workers=workers, web=web, quiet=as_json)
    edge.show_run(folder, as_json=as_json)


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def mock(arguments: tuple[str, ...]) -> None:
    """Serve the mock of the LLM API on a loopback port (`twinload mock --help`)."""
    from loadtests.mock_llm import main as serve

    serve(list(arguments), prog="twinload mock")


def run_live_swarm(
    scenario: Scenario,
    workload: CompiledWorkload,
    folder: Path,
    *,
    quiet: bool,
    target: str | None = None,
    workers: int = 0,
    web: bool = False,
) -> None:
    """Swarm into `folder`, with a bar unless `quiet`."""
    with progress_bars(quiet=quiet) as progress:
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

        with telling_what_is_kept(folder):
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
