"""Real Locust against real servers: open loop in truth, every arrival accounted for, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from loadtests.child_process import PACKAGES, ChildProcess, python_module
from loadtests.preflight import SwarmRefused
from loadtests.swarm import SwarmError, SwarmOptions, SwarmProgress, run_swarm
from reference_impl.messages import RequestTag
from reference_impl.telemetry import STAGES
from reference_impl.telemetry.run_folder import read_requests, read_stations
from simulation.scenario.manifest import Manifest
from simulation.scenario.spec import override
from simulation.scenario.workload import CompiledWorkload, compile_workload
from tests.loadtests.run_one import SYSTEM
from tests.loadtests.workloads import small

QUICK = SwarmOptions(start_delay_s=0.3)
LIMIT_S = 20.0


@contextmanager
def tiny_server(folder: Path, *options: str) -> Iterator[str]:
    server = ChildProcess("tiny", python_module("tests.loadtests.tiny_server", *options), folder)
    try:
        yield server.wait_ready(LIMIT_S)["ready"]
    finally:
        server.stop(2.0)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)


def press(url: str, form: bytes = b"") -> None:
    """Post a form, as a button of Locust's page does."""
    with urllib.request.urlopen(url, form, timeout=5):
        pass


def seen_ids(url: str) -> list[int]:
    """The requests that the server has answered, by their tags, sorted."""
    return sorted(RequestTag.decode(seen["tag"]).request_id for seen in get(f"{url}/seen"))


