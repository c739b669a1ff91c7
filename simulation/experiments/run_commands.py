"""`twinload scenarios` and `twinload simulate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import pandas as pd

from simulation.experiments.command_bench import show_table
from simulation.experiments.command_options import json_option
from simulation.experiments.edge import Edge
from simulation.experiments.run_options import (
    chosen_scenario,
    progress_bars,
    run_options,
    telling_what_is_kept,
)
from simulation.experiments.virtual_run import replay_of, run_virtual
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import presets
from simulation.scenario.workload import CompiledWorkload, compile_workload

__all__ = ["run_in_virtual_time", "scenarios", "simulate"]


@click.command()
@json_option
def scenarios(as_json: bool) -> None:
    """List the scenarios that come with twinload."""
    found = presets()
    if as_json:
        rows = [{"name": name, "description": text} for name, text in found.items()]
        click.echo(json.dumps({"scenarios": rows}, indent=2))
    else:
        show_table("Scenarios", pd.DataFrame(found.items(), columns=["name", "what it is"]))


@click.command()
@run_options
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    help="A live run: its requests, at the instants it really sent them.",
)
@click.pass_obj
def simulate(
    edge: Edge,
    scenario: str,
    assignments: Sequence[str],
    trace: Path | None,
    speed: float,
    limit: int | None,
    seed: int | None,
    out: Path | None,
    as_json: bool,
    replay: Path | None,
) -> None:
    """Run SCENARIO (a preset's name or a YAML file) in virtual time."""
    chosen = chosen_scenario(scenario, assignments, trace, speed, limit, seed)
    if replay is not None:
        workload, lead_s = replay_of(replay)
    else:
        workload, lead_s = compile_workload(chosen), 0.0
    folder = out or edge.new_run_folder(chosen.name, "virtual")
    run_in_virtual_time(edge, chosen, workload, folder, lead_s=lead_s, quiet=as_json)
    edge.show_run(folder, as_json=as_json)


def run_in_virtual_time(
    edge: Edge,
    scenario: Scenario,
    workload: CompiledWorkload,
    folder: Path,
    *,
    lead_s: float,
    quiet: bool,
) -> None:
    """Simulate into `folder`, with a bar unless `quiet`."""
    with progress_bars(quiet=quiet) as progress:
        bar = progress.add_task(f"simulating {scenario.name}", total=scenario.horizon_s)

        def advance(simulated_s: float, _ended: int) -> None:
            progress.update(bar, completed=min(simulated_s, scenario.horizon_s))

        with telling_what_is_kept(folder):
            run_virtual(
                scenario, workload, folder, edge.provenance(), lead_s=lead_s, on_progress=advance
            )
        progress.update(bar, completed=scenario.horizon_s)
