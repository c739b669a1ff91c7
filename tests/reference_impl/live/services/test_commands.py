"""`twinload services` as people use it: from a shell, interrupted, twice at once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from reference_impl.database.pool import ConnectionPool
from reference_impl.live.services.commands import services, settings_of
from reference_impl.live.services.process_marks import ProcessMark
from reference_impl.live.services.registry import services_status
from tests.servers.postgres import require_postgres
from tests.servers.rabbitmq import require_rabbitmq
from tests.servers.valkey import require_valkey

LIMIT_S = 60.0


@pytest.fixture(name="home")
def working_directory() -> Iterator[Path]:
    """One that PostgreSQL's user can enter, if root runs the tests."""
    place = Path(tempfile.mkdtemp(prefix="services-"))
    place.chmod(0o755)
    yield place
    assert run(place, "down", "--delete-data").returncode == 0
    shutil.rmtree(place)


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "twinload", "services", *arguments],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])},
    )


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(home, *arguments)
    out, err = process.communicate(timeout=LIMIT_S)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def shown(home: Path, *arguments: str) -> dict[str, Any]:
    result = run(home, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def folder_of(home: Path) -> Path:
    return home / ".twinload" / "services"


def test_settings_are_ready_for_a_shell_and_down_says_what_it_did(home: Path) -> None:
    require_valkey()
    first = run(home, "up", "valkey")
    assert first.returncode == 0
    assert first.stderr.startswith("valkey: started (process ")
    read = subprocess.run(
        ["sh", "-c", f"{first.stdout}\necho $TWINLOAD_REDIS $TWINLOAD_QUEUE"],
        capture_output=True,
        text=True,
        check=True,
    )
    redis, queue = read.stdout.split()
    assert redis.endswith("/0")
    assert queue == redis.removesuffix("0") + "1"
    again = run(home, "up", "valkey")
    assert (again.stdout, again.returncode) == (first.stdout, 0)
    assert again.stderr.startswith("valkey: runs already")
    assert run(home, "down", "valkey").stdout == "valkey: stopped\n"
    gone = run(home, "down", "valkey")
    assert (gone.stdout, gone.returncode) == ("valkey: was not running\n", 0)


def test_two_that_start_at_once_start_one(home: Path) -> None:
    require_valkey()
    both = [start(home, "up", "valkey", "--json") for _ in range(2)]
    documents = [json.loads(process.communicate(timeout=LIMIT_S)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({row["pid"] for document in documents for row in document["services"]}) == 1
    assert sorted(d["services"][0]["started"] for d in documents) == [False, True]


def test_postgres_keeps_data_and_password_and_shows_it_only_when_asked(home: Path) -> None:
    require_postgres()
    url = shown(home, "up", "postgres")["settings"]["TWINLOAD_DATABASE"]
    password = urlsplit(url).password
    assert password is not None
    assert len(password) >= 20
    assert asyncio.run(fetch(url, "CREATE TABLE t AS SELECT 7 AS n; SELECT 1")) == 1
    assert asyncio.run(fetch(url, "SHOW fsync")) == "on"
    assert asyncio.run(fetch(url, "SELECT count(*) FROM pg_stat_statements")) > 0
    status = run(home, "status")
    assert password not in status.stdout + status.stderr
    assert ":***@" in status.stdout
    assert password in run(home, "status", "--show-passwords").stdout
    assert password in shown(home, "status", "--show-passwords")["services"][1]["url"]
    assert password not in json.dumps(shown(home, "status"))
    holders = [
        path
        for path in folder_of(home).rglob("*")
        if path.is_file() and "data" not in path.parts and password in path.read_text("latin-1")
    ]
    assert sorted(path.name for path in holders) == ["password", "service.json"]
    assert [path.stat().st_mode & 0o077 for path in holders] == [0, 0]
    (processes,) = [state.processes for state in services_status(folder_of(home))]
    commands = Path(f"/proc/{processes[0].pid}/cmdline")
    assert not commands.exists() or password not in commands.read_text()
    run(home, "down")
    assert shown(home, "up", "postgres")["settings"]["TWINLOAD_DATABASE"] == url
    assert asyncio.run(fetch(url, "SELECT n FROM t")) == 7
    assert "its data is deleted" in run(home, "down", "postgres", "--delete-data").stdout
    assert not (folder_of(home) / "postgres").exists()


async def fetch(url: str, statements: str) -> Any:
    """The first value of the last statement."""
    pool = ConnectionPool(url, 1, 1)
    await pool.initialize()
    try:
        for statement in statements.split("; "):
            rows = await pool.fetch(statement)
        return rows[0][0]
    finally:
        await pool.close()


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_no_process_and_no_half_written_state(
    home: Path, number: signal.Signals
) -> None:
    require_rabbitmq()
    require_valkey()
    up = start(home, "up", "valkey", "rabbitmq")
    processes = unfinished(home, up, "rabbitmq")
    up.send_signal(number)
    out, err = up.communicate(timeout=LIMIT_S)
    assert (up.returncode, out) == (1, "")
    assert err == "error: interrupted; what it had started is stopped again\n"
    assert not any(process.is_alive for process in processes)
    assert services_status(folder_of(home)) == []
    assert list(folder_of(home).rglob("*.partial")) == []


@pytest.mark.xdist_group("rabbitmq")
def test_what_a_killed_start_left_is_stopped_by_down(home: Path) -> None:
    require_rabbitmq()
    up = start(home, "up", "rabbitmq")
    processes = unfinished(home, up, "rabbitmq")
    up.kill()
    up.communicate()
    assert any(process.is_alive for process in processes)
    assert run(home, "down").stdout.splitlines()[-1] == "rabbitmq: stopped"
    assert not any(process.is_alive for process in processes)


def unfinished(home: Path, up: subprocess.Popen[str], name: str) -> list[ProcessMark]:
    """All processes in the folder, once the one of `name` was started."""
    give_up_s = time.monotonic() + LIMIT_S
    while True:
        assert up.poll() is None, up.communicate()
        assert time.monotonic() < give_up_s
        states = services_status(folder_of(home))
        if any(state.name == name and not state.is_ready for state in states):
            return [process for state in states for process in state.processes]
        time.sleep(0.01)


# Here the server outlives a command of this very process; `subprocess` wonders about that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_cannot_be_had_is_a_line_on_standard_error_and_the_rest_is_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_valkey()
    monkeypatch.setattr("reference_impl.live.services.rabbitmq.Path.glob", lambda *_: iter(()))
    folder = str(tmp_path / "services")
    try:
        result = CliRunner().invoke(services, ["up", "valkey", "rabbitmq", "--folder", folder])
        assert result.exit_code != 0
        assert "export TWINLOAD_REDIS=" in result.stdout
        (complaint,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
        assert complaint.startswith("Error: rabbitmq: no RabbitMQ here: install it")
    finally:
        assert CliRunner().invoke(services, ["down", "--folder", folder]).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root cannot run PostgreSQL")
def test_a_folder_that_the_user_of_postgresql_cannot_enter_is_named(tmp_path: Path) -> None:
    require_postgres()
    tmp_path.chmod(0o700)
    result = run(tmp_path, "up", "postgres")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "refuses to run as root" in result.stderr
    assert "choose another folder" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (folder_of(tmp_path) / "postgres" / "data").exists()


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ({}, {}),
        ({"valkey": "redis://h:1/0"}, ("redis://h:1/0", "redis://h:1/1")),
        ({"valkey": "redis://h:1/0", "rabbitmq": "amqp://h/"}, ("redis://h:1/0", "amqp://h/")),
    ],
)
def test_the_queue_is_rabbitmqs_where_there_is_one(
    running: dict[str, str], expected: tuple[str, ...]
) -> None:
    assert tuple(settings_of(running).values()) == tuple(expected)