def descendants(*words: str) -> list[psutil.Process]:
    """Running descendants of this process whose command has all these words."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and set(words) <= set(process.cmdline())
    ]


def p99(frame: pd.DataFrame, end: str, start: str) -> float:
    return float(np.quantile(frame[end] - frame[start], 0.99))


def against_tiny(
    folder: Path,
    rate_per_s: float,
    horizon_s: float,
    *server: str,
    options: SwarmOptions = QUICK,
    **more: Any,
) -> tuple[CompiledWorkload, pd.DataFrame, list[int]]:
    """The workload, the rows and the ids that the server saw."""
    scenario = small(f"{{kind: poisson, rate_per_s: {rate_per_s}}}", horizon_s=horizon_s)
    workload = compile_workload(scenario)
    with tiny_server(folder, *server) as url:
        out = run_swarm(scenario, workload, folder / "run", target_url=url, options=options, **more)
        return workload, read_requests(out), seen_ids(url)


@pytest.mark.serial
def test_a_stall_of_the_server_shows_as_the_latency_that_users_had(tmp_path: Path) -> None:
    _, rows, _ = against_tiny(tmp_path, 100, 3.0, "--stall-at-s", "0.5", "--stall-s", "2")
    assert set(rows["outcome"]) == {"ok"}
    assert 1.7 < p99(rows, "done_s", "intended_s") < 2.5
    # Those who came during the stall, two thirds of all, waited for its end: half of them for more than a second.
    waited = (rows["done_s"] - rows["intended_s"] > 1.0).mean()
    assert 0.25 < waited < 0.45
    assert p99(rows, "sent_s", "intended_s") < 0.1, "the injector did not wait with them"


@pytest.mark.serial
def test_the_lag_is_small_at_200_requests_a_second_and_every_arrival_is_accounted_for(
    tmp_path: Path,
) -> None:
    workload, rows, seen = against_tiny(tmp_path, 200, 2.0)
    assert rows["request_id"].tolist() == seen == list(range(len(workload)))
    np.testing.assert_allclose(rows["intended_s"], workload.intended_s, atol=1e-6)
    assert p99(rows, "sent_s", "intended_s") < 0.025
    assert (rows["intended_s"] <= rows["sent_s"]).all()
    assert (rows["sent_s"] <= rows["first_token_s"]).all()
    assert (rows["first_token_s"] <= rows["done_s"]).all()
    manifest = Manifest.read(tmp_path / "run")
    assert (manifest.world, manifest.complete, manifest.validity["valid"]) == ("live", True, True)
    assert manifest.workload_sha256 == workload.sha256


def test_two_workers_send_every_request_exactly_once(tmp_path: Path) -> None:
    workload, rows, seen = against_tiny(tmp_path, 100, 1.5, workers=2)
    assert rows["request_id"].tolist() == seen == list(range(len(workload)))
    shares = [
        len(path.read_bytes().splitlines())
        for path in sorted((tmp_path / "run" / "raw").glob("client-*.jsonl"))
    ]
    n = len(workload)
    assert shares == [n - n // 2, n // 2]


def test_a_lost_worker_ends_the_run_with_a_message_and_its_arrivals_are_missed(
    tmp_path: Path,
) -> None:
    def kill_one(progress: SwarmProgress) -> None:
        if progress.phase == "running" and progress.t_s > 0.3:
            for worker in descendants("--worker")[:1]:
                worker.kill()

    with pytest.raises(SwarmError, match=r"locust-worker-\d died \(signal SIGKILL\)") as caught:
        against_tiny(tmp_path, 50, 10.0, workers=2, on_progress=kill_one)
    manifest = Manifest.read(tmp_path / "run")
    assert caught.value.folder == tmp_path / "run"
    assert manifest.complete is False
    assert "locust-worker" in manifest.notes[0]
    assert len(read_requests(tmp_path / "run")) > 0, "what was recorded is kept"
    assert descendants("locust") == []


def test_the_page_shows_times_to_first_token_without_counting_them_as_requests(
    tmp_path: Path,
) -> None:
    shown: list[dict[str, Any]] = []
    pages: list[str] = []

    def look(progress: SwarmProgress) -> None:
        if progress.phase == "finished":
            shown.append(get(f"{progress.web_url}/stats/requests"))
            with urllib.request.urlopen(progress.web_url, timeout=5) as response:
                pages.append(response.read().decode())
            # The page's own start button replays nothing a second time.
            press(f"{progress.web_url}/swarm", b"user_count=1&spawn_rate=1")

    options = SwarmOptions(start_delay_s=0.3, web=True, web_linger_s=0.2)
    workload, rows, seen = against_tiny(tmp_path, 50, 1.0, options=options, on_progress=look)
    assert rows["request_id"].tolist() == seen == list(range(len(workload)))
    assert shown[0]["stats"][-1]["num_requests"] == len(workload)
    times, outcomes = shown[0]["extended_stats"]
    counts = {row["name"]: row["count"] for row in times["data"]}
    assert counts["3. First token from the intended start"] == len(workload)
    assert {"name": "outcome: ok", "count": len(workload)} in outcomes["data"]
    assert '"title": "Tokens and lag"' in pages[0]
    assert Manifest.read(tmp_path / "run").complete is True


def test_leaving_the_page_of_a_run_that_is_over_is_no_interruption(tmp_path: Path) -> None:
    def leave(progress: SwarmProgress) -> None:
        if progress.phase == "finished":
            raise KeyboardInterrupt

    options = SwarmOptions(start_delay_s=0.3, web=True)
    against_tiny(tmp_path, 20, 0.5, options=options, on_progress=leave)
    assert Manifest.read(tmp_path / "run").complete is True
    assert descendants("locust") == []


def test_a_run_that_was_stopped_on_the_page_is_incomplete(tmp_path: Path) -> None:
    def stop(progress: SwarmProgress) -> None:
        if progress.phase == "running" and progress.requests:
            press(f"{progress.web_url}/stop")

    options = SwarmOptions(start_delay_s=0.3, web=True)
    with pytest.raises(SwarmError, match=r"^stopped by hand at \d"):
        against_tiny(tmp_path, 50, 10.0, options=options, on_progress=stop)
    assert Manifest.read(tmp_path / "run").complete is False
    assert len(read_requests(tmp_path / "run")) > 0


def test_the_whole_stack_answers_every_request_and_its_stages_add_up(tmp_path: Path) -> None:
    two_tenants = {"workload.tenants": [{"name": "a"}, {"name": "b", "weight": 2}]}
    scenario = override(
        small("{kind: poisson, rate_per_s: 30}", horizon_s=2.0, more=SYSTEM), two_tenants
    )
    workload = compile_workload(scenario)
    out = run_swarm(scenario, workload, tmp_path / "run", options=QUICK)
    rows = read_requests(out)
    assert rows["request_id"].tolist() == list(range(len(workload)))
    assert set(rows["outcome"]) == {"ok"}
    assert set(rows["instance"]) == {"instance-1"}
    assert set(rows["tenant"]) == {"a", "b"}
    assert (rows["output_tokens"] == 5).all()
    assert (rows["attempts"] == 1).all()
    assert (rows[list(STAGES)] >= 0.0).all().all()
    np.testing.assert_allclose(
        rows[list(STAGES)].sum(axis=1), rows["done_s"] - rows["intended_s"], atol=1e-9
    )
    added = rows["done_s"] - rows["intended_s"] - rows["endpoint_s"]
    assert (rows["endpoint_s"] > 0.0).all()
    assert 0.0 < added.median() < 0.1
    assert {"gateway cpu", "fleet"} <= set(read_stations(out)["station"])
    assert descendants("reference_impl.service") == descendants("loadtests.mock_llm") == []


def test_a_gateway_that_dies_in_mid_run_is_named_and_what_was_recorded_is_kept(
    tmp_path: Path,
) -> None:
    scenario = small("{kind: constant, rate_per_s: 50}", horizon_s=20.0, more=SYSTEM)

    def kill_gateway(progress: SwarmProgress) -> None:
        if progress.requests > 20:
            for gateway in descendants("gateway"):
                gateway.kill()

    with pytest.raises(SwarmError, match=r"^gateway died \(signal SIGKILL\)"):
        run_swarm(
            scenario,
            compile_workload(scenario),
            tmp_path / "run",
            options=QUICK,
            on_progress=kill_gateway,
        )
    manifest = Manifest.read(tmp_path / "run")
    assert manifest.complete is False
    assert manifest.notes[0].startswith("gateway died")
    rows = read_requests(tmp_path / "run")
    assert (rows["outcome"] == "ok").sum() > 20
    assert manifest.validity["missing_arrivals"] == 0, "those in flight have an outcome too"
    assert descendants("-m") == []


def test_an_interrupt_leaves_no_process_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    command = python_module("tests.loadtests.run_one", str(tmp_path / "run"))
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            phase, requests = line.split()
            if phase == "running" and int(requests) > 20:
                break
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) >= 4, "mock, gateway, instance, locust"
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=LIMIT_S)
    _, alive = psutil.wait_procs(family, timeout=2)
    assert alive == []
    assert errors.rstrip().endswith("KeyboardInterrupt")
    manifest = Manifest.read(tmp_path / "run")
    assert (manifest.complete, manifest.notes[0]) == (False, "interrupted")
    rows = read_requests(tmp_path / "run")
    assert (rows["outcome"] == "ok").sum() > 20


def one_request() -> tuple[Any, CompiledWorkload]:
    scenario = small("{kind: constant, rate_per_s: 1}", horizon_s=1.5)
    return scenario, compile_workload(scenario)


def test_a_target_where_nothing_listens_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(SwarmRefused, match=f"target {url}: Connection refused; is it running"):
            run_swarm(*one_request(), tmp_path / "run", target_url=url)
    assert not (tmp_path / "run").exists()


def test_an_address_of_another_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SwarmRefused, match="expected http://HOST"):
        run_swarm(*one_request(), tmp_path / "run", target_url="https://127.0.0.1")


def test_batches_against_a_foreign_target_are_refused(tmp_path: Path) -> None:
    scenario, _ = one_request()
    with_batch = override(
        scenario,
        {
            "deployment.queue.broker": "redis",
            "deployment.database.ledger": "sqlite",
            "workload.batches": [{"requests": 1}],
        },
    )
    with (
        tiny_server(tmp_path) as url,
        pytest.raises(
            SwarmRefused, match=r"^workload\.batches: .*; run against the scenario's own"
        ),
    ):
        run_swarm(with_batch, compile_workload(with_batch), tmp_path / "run", target_url=url)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SwarmRefused, match="file/run: cannot be written: Not a directory"):
        run_swarm(*one_request(), tmp_path / "file" / "run")


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SwarmRefused, match="already holds a run"):
        run_swarm(*one_request(), tmp_path)


def test_a_page_on_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = SwarmOptions(web=True, web_port=port)
        with pytest.raises(SwarmRefused, match=f"port {port} for the page: Address already in use"):
            run_swarm(*one_request(), tmp_path / "run", options=options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (SwarmOptions(workers=-1), "workers: expected 0 or more, got -1"),
        (SwarmOptions(max_in_flight=0), "max_in_flight: expected 1 or more, got 0"),
        (SwarmOptions(client_retries=-1), "client_retries: expected 0 or more, got -1"),
        (SwarmOptions(request_timeout_s=0.0), "request_timeout_s: expected more than 0, got 0.0"),
    ],
)
def test_an_option_out_of_range_is_named(tmp_path: Path, options: SwarmOptions, said: str) -> None:
    with pytest.raises(SwarmRefused, match=said):
        run_swarm(*one_request(), tmp_path / "run", options=options)


def test_the_process_of_the_injectors_loads_neither_simpy_nor_a_server(tmp_path: Path) -> None:
    code = (
        "import json, sys, loadtests.locustfile; "
        "unwanted = {'simpy', 'uvicorn', 'starlette', 'aiohttp', 'anthropic', 'uvloop', 'pyarrow'}; "
        "print(json.dumps(sorted(unwanted & set(sys.modules))))"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    assert json.loads(found.stdout) == []


def test_the_caller_of_a_swarm_is_not_patched_by_gevent() -> None:
    code = (
        "import json, sys, loadtests.swarm; "
        "print(json.dumps(sorted({'gevent', 'locust', 'simpy'} & set(sys.modules))))"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    assert json.loads(found.stdout) == []
