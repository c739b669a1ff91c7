"""Private servers that outlive the command: started once, found again, stopped, and never mistaken for others."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from reference_impl.live.services.process_marks import mark_of
from reference_impl.live.services.registry import (
    services_down,
    services_report,
    services_status,
    services_up,
)
from reference_impl.live.services.server_process import ServiceUnavailable
from reference_impl.live.services.service_folder import ServiceFolder, ServiceState
from reference_impl.queues.connect import connect_queue, queue_replay, queue_status
from reference_impl.queues.port import QueuedTask
from tests.servers.rabbitmq import require_rabbitmq
from tests.servers.valkey import require_valkey

# The servers are meant to outlive whoever started them; `subprocess` wonders about that.
pytestmark = [
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(name="folder")
def services_folder(tmp_path: Path) -> Iterator[Path]:
    require_valkey()
    folder = tmp_path / "services"
    yield folder
    asyncio.run(services_down(folder, delete_data=True))
    assert services_status(folder) == []


@pytest.fixture(name="stranger")
def somebody_elses_process() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        process.kill()


async def use_queue_and_restart(folder: Path, name: str) -> None:
    state = (await services_up(folder, [name])).running[name]
    again = await services_up(folder, [name])
    assert (again.running, again.started) == ({name: state}, []), "it runs already"
    queue = connect_queue(state.url, levels=2)
    await queue.enqueue(QueuedTask("t", "unknown", {}))
    assert await queue.dequeue(5) is not None
    await queue.reject("t", "no handler")
    await queue.close()
    assert (await services_down(folder)).stopped == [name]
    assert not any(process.is_alive for process in state.processes)
    later = (await services_up(folder, [name])).running[name]
    assert later.url == state.url, "settings stay right"
    status, dead = await queue_status(later.url, levels=2)
    assert (status.dead, dead[0].reason) == (1, "no handler")
    assert await queue_replay(later.url, levels=2) == 1


def test_a_valkey_starts_once_serves_a_queue_and_keeps_its_data_and_port(folder: Path) -> None:
    asyncio.run(use_queue_and_restart(folder, "valkey"))


@pytest.mark.xdist_group("rabbitmq")
def test_a_rabbitmq_starts_once_serves_a_queue_and_keeps_its_data_and_port(folder: Path) -> None:
    require_rabbitmq()
    asyncio.run(use_queue_and_restart(folder, "rabbitmq"))


@pytest.mark.xdist_group("rabbitmq")
def test_what_a_node_that_died_has_left_behind_is_ended_before_the_next_starts(
    folder: Path,
) -> None:
    require_rabbitmq()
    died = asyncio.run(services_up(folder, ["rabbitmq"])).running["rabbitmq"]
    os.kill(died.pid, signal.SIGKILL)
    result = asyncio.run(services_up(folder, ["rabbitmq"]))
    assert result.started == ["rabbitmq"]
    assert not any(process.is_alive for process in died.processes)
    assert all(process.is_alive for process in result.running["rabbitmq"].processes)


def test_a_port_that_somebody_else_has_taken_meanwhile_is_given_up(folder: Path) -> None:
    first = asyncio.run(services_up(folder, ["valkey"])).running["valkey"]
    asyncio.run(services_down(folder))
    port = ServiceFolder(folder / "valkey").port()
    assert port is not None
    with socket.create_server(("127.0.0.1", port)):
        second = asyncio.run(services_up(folder, ["valkey"])).running["valkey"]
    assert second.is_running
    assert second.url != first.url


def test_a_state_whose_process_number_is_somebody_elses_now_is_not_believed(
    folder: Path, stranger: subprocess.Popen[bytes]
) -> None:
    real = asyncio.run(services_up(folder, ["valkey"])).running["valkey"]
    asyncio.run(services_down(folder))
    # Not when the server started: that may be the stranger's own tick of the clock.
    former = msgspec.structs.replace(mark_of(stranger.pid), started=mark_of(os.getpid()).started)
    place = ServiceFolder(folder / "valkey")
    place.write(msgspec.structs.replace(real, processes=[former]))
    (report,) = asyncio.run(services_report(folder, ["valkey"]))
    assert report.state == "not running, data kept"
    assert asyncio.run(services_down(folder)).stopped == []
    place.write(msgspec.structs.replace(real, processes=[former]))
    result = asyncio.run(services_up(folder, ["valkey"]))
    assert result.started == ["valkey"]
    assert result.running["valkey"].pid != stranger.pid
    assert stranger.poll() is None


def test_what_a_killed_starter_left_unfinished_is_ended_and_begun_anew(
    folder: Path, stranger: subprocess.Popen[bytes]
) -> None:
    asyncio.run(services_up(folder, ["valkey"]))
    asyncio.run(services_down(folder))
    unfinished = ServiceState("valkey", "redis://127.0.0.1:1/0", [mark_of(stranger.pid)])
    ServiceFolder(folder / "valkey").write(unfinished)
    (report,) = asyncio.run(services_report(folder, ["valkey"]))
    assert report.state == "starting"
    assert asyncio.run(services_up(folder, ["valkey"])).started == ["valkey"]
    assert stranger.poll() is not None


def test_a_server_that_hangs_is_told_from_one_that_runs(folder: Path) -> None:
    state = asyncio.run(services_up(folder, ["valkey"])).running["valkey"]
    os.kill(state.pid, signal.SIGSTOP)
    try:
        (report,) = asyncio.run(services_report(folder, ["valkey"]))
    finally:
        os.kill(state.pid, signal.SIGCONT)
    assert (report.state, report.pid) == ("not answering", state.pid)


def test_one_that_cannot_be_had_is_told_and_the_others_are_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find() -> Path:
        raise ServiceUnavailable("no RabbitMQ here: install it")

    monkeypatch.setattr("reference_impl.live.services.rabbitmq.find_rabbitmq_server", find)
    result = asyncio.run(services_up(folder, ["rabbitmq", "valkey"]))
    assert result.unavailable == {"rabbitmq": "no RabbitMQ here: install it"}
    assert list(result.running) == result.started == ["valkey"]


def test_one_that_dies_while_it_starts_is_told_with_its_last_words(folder: Path) -> None:
    asyncio.run(services_up(folder, ["valkey"]))
    asyncio.run(services_down(folder))
    (manifest,) = (folder / "valkey" / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense\n")
    result = asyncio.run(services_up(folder, ["valkey"]))
    assert result.running == {}
    assert "Valkey did not start: exit status 1" in result.unavailable["valkey"]
    assert "\n" not in result.unavailable["valkey"]
    assert "FATAL AOF MANIFEST FILE ERROR" in result.unavailable["valkey"]


def test_a_cancelled_start_ends_what_it_started_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = asyncio.run(services_up(folder, ["valkey"])).running["valkey"]
    second = folder / "second"
    seen: list[ServiceState] = []

    async def never_ready(server: object) -> None:
        seen.extend(services_status(second))
        await asyncio.Event().wait()

    async def cancel() -> None:
        monkeypatch.setattr(
            "reference_impl.live.services.valkey.ValkeyServer.wait_ready", never_ready
        )
        task = asyncio.create_task(services_up(second, ["valkey"]))
        while not seen:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    (started,) = seen
    assert not started.is_ready
    assert not started.is_running
    assert services_status(second) == []
    assert list(second.rglob("*.partial")) == []
    assert former.is_running


def test_a_folder_of_something_else_is_neither_used_nor_deleted(folder: Path) -> None:
    theirs = folder / "valkey" / "thesis.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    result = asyncio.run(services_up(folder, ["valkey"]))
    assert "holds something else" in result.unavailable["valkey"]
    assert asyncio.run(services_down(folder, delete_data=True)).deleted == []
    assert theirs.read_text() == "years of work"


def test_a_damaged_state_is_named_and_not_guessed_at(folder: Path) -> None:
    asyncio.run(services_up(folder, ["valkey"]))
    file = folder / "valkey" / "service.json"
    right = file.read_bytes()
    file.write_bytes(right[:20])
    with pytest.raises(ServiceUnavailable, match=r"service\.json is damaged"):
        asyncio.run(services_up(folder, ["valkey"]))
    file.write_bytes(right)


def test_looking_at_a_folder_does_not_make_it(tmp_path: Path) -> None:
    states = [r.state for r in asyncio.run(services_report(tmp_path / "none"))]
    assert states == ["not running"] * 3
    assert asyncio.run(services_down(tmp_path / "none")).stopped == []
    assert not (tmp_path / "none").exists()
