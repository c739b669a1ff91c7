"""The experiments' commands: what they print, what they leave on disk, and how they refuse."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from simulation.experiments.command_bench import show_table
from simulation.experiments.commands import COMMANDS
from simulation.experiments.edge import Edge
from simulation.scenario.errors import ScenarioError

SMALL = ["mm1", "--set", "horizon_s=200", "--workers", "1"]
RATE = "workload.arrivals.rate_per_s"
PROMISE = "slos=[{name: answer, metric: latency, quantile: 0.9, limit_s: 6}]"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    group = click.Group(commands={command.name or "": command for command in COMMANDS})
    return CliRunner().invoke(group, arguments, obj=Edge(wall_clock=time.monotonic))


def document(*arguments: str) -> dict[str, object]:
    """The one JSON object on standard output of a command that succeeds."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    parsed: dict[str, object] = json.loads(result.stdout)
    return parsed


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["sweep", *SMALL, "--vary", f"{RATE}=0.2,0.8"], {"points", "runs"}),
        (["replications", *SMALL, "--precision", "0.5"], {"metrics", "reached", "settled"}),
        (
            ["compare", *SMALL, "--variant", "two: deployment.instances.concurrency=2", "-r", "3"],
            {"means", "pairs", "ranking", "verdict"},
        ),
        (
            ["capacity", *SMALL, "--set", PROMISE, "--precision", "0.3"],
            {"value", "beyond", "trials", "verdict"},
        ),
        (
            ["sensitivity", *SMALL, "--factor", f"{RATE}=0.2,0.8", "--samples", "4"],
            {"effects", "noise", "runs"},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_experiment_prints_one_json_object_and_keeps_runs_as_parquet(
    arguments: list[str], keys: set[str]
) -> None:
    found = document(*arguments)
    assert keys | {"experiment", "scenario", "folder"} <= found.keys()
    folder = Path(str(found["folder"]))
    runs = pd.read_parquet(folder / "runs.parquet")
    assert len(runs.drop_duplicates()) == len((folder / "results.jsonl").read_text().splitlines())
    assert {"seed", "latency_mean_s", "status"} <= set(runs.columns)
    assert json.loads((folder / "result.json").read_text()) == found
    # And in words.
    told = invoke(*arguments, "--resume")
    assert told.exit_code == 0
    assert f"Results: {folder}" in told.stdout


def test_the_same_question_has_the_same_folder_and_another_question_another() -> None:
    folders = [
        document("sweep", *SMALL, "--vary", f"{RATE}={rate}", *more)["folder"]
        for rate, more in (("0.2", []), ("0.3", []), ("0.2", ["--resume"]))
    ]
    assert folders[0] == folders[2] != folders[1]


def test_a_second_time_needs_resume_and_then_simulates_nothing() -> None:
    arguments = ["sweep", *SMALL, "--vary", f"{RATE}=0.2,0.8"]
    first = document(*arguments)
    refused = invoke(*arguments)
    assert isinstance(refused.exception, ScenarioError)
    assert "holds results already; --resume goes on" in str(refused.exception)
    journal = Path(str(first["folder"])) / "results.jsonl"
    before = journal.read_bytes()
    assert document(*arguments, "--resume") == first
    assert journal.read_bytes() == before


def test_going_on_with_other_points_is_refused_and_replaces_nothing() -> None:
    arguments = ["sweep", *SMALL, "--out", "kept", "--vary"]
    document(*arguments, f"{RATE}=0.2,0.8")
    before = {path.name: path.read_bytes() for path in Path("kept").iterdir()}
    refused = invoke(*arguments, f"{RATE}=0.3", "--resume")
    assert isinstance(refused.exception, ScenarioError)
    assert "are of other points or options; --out chooses another" in str(refused.exception)
    assert {path.name: path.read_bytes() for path in Path("kept").iterdir()} == before


def test_points_come_from_a_file_too() -> None:
    Path("points.yaml").write_text(f"- {{{RATE}: 0.2}}\n- {{{RATE}: 0.5, seed: 7}}\n")
    found = document("sweep", *SMALL, "--points", "points.yaml")
    runs = pd.read_parquet(Path(str(found["folder"])) / "runs.parquet")
    assert runs["seed"].tolist() == [1, 7]


def test_a_sweep_beyond_capacity_says_so() -> None:
    result = invoke(
        "sweep", "mm1", "--set", "horizon_s=1000", "--workers", "1", "--vary", f"{RATE}=2"
    )
    assert f"{RATE} = 2: beyond capacity: the backlog grows at 0.9" in result.stdout
    assert "(runs: 1 of 1)" in result.stdout


def test_a_wall_clock_limit_cuts_a_run_short() -> None:
    arguments = ["mm1", "--set", "horizon_s=50000", "--workers", "1", "--time-limit", "0.05"]
    result = invoke("sweep", *arguments, "--vary", f"{RATE}=0.5")
    assert "wall_clock_limit_s=0.05 is over" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "mm1", "--vary", "workload.arrivals.rate=1"], "did you mean 'workload.arrivals.rate_per_s'"),
        (["sweep", "mm1", "--vary", "seed"], "expected FIELD.PATH=VALUE"),
        (["sweep", "mm1", "--vary", f"{RATE}=[]"], "no values to vary it over"),
        (["sweep", "mm1", "--points", "missing.yaml"], "missing.yaml: cannot be read"),
        (["sweep", "mn1", "--vary", "seed=1"], "did you mean 'mm1'"),
        (["sweep", "mm1", "--vary", "seed=1", "--metric", "latency_p96_s"], "unknown metric"),
        (["replications", "mm1", "--metric", "latency"], "unknown metric 'latency'"),
        (["compare", "mm1"], "at least two variants"),
        (["compare", "mm1", "--variant", "a"], "expected NAME:FIELD=VALUE"),
        (["compare", "mm1", "--variant", "as is:seed=1"], "the name 'as is' is taken"),
        (["compare", "mm1", "--variant", "a:seed=1", "--warm-up", "mser5"], "one warm-up for all"),
        (["sweep", *SMALL, "--vary", "seed=1", "--warm-up", "500"], "leaves nothing to measure of 200 s"),
        (["compare", *SMALL, "--variant", "a:seed=1", "--warm-up", "200"], "leaves nothing to measure"),
        (["capacity", "mm1"], "has no slos"),
        (["sensitivity", "mm1", "--factor", "seed=1"], "expected LOW,HIGH"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_no_folder(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, ScenarioError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not Path("experiments").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "mm1"],
        ["sweep", "mm1", "--vary", "seed=1", "--points", "x"],
        ["capacity", "mm1", "--largest", "a", "--fewest", "b"],
        ["sweep", "mm1", "--vary", "seed=1", "--warm-up", "-3"],
        ["sweep", "mm1", "--vary", "seed=1", "--warm-up", "soon"],
    ],
)
def test_options_that_do_not_fit_together_are_a_usage_error(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_a_difference_that_cannot_matter_is_called_so_and_asks_for_no_more_runs() -> None:
    variant = "slow: network.client_gateway_s={kind: constant, value: 1e-9}"
    arguments = ["compare", *SMALL, "--variant", variant, "-r", "3"]
    found: Any = document(*arguments)
    (pair,) = found["pairs"]
    assert 0 < pair["difference"] < 1e-6
    assert pair["runs needed"] is None
    (sentence,) = found["verdict"]
    assert "make no difference that matters: latency_mean_s differs by at most " in sentence
    assert "Differences in latency_mean_s, 95% together" in invoke(*arguments, "--resume").stdout


WIDE = pd.DataFrame(
    {"workload.arrivals.rate_per_s": [0.25], **{f"a_long_heading_{i}_s": [i / 8] for i in range(9)}}
)


def test_a_table_without_a_terminal_is_as_wide_as_it_has_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_table("Wide", WIDE)
    lines = capsys.readouterr().out.splitlines()
    (heading,) = [line for line in lines if "rate_per_s" in line]
    assert all(f"a_long_heading_{i}_s" in heading for i in range(9))


def test_a_table_wider_than_the_terminal_goes_on_below_with_every_word_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    show_table("Wide", WIDE)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 80
    words = out.split()
    assert all(words.count(f"a_long_heading_{i}_s") == 1 for i in range(9))
    assert words.count("rate_per_s") == words.count("0.25") - 1 > 1  # and a figure of 0.25
