"""The live system on free loopback ports: the mock LLM, the servers that are wanted, and the gateway with its instances."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from loadtests.child_process import ChildProcess, ProcessFailed, python_module
from loadtests.servers import TemporaryServer, wanted_servers
from reference_impl.live.services.server_process import ServiceUnavailable
from simulation.scenario.schema import Scenario

__all__ = ["Stack", "StackError"]

READY_LIMIT_S: Final = 30.0
STOP_GRACE_S: Final = 10.0
LOGS: Final = "logs"
MOCK_LOG: Final = "mock.jsonl"


class StackError(RuntimeError):
    """The live system did not start, or part of it died: one line for people. `is_bad_input`: it refused its configuration."""

    def __init__(self, message: str, *, is_bad_input: bool = False) -> None:
        super().__init__(message)
        self.is_bad_input = is_bad_input


class Stack:
    """Mock, gateway and instances of a scenario; a context manager that leaves no process behind.

    A cache that gateways share is on the server that TWINLOAD_REDIS names, else on a Valkey that is started for it; a ledger in
    PostgreSQL is on the one that TWINLOAD_DATABASE names, else on one that is started for it; a queue on that of TWINLOAD_QUEUE,
    else on a durable Valkey or on a RabbitMQ of its own.

    Args:
        scenario: its deployment, endpoint profile and seed are started.
        run_dir: traces, station samples, events, the mock's log and all output go here.
        tenants: API key -> tenant, for the gateway; empty: everybody is let in.

    `url` is the gateway's base address once the stack was entered. Raises StackError.
    """

    def __init__(
        self, scenario: Scenario, run_dir: Path, tenants: Mapping[str, str] | None = None
    ) -> None:
        self.url = ""
        self._scenario = scenario
        self._run_dir = run_dir.resolve()
        self._logs = self._run_dir / LOGS
        self._tenants = dict(tenants or {})
        self._children: list[ChildProcess | TemporaryServer] = []

    def __enter__(self) -> Stack:
        atexit.register(self.stop)
        try:
            self.url = self._start_gateway(self._start_mock(), self._start_servers())
        except ProcessFailed as error:
            self.stop()
            raise StackError(str(error), is_bad_input=error.is_bad_input) from None
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raises StackError if a process of the stack has ended."""
        for child in self._children:
            status = child.exit_status()
            if status is not None:
                raise StackError(child.obituary(status))

    def stop(self) -> None:
        """End everything, the gateway first so that it can drain. Idempotent."""
        atexit.unregister(self.stop)
        try:
            while self._children:
                self._children[-1].stop(STOP_GRACE_S)
                self._children.pop()
        finally:
            # Only after an interrupt of the loop above: no more patience.
            for child in self._children:
                child.stop(0.0)
            self._children.clear()

    def _start(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> str:
        child = ChildProcess(name, command, self._logs, environment=environment)
        self._children.append(child)
        ready = child.wait_ready(READY_LIMIT_S)
        url = ready.get("ready")
        if not isinstance(url, str):
            raise ProcessFailed(f"{name} gave no address in its ready line: {ready}")
        return url

    def _start_mock(self) -> str:
        profile = self._logs / "endpoint.json"
        self._logs.mkdir(parents=True, exist_ok=True)
        profile.write_text(self._scenario.endpoint_under_faults().model_dump_json())
        return self._start(
            "mock",
            python_module(
                "loadtests.mock_llm",
                *("--port", "0"),
                *("--profile", str(profile)),
                *("--seed", str(self._scenario.seed)),
                *("--log", str(self._run_dir / MOCK_LOG)),
            ),
        )

    def _start_servers(self) -> dict[str, str]:
        """The variables that name the servers that are started; none where all are named already, or none is wanted."""
        variables: dict[str, str] = {}
        for wanted in wanted_servers(self._scenario.deployment):
            server = wanted.make(self._logs)
            self._children.append(server)
            try:
                server.start()
            except ServiceUnavailable as error:
                raise ProcessFailed(wanted.missing(error)) from error
            variables[wanted.variable] = server.url
        return variables

    def _start_gateway(self, upstream_url: str, variables: Mapping[str, str]) -> str:
        config = self._logs / "gateway.json"
        document = {
            "deployment": self._scenario.deployment.model_dump(mode="json"),
            "upstream_url": upstream_url,
            "run_dir": str(self._run_dir),
            "seed": self._scenario.seed,
            "port": 0,
            "forward_tags": True,
            "tenants": self._tenants,
            "sample_interval_s": self._scenario.sample_interval_s,
        }
        config.write_bytes(msgspec.json.encode(document))
        config.chmod(0o600)
        return self._start(
            "gateway",
            python_module("reference_impl.service", "gateway", "--config", str(config)),
            # A real key has no business with a mock.
            {"ANTHROPIC_API_KEY": "key-of-the-mock", **variables},
        )
