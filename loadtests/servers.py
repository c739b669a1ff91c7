"""Private servers for a live run: on this machine, with no data that outlives it, ended with it whatever happens."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from reference_impl.caches.connect import URL_VARIABLE as REDIS_VARIABLE
from reference_impl.database.connect import DSN_VARIABLE
from reference_impl.deployment import DeploymentSpec
from reference_impl.live.services import postgres, rabbitmq, valkey
from reference_impl.live.services.server_process import (
    PrivateServer,
    ServiceUnavailable,
    free_port,
)
from reference_impl.queues.connect import URL_VARIABLE as QUEUE_VARIABLE

__all__ = [
    "TemporaryServer",
    "WantedServer",
    "launch_and_wait",
    "temporary_postgres",
    "temporary_queue",
    "temporary_rabbitmq",
    "temporary_valkey",
    "wanted_servers",
]

POLL_S: Final = 0.01


def launch_and_wait(server: PrivateServer, *options: str) -> None:
    """Start a server and wait until it answers. Raises ServiceUnavailable, and leaves no process then."""
    server.prepare()
    server.launch(*options)
    try:
        deadline = time.monotonic() + server.start_limit_s
        while not server.answers():
            server.check_start(late=time.monotonic() > deadline)
            time.sleep(POLL_S)
    except BaseException:
        server.end()
        raise


class TemporaryServer:
    """A server in a temporary folder, which goes with it; a child as `ChildProcess` is one."""

    def __init__(self, server: PrivateServer, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.name = server.name
        self.url = server.url
        self._server = server
        self._folder = folder

    def start(self) -> None:
        """Raises ServiceUnavailable."""
        launch_and_wait(self._server)

    @property
    def pid(self) -> int:
        return self._server.pid

    def exit_status(self) -> int | None:
        return self._server.exit_status()

    def obituary(self, status: int) -> str:
        return self._server.obituary(status)

    def stop(self, grace_s: float) -> None:
        self._server.stop(grace_s)
        self._folder.cleanup()


def temporary_valkey(logs: Path) -> TemporaryServer:
    """On a socket file, so that it needs no port and no password."""
    # Not in the run folder: the path of a socket has at most 107 bytes.
    folder = tempfile.TemporaryDirectory(prefix="twinload-valkey-")
    log = logs / "valkey.log"
    return TemporaryServer(
        valkey.ValkeyServer(Path(folder.name), port=0, log=log, is_tied=True), folder
    )


def temporary_queue(logs: Path) -> TemporaryServer:
    """The same, with what was written on disk before it is acknowledged, as a queue needs it."""
    folder = tempfile.TemporaryDirectory(prefix="twinload-queue-")
    log = logs / "queue.log"
    server = valkey.ValkeyServer(Path(folder.name), port=0, is_durable=True, log=log, is_tied=True)
    return TemporaryServer(server, folder)


def temporary_rabbitmq(logs: Path) -> TemporaryServer:
    folder = tempfile.TemporaryDirectory(prefix="twinload-rabbitmq-")
    node = rabbitmq.RabbitMQNode(Path(folder.name), log=logs / "rabbitmq.log", is_tied=True)
    return TemporaryServer(node, folder)


def temporary_postgres(logs: Path) -> TemporaryServer:
    """Durable as PostgreSQL is by itself, for what a commit costs is part of what is measured."""
    folder = tempfile.TemporaryDirectory(prefix="twinload-postgres-")
    server = postgres.PostgresServer(
        Path(folder.name),
        port=free_port(),
        password=secrets.token_urlsafe(24),
        log=logs / "postgres.log",
        is_tied=True,
    )
    return TemporaryServer(server, folder)


class WantedServer(msgspec.Struct, frozen=True):
    """A server that a live system needs and nobody has named.

    Attributes:
        variable: of the environment, that would name one.
        what: what for, in words, with the scenario's field.
        find: raises ServiceUnavailable where there is none to start.
        make: one for a run, with its log in that folder.
    """

    variable: str
    what: str
    find: Callable[[], object]
    make: Callable[[Path], TemporaryServer]

    def missing(self, error: ServiceUnavailable) -> str:
        return f"the scenario wants {self.what}: {error}; or name a server in {self.variable}"


def wanted_servers(deployment: DeploymentSpec) -> list[WantedServer]:
    """Those that the system of `deployment` needs beside what the environment names."""
    wanted = []
    if deployment.cache.enabled and deployment.cache.shared != "none":
        what = "a shared cache (deployment.cache.shared)"
        wanted.append(
            WantedServer(REDIS_VARIABLE, what, valkey.find_valkey_server, temporary_valkey)
        )
    if deployment.database.ledger == "postgres":
        what = "a ledger in PostgreSQL (deployment.database)"
        wanted.append(WantedServer(DSN_VARIABLE, what, postgres.find_postgres, temporary_postgres))
    match deployment.queue.broker:
        case "redis":
            what = "a queue on Redis (deployment.queue)"
            wanted.append(
                WantedServer(QUEUE_VARIABLE, what, valkey.find_valkey_server, temporary_queue)
            )
        case "rabbitmq":
            what = "a queue on RabbitMQ (deployment.queue)"
            wanted.append(
                WantedServer(
                    QUEUE_VARIABLE, what, rabbitmq.find_rabbitmq_server, temporary_rabbitmq
                )
            )
        case "kafka":
            what = "a queue on Kafka (deployment.queue)"
            wanted.append(WantedServer(QUEUE_VARIABLE, what, _no_kafka, _no_kafka))
    return [server for server in wanted if not os.environ.get(server.variable)]


def _no_kafka(*_: object) -> NoReturn:
    raise ServiceUnavailable("no run starts one, choose redis or rabbitmq")
