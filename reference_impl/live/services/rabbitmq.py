"""A private RabbitMQ node from Debian's package, on free ports of the loopback, as whoever starts it.

The wrapper in /usr/sbin changes user and reads /etc; the script inside the package does not, if it is told everything. The
node's name server (epmd), which would outlive it, is started and ended with it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from reference_impl.live.services.process_marks import ProcessMark, mark_of
from reference_impl.live.services.server_process import (
    PROBE_LIMIT_S,
    PrivateServer,
    ServiceUnavailable,
    free_port,
    private_file,
)

__all__ = ["CONSUMER_TIMEOUT_MS", "RabbitMQNode", "find_rabbitmq_server"]

# A task may be held for a day: leases, not this, tell the living from the dead. compose.yaml has the same.
CONSUMER_TIMEOUT_MS: Final = 24 * 3600 * 1000
_GREETING: Final = b"AMQP\x00\x00\x09\x01"


def find_rabbitmq_server() -> Path:
    """The node's start script. Raises ServiceUnavailable that says how to get it."""
    scripts = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if not scripts or shutil.which("epmd") is None:
        raise ServiceUnavailable(
            "no RabbitMQ here: install it (Debian, Ubuntu: apt-get install --no-install-recommends rabbitmq-server), or use "
            "compose.yaml"
        )
    return scripts[-1]


class RabbitMQNode(PrivateServer):
    """One node; it keeps its data over `kill` and another start, also on other ports.

    Args:
        port: for AMQP; None: a free one. Those for the node's own talk are free ones.
    """

    name: ClassVar[str] = "rabbitmq"
    title: ClassVar[str] = "RabbitMQ"
    start_limit_s: ClassVar[float] = 60.0

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        log: Path | None = None,
        is_tied: bool = False,
    ) -> None:
        self.port = free_port() if port is None else port
        self._distribution_port = free_port()
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        super().__init__(folder, url, log=log, is_tied=is_tied)

    async def start(self) -> None:
        """Start and wait for its AMQP greeting. Raises ServiceUnavailable."""
        self.prepare()
        self.launch()
        await self.wait_ready()

    def prepare(self) -> None:
        find_rabbitmq_server()
        home = self.folder / "home"
        for path in (home, *(self.folder / name for name in ("data", "log", "generated"))):
            path.mkdir(parents=True, exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            private_file(cookie, secrets.token_hex(16))
            cookie.chmod(0o400)
        (self.folder / "rabbitmq.conf").write_text(
            "loopback_users.guest = true\n"
            f"consumer_timeout = {CONSUMER_TIMEOUT_MS}\n"
            "vm_memory_high_watermark.absolute = 1GB\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        (self.folder / "enabled_plugins").write_text("[].\n")

    def launch(self, *options: str) -> None:
        if self._epmd is None:
            # Before the node, which would start one as a daemon that nobody could end with it.
            self._epmd = self._spawn(["epmd"])
        super().launch(*options)

    def marks(self) -> list[ProcessMark]:
        """The node's, then its name server's."""
        epmd = [] if self._epmd is None else [mark_of(self._epmd.pid)]
        return [*super().marks(), *epmd]

    def end(self) -> None:
        super().end()
        if self._epmd is not None:  # it knows nothing that is worth a farewell
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_LIMIT_S) as connection:
                connection.sendall(_GREETING)
                return connection.recv(1) == b"\x01"  # Connection.Start: a method frame
        except OSError:
            return False

    def _command(self) -> list[str]:
        return [str(find_rabbitmq_server())]

    def _environment(self) -> Mapping[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Data is kept under this name; its own name server knows no other node.
            "RABBITMQ_NODENAME": "twinload@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_PID_FILE": str(self.folder / "rabbitmq.pid"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # The script becomes the node, instead of a shell beside it that may end without it.
            "RUNNING_UNDER_SYSTEMD": "true",
            # Idle schedulers of Erlang spin by default, which costs a core that tests and people need.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none"
            " -kernel inet_dist_use_interface {127,0,0,1}",
        }
