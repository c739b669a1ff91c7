"""The command line: what it prints, and what it says to bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

import twinload
from reference_impl.telemetry.run_folder import read_requests
from simulation.experiments.run_options import telling_what_is_kept
from simulation.scenario.manifest import Manifest

TRACE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Command = Callable[..., Result]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs `twinload ...` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TWINLOAD_QUEUE", raising=False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["twinload", *arguments])
        with pytest.raises(SystemExit) as exit_:
            twinload.main()
        for number, handler in before.items():
            signal.signal(number, handler)
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Result(exit_.value.code, printed.out, printed.err)

    return run


def test_simulate_prints_one_json_object_and_nothing_else(command: Command) -> None:
    result = command("simulate", "demo", "--set", "horizon_s=5", "--json")
    assert (result.status, result.err) == (0, "")
    assert result.document["world"] == "virtual"
    assert result.document["outcomes"] == {"ok": result.document["requests"]}


def test_a_run_with_a_batch_says_what_became_of_it(command: Command) -> None:
    batch = "workload.batches=[{requests: 7, poll_s: 1}]"
    queue = ("deployment.queue.broker=redis", "deployment.database.ledger=sqlite")
    settings = [part for text in ("horizon_s=5", batch, *queue) for part in ("--set", text)]
    result = command("simulate", "demo", *settings, "--out", "run")
    assert result.status == 0
    assert "batch 0" in result.out
    assert "7 ok" in result.out


def test_a_run_lands_in_a_folder_of_its_own_and_can_be_reported(
    command: Command, tmp_path: Path
) -> None:
    command("simulate", "demo", "--set", "horizon_s=5", "--out", "run")
    result = command("report", "run", "--json")
    assert result.status == 0
    assert Path(result.document["html"]).read_text().lower().startswith("<!doctype html>")
    assert Manifest.read(tmp_path / "run").complete


def test_every_request_of_a_trace_is_accounted_for(command: Command, tmp_path: Path) -> None:
    rows = [
        f"2023-11-16 18:17:{i // 10:02d}.{i % 10}000000,{100 + i},{5 + i % 7}\n" for i in range(300)
    ]
    (tmp_path / "trace.csv").write_text(TRACE_HEAD + "".join(rows))
    # chat asks popular questions again, with the lengths of the first time; here every row is its own.
    distinct = ("--set", "workload.prompts={kind: distinct}")
    trace = ("--trace", "trace.csv", "--speed", "2")
    result = command("simulate", "chat", *distinct, *trace, "--json", "--out", "run")
    assert sum(result.document["outcomes"].values()) == 300
    requests = read_requests(tmp_path / "run").sort_values("request_id")
    assert requests["input_tokens"].tolist() == [100 + i for i in range(300)]
    assert requests["intended_s"].max() == pytest.approx(29.9 / 2)


def test_the_shipped_scenarios_are_listed_with_what_they_are(command: Command) -> None:
    listed = {
        s["name"]: s["description"] for s in command("scenarios", "--json").document["scenarios"]
    }
    assert {"demo", "chat"} <= listed.keys()
    assert all(listed.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "caht"], "caht"),
        (
            ["simulate", "demo", "--set", "deployment.instances.initial=0"],
            "deployment.instances.initial",
        ),
        (
            ["simulate", "chat", "--set", "workload.arrivals.rate_per_s=-1"],
            "workload.arrivals.rate_per_s",
        ),
        (["simulate", "demo", "--set", "horizon_s=soon"], "horizon_s"),
        (["simulate", "demo", "--set", "horizon=5"], "horizon"),
        (["simulate", "demo", "--set", "foo=1"], "'foo': expected one of name, description, dep"),
        (["simulate", "demo", "--set", "deployment.foo=1"], "did you mean 'deployment."),
        (["simulate", "demo", "--set", "seed.x=1"], "seed holds a value and no fields"),
        (["simulate", "demo", "--seed", "x"], "integer range; see twinload simulate --help"),
        (["simulate", "missing.yaml"], "missing.yaml: no such file"),
        (["simulate", "no/file"], "no/file: no such file"),
        (["simulate", "."], ".: a folder"),
        (["mock", "--nonsense"], "--nonsense; see twinload mock --help"),
        (["nonsense"], "No such command 'nonsense'; see twinload --help"),
        (["simulate", "demo", "--set", "horizon_s"], "FIELD.PATH=VALUE"),
        (["simulate", "demo", "--speed", "2"], "--trace"),
        (["simulate", "demo", "--trace", "nowhere.csv"], "nowhere.csv"),
        (["simulate", "demo", "--trace", "broken.csv"], "line 3"),
        (["simulate", "demo", "--replay", "nowhere"], "nowhere"),
        (["simulate"], "SCENARIO"),
        (["report", "nowhere"], "nowhere"),
        (["swarm", "demo", "--workers", "-1"], "--workers"),
        (["services", "up", "redis"], "'redis' is not one of 'valkey', 'postgres', 'rabbitmq'"),
        (["services", "up", "valkey", "--folder", "broken.csv"], "broken.csv"),
        (["services", "up", "valkey", "--folder", "broken.csv/below"], "broken.csv"),
        (["queue", "status"], "TWINLOAD_QUEUE"),
        (["queue", "status", "--queue", "memory://"], "name a broker"),
        (["queue", "status", "--queue", "sqs://somewhere"], "expected amqp"),
        (["queue", "dead", "--queue", "redis://127.0.0.1:1/"], "no broker at redis://127.0.0.1:1/"),
        (["queue", "dead", "--queue", "amqp://127.0.0.1:1/"], "no broker at amqp://127.0.0.1:1/"),
        (["queue", "dead", "--queue", "kafka://127.0.0.1:1"], "no broker at kafka://127.0.0.1:1"),
        (["queue", "replay", "--queue", "redis://127.0.0.1:1/", "--limit", "0"], "--limit"),
        (["queue", "status", "--queue", "redis://127.0.0.1:1/", "--capacity", "9"], "RabbitMQ"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=" ".join,
)
def test_bad_input_gets_a_line_that_names_it_and_status_2(
    command: Command, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "broken.csv").write_text(
        TRACE_HEAD + "2023-11-16 18:17:03.9799600,4808,10\nsoon,1,2\n"
    )
    result = command(*arguments)
    assert result.status == 2
    assert said in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "chat", "--out", "/proc/foo"], "/proc/foo: no such file or folder"),
        (["simulate", "chat", "--out", "file"], "file: a file stands where a folder is wanted"),
        (["simulate", "chat", "--out", "file/x"], "file/x: a file stands where a folder is"),
        (["demo", "--json", "--out", "file"], "file/live: cannot be written"),
        (["sweep", "mm1", "--vary", "seed=1", "--out", "/proc/x"], "/proc/x: no such file or"),
        (["sweep", "mm1", "--points", "empty.json"], "empty.json: expected a list of one or more"),
        (["profile", "fit", "calls.csv", "--out", "nodir/x"], "nodir/x: no such file or folder"),
        (["profile", "fit", "calls.csv", "--out", "folder"], "folder: a folder stands where a"),
        (["profile", "fit", "binary.yaml"], "binary.yaml: not text in UTF-8"),
        (["cache", "evaluate", "--figure", "nodir/x.png"], "nodir/x.png: no such file or folder"),
        (["mock", "--log", "/proc/x"], "--log /proc/x: No such file or directory"),
        (["simulate", "demo", "--replay", "junk"], "junk: not a run that can be replayed"),
    ],
    ids=" ".join,
)
def test_a_path_that_cannot_be_used_is_one_line_with_advice_before_any_work(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    async def never(*_arguments: object) -> None:
        pytest.fail("evaluated before the path was looked at")

    monkeypatch.setattr("reference_impl.caches.evaluation.evaluate", never)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "binary.yaml").write_bytes(b"\x80\xff\x00")
    calls = "".join(f"{100 + i},{20 + i},0.5,{2 + i / 10}\n" for i in range(30))
    (tmp_path / "calls.csv").write_text("input_tokens,output_tokens,ttft_s,duration_s\n" + calls)
    if "junk" in arguments:
        command("simulate", "demo", "--set", "horizon_s=2", "--out", "junk")
        with (tmp_path / "junk" / "events.jsonl").open("a") as events:
            events.write("junk\n")
    before = sorted(tmp_path.rglob("*"))
    result = command(*arguments)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert said in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "./shadow"],
        ["simulate", "demo", "--trace", "shadow"],
        ["simulate", "demo", "--set", "endpoint=./shadow"],
        ["sweep", "mm1", "--points", "shadow"],
        ["profile", "fit", "shadow"],
        ["mock", "--profile", "./shadow"],
        ["mock", "--keys", "shadow"],
        ["mock", "--limits", "./shadow"],
    ],
    ids=" ".join,
)
def test_a_file_of_something_else_is_refused_without_showing_what_is_in_it(
    command: Command, tmp_path: Path, arguments: list[str]
) -> None:
    lines = ["root:$6$salt$secret:19000:0:99999:7:::", "mail:*:19000:0:99999:7:::"]
    (tmp_path / "shadow").write_text("\n".join(lines) + "\n")
    result = command(*arguments)
    assert result.status == 2
    assert "shadow: " in result.err
    assert not {"root", "secret", "99999"} & set(re.split(r"\W+", result.err))


def test_the_mocks_help_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["twinload", "mock", "--help"])
    with pytest.raises(SystemExit) as ended:
        twinload.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: twinload mock ")


def test_a_run_is_never_written_over_another(command: Command, tmp_path: Path) -> None:
    command("simulate", "demo", "--set", "horizon_s=2", "--out", "run")
    before = read_requests(tmp_path / "run")
    result = command("simulate", "demo", "--set", "horizon_s=3", "--out", "run")
    assert result.status == 2
    assert "already holds a run" in result.err
    assert read_requests(tmp_path / "run").equals(before)


@pytest.mark.parametrize(
    "left", ["manifest.json", "workload.npz", "raw", "events.jsonl", "requests.parquet.partial"]
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "demo", "--set", "horizon_s=2"),
        ("swarm", "demo", "--set", "horizon_s=2"),
        ("sweep", "mm1", "--vary", "seed=1", "--workers", "1"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_with_anything_of_a_run_is_refused_and_left_as_it_is(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], left: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("of a run that was killed")
    result = command(*arguments, "--out", "run")
    assert (result.status, result.out) == (2, "")
    assert f"run already holds a run ({left}); name another folder" in result.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [left]
    assert (tmp_path / "run" / left).read_text() == "of a run that was killed"


@pytest.mark.parametrize("kind", ["redis_outage", "database_outage", "broker_outage"])
def test_a_fault_that_does_not_fit_names_the_scenario_and_leaves_the_folder_free(
    command: Command, tmp_path: Path, kind: str
) -> None:
    mine = "workload: {arrivals: {kind: constant, rate_per_s: 1}}\nhorizon_s: 2\n"
    (tmp_path / "mine.yaml").write_text(f"{mine}faults: [{{kind: {kind}, at_s: 1}}]\n")
    result = command("simulate", "mine.yaml", "--out", "run")
    assert result.status == 2
    assert result.err.startswith("error: mine.yaml: faults.0: there is no ")
    (tmp_path / "mine.yaml").write_text(mine)
    assert command("simulate", "mine.yaml", "--out", "run").status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_simulation_keeps_what_it_recorded_and_is_marked_incomplete(
    tmp_path: Path, number: signal.Signals
) -> None:
    # Whoever runs the tests may ignore it (nohup), and a child inherits that.
    former = signal.signal(number, signal.SIG_DFL)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "twinload",
            "simulate",
            "chat",
            "--set",
            "horizon_s=86400",
            "--out",
            "run",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(number, former)
    partial = tmp_path / "run" / "requests.parquet.partial"
    try:
        # The first batch of rows is on disk when the file has grown beyond its magic number.
        while not (partial.exists() and partial.stat().st_size > 10_000):
            assert process.poll() is None, process.communicate()
            os.sched_yield()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    said = "interrupted; what was recorded so far is kept in run and marked incomplete"
    assert err.strip() == f"error: {said}"
    assert not Manifest.read(tmp_path / "run").complete
    assert len(read_requests(tmp_path / "run")) > 1000


def interrupt(*_arguments: object, **_more: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "work", "said"),
    [
        (["simulate", "demo", "--out", "run"], "simulation.experiments.run_commands.compile_workload", ""),
        (["simulate", "demo", "--out", "run"], "simulation.experiments.virtual_run.check_unused", "; nothing had begun, so nothing is kept"),
        (["sweep", "mm1", "--vary", "seed=1", "--out", "run"], "simulation.experiments.commands.run_sweep", "; no run had finished, so nothing is kept"),
        (["ledger", "--database", "ledger.db"], "reference_impl.database.commands.reader_of_dsn", ""),
    ],
)  # fmt: skip
def test_an_interrupt_before_anything_was_written_promises_nothing(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    work: str,
    said: str,
) -> None:
    monkeypatch.setattr(work, interrupt)
    result = command(*arguments)
    assert (result.status, result.out) == (1, "")
    assert result.err.strip() == f"error: interrupted{said}"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_sweep_says_where_its_finished_runs_are(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulation.experiments.sweep import sweep

    def cut_short(*arguments: Any, **more: Any) -> NoReturn:
        sweep(*arguments, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr("simulation.experiments.commands.run_sweep", cut_short)
    arguments = ("--set", "horizon_s=20", "--vary", "seed=1,2", "--workers", "1", "--out", "kept")
    result = command("sweep", "mm1", *arguments)
    assert result.status == 1
    said = "interrupted; finished runs (2) are kept in kept; --resume goes on"
    assert result.err.strip() == f"error: {said}"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ([], "nothing had begun, so nothing is kept"),
        (["manifest.json"], "no request had been sent; run holds what was written until then"),
        (
            ["manifest.json", "requests.parquet"],
            "what was recorded so far is kept in run and marked incomplete",
        ),
    ],
)
def test_an_interrupted_run_says_what_is_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in written:
        Path("run", name).touch()
    with pytest.raises(KeyboardInterrupt) as interrupted, telling_what_is_kept(Path("run")):
        raise KeyboardInterrupt
    assert str(interrupted.value) == said
