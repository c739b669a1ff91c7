"""Private servers that outlive who starts them, each known by a file in a folder of its own.

A folder has one keeper at a time (a lock on a file in it), so two that start servers there do not start two. What the file says
is believed only while the very process that it names runs. It is written as soon as there is a process, so that whatever
befalls the starter, `services_down` finds it; until the server has answered once it counts as unfinished, and the next start
begins anew. A server keeps its port and its data over stop and start.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from reference_impl.live.services.postgres import DATABASE, PostgresServer
from reference_impl.live.services.rabbitmq import RabbitMQNode
from reference_impl.live.services.server_process import (
    PrivateServer,
    ServiceUnavailable,
    private_file,
)
from reference_impl.live.services.service_folder import ServiceFolder, ServiceState, alone_in
from reference_impl.live.services.valkey import ValkeyServer

__all__ = [
    "SERVICES",
    "ServiceReport",
    "Started",
    "Stopped",
    "services_down",
    "services_report",
    "services_status",
    "services_up",
]

_LOOK_S: Final = 0.05


class Started(msgspec.Struct, frozen=True):
    """What `services_up` did: all that runs in the folder, those it started, and why others could not be had."""

    running: dict[str, ServiceState]
    started: list[str]
    unavailable: dict[str, str]


class Stopped(msgspec.Struct, frozen=True):
    """What `services_down` did. `deleted`: those whose data is gone."""

    stopped: list[str]
    deleted: list[str]


class ServiceReport(msgspec.Struct, frozen=True):
    """A service as it is now. `state`: in words."""

    name: str
    state: str
    url: str = ""
    pid: int | None = None


async def services_up(folder: Path, names: Sequence[str] = ()) -> Started:
    """Start what does not run yet, each in `folder/name`; its data there is kept. No names: all.

    Those that cannot be had are told in the result, and the others are started. Cancelled, it ends those that it started
    itself. Raises ServiceUnavailable where a file in the folder cannot be understood, and OSError.
    """
    started: list[tuple[ServiceFolder, PrivateServer]] = []
    unavailable: dict[str, str] = {}
    async with alone_in(folder):
        try:
            for name in _in_order(names):
                place = ServiceFolder(folder / name)
                state = place.state()
                if state is not None:
                    if state.is_running and state.is_ready:
                        continue
                    await _end(state)  # what a killed starter, or a server that died, has left
                    place.forget()
                try:
                    await _start(name, place, started)
                except ServiceUnavailable as error:
                    unavailable[name] = str(error)
                    place.forget()
        except BaseException:
            for place, server in started:
                server.end()
                place.forget()
            raise
        running = {s.name: s for s in services_status(folder) if s.is_running}
    new = [server.name for _, server in started if server.name in running]
    return Started(running, new, unavailable)


async def services_down(
    folder: Path, names: Sequence[str] = (), *, delete_data: bool = False
) -> Stopped:
    """Stop what runs: kindly, and by SIGKILL after its limit. What does not run is left alone. No names: all."""
    stopped, deleted = [], []
    if not _exists(folder):
        return Stopped([], [])
    async with alone_in(folder):
        for name in _in_order(names):
            place = ServiceFolder(folder / name)
            state = place.state()
            if state is not None:
                if state.is_running:
                    stopped.append(name)
                await _end(state)
                place.forget()
            if delete_data and place.delete():
                deleted.append(name)
    return Stopped(stopped, deleted)


def _exists(folder: Path) -> bool:
    """Whether services were ever started in `folder`."""
    return folder.is_dir()


def services_status(folder: Path, names: Sequence[str] = ()) -> list[ServiceState]:
    """What was started in `folder` and not stopped, whether it still runs or not."""
    states = [ServiceFolder(folder / name).state() for name in _in_order(names)]
    return [state for state in states if state is not None]


async def services_report(folder: Path, names: Sequence[str] = ()) -> list[ServiceReport]:
    """Every service and how it is; changes nothing."""
    reports = []
    for name in _in_order(names):
        place = ServiceFolder(folder / name)
        state, port = place.state(), place.port()
        if state is not None and state.is_running and port is not None:
            how = "starting" if not state.is_ready else "running"
            server = _MAKERS[name](place.path, port)
            if state.is_ready and not await asyncio.to_thread(server.answers):
                how = "not answering"
            reports.append(ServiceReport(name, how, state.url, state.pid))
        else:
            kept = "" if port is None else ", data kept"
            reports.append(ServiceReport(name, f"not running{kept}"))
    return reports


def _in_order(names: Sequence[str]) -> list[str]:
    return [name for name in SERVICES if not names or name in names]


async def _start(
    name: str, place: ServiceFolder, started: list[tuple[ServiceFolder, PrivateServer]]
) -> None:
    server = _MAKERS[name](place.path, place.open())
    # In this thread: whoever is cancelled must not leave it at work here while others may begin.
    server.prepare()
    server.launch()
    started.append((place, server))
    state = ServiceState(name, server.url, server.marks())
    place.write(state)
    await server.wait_ready()
    place.write(msgspec.structs.replace(state, is_ready=True))


async def _end(state: ServiceState) -> None:
    """Every process that is still the one that was started; nothing here is our child, so nothing can be awaited."""
    loop = asyncio.get_running_loop()
    kind = _KINDS[state.name]
    state.processes[0].signal_group(kind.stop_signal if state.is_ready else kind.kill_signal)
    give_up_s = loop.time() + kind.stop_limit_s
    while state.is_running and loop.time() < give_up_s:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    for process in state.processes:
        process.signal_group(signal.SIGKILL)
    while any(process.is_alive for process in state.processes):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)


def _valkey(place: Path, port: int) -> PrivateServer:
    return ValkeyServer(place, port=port, is_durable=True)


def _postgres(place: Path, port: int) -> PrivateServer:
    file = place / "password"
    try:
        password = file.read_text()
    except FileNotFoundError:
        password = secrets.token_urlsafe(24)
        private_file(file, password)
    return PostgresServer(place, port=port, password=password, database=DATABASE)


def _rabbitmq(place: Path, port: int) -> PrivateServer:
    return RabbitMQNode(place, port=port)


_MAKERS: Final[dict[str, Callable[[Path, int], PrivateServer]]] = {
    "valkey": _valkey,
    "postgres": _postgres,
    "rabbitmq": _rabbitmq,
}
SERVICES: Final = tuple(_MAKERS)
_KINDS: Final[dict[str, type[PrivateServer]]] = {
    kind.name: kind for kind in (ValkeyServer, PostgresServer, RabbitMQNode)
}
