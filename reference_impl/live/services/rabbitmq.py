"""A private RabbitMQ node from Debian's package, on free ports of the loopback, as whoever starts it.

The wrapper in /usr/sbin changes user and reads /etc; the script inside the package does not, if it is told everything. The
node's name server (epmd), which would outlive it, is started and ended with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Final

from reference_impl.live.services.server_process import (
    ServiceUnavailable,
    free_port,
    group_is_alive,
    signal_group,
    spawn,
)

__all__ = ["RabbitMQNode", "find_rabbitmq_server"]

_START_LIMIT_S: Final = 60.0
_STOP_LIMIT_S: Final = 20.0
# A task may be held for a day: leases, not this, tell the living from the dead.
_CONSUMER_TIMEOUT_MS: Final = 24 * 3600 * 1000
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


class RabbitMQNode:
    """One node; it keeps its ports and its data over `kill` and `start`.

    Args:
        folder: an empty or former folder of this node.
    """

    def __init__(self, folder: Path) -> None:
        self._script = find_rabbitmq_server()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._distribution_port = free_port()
        self._epmd_port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start and wait for its AMQP greeting. Raises ServiceUnavailable with the end of its log."""
        environment = self._write_settings()
        log = self._folder / "rabbitmq.log"
        if self._epmd is None:
            # Before the node, which would start one as a daemon that nobody could end with it.
            self._epmd = spawn(["epmd"], log, environment=environment)
        self._process = spawn([str(self._script)], log, environment=environment)
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + _START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or loop.time() > give_up_s:
                self.kill()
                raise ServiceUnavailable(f"RabbitMQ did not start:\n{log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to what is left; its name server ends too."""
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _STOP_LIMIT_S)
        self.kill()
        self.end_epmd()

    def kill(self) -> None:
        """SIGKILL to the node: connections break, the port refuses, the data stays."""
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        signal_group(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        signal_group(self.pid, signal.SIGCONT)

    def is_running(self) -> bool:
        return self._process is not None and group_is_alive(self._process.pid)

    def end_epmd(self) -> None:
        """The name server knows nothing that is worth a farewell."""
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def pids(self) -> list[int]:
        """Leaders of its process groups: the node's, then the name server's."""
        assert self._process is not None
        assert self._epmd is not None
        return [self._process.pid, self._epmd.pid]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(_GREETING)
                return connection.recv(1) == b"\x01"  # Connection.Start: a method frame
        except OSError:
            return False

    def _write_settings(self) -> dict[str, str]:
        home = self._folder / "home"
        for path in (home, self._folder / "data", self._folder / "log", self._folder / "generated"):
            path.mkdir(parents=True, exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(os.urandom(16).hex())
            cookie.chmod(0o400)
        config = self._folder / "rabbitmq.conf"
        config.write_text(
            "loopback_users.guest = true\n"
            f"consumer_timeout = {_CONSUMER_TIMEOUT_MS}\n"
            "vm_memory_high_watermark.absolute = 1GB\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        plugins = self._folder / "enabled_plugins"
        plugins.write_text("[].\n")
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self._folder / "generated"),
            "RABBITMQ_PID_FILE": str(self._folder / "rabbitmq.pid"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # Idle schedulers of Erlang spin by default, which costs a core that tests and people need.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }
