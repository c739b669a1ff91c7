"""Gateway and instance come to their end whatever fails on the way: each step is done, and failures are told. In virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NoReturn

import pytest

from reference_impl.batches.consumer import BatchConsumer
from reference_impl.closing import close_all
from reference_impl.compute import InlineCompute
from reference_impl.database.connect import build_accounting
from reference_impl.database.entries import LedgerEntry
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.deployment import DatabaseSpec, DeploymentSpec, InstanceSpec, QueueSpec
from reference_impl.gateway_service import GatewayService
from reference_impl.instance_service import InstanceService
from reference_impl.instances.heartbeat import Usage
from reference_impl.messages import Call, Completion, Emit
from reference_impl.messages import Usage as Tokens
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.prices import load_prices
from reference_impl.process_config import ProcessConfig
from reference_impl.queues.errors import QueueUnavailable
from reference_impl.queues.memory import MemoryQueue
from reference_impl.telemetry import StationSample
from reference_impl.telemetry.run_log import read_samples
from simulation import kernel

DATABASE = DatabaseSpec(ledger="postgres", flush_s=1.0)


def sample(station: str) -> StationSample:
    return StationSample(
        t_s=0.0,
        interval_s=1.0,
        station=station,
        kind="cpu",
        arrivals=0,
        completions=0,
        busy_s=0.0,
        queue_length=0.0,
        in_service=0.0,
        capacity=1.0,
    )


class PooledLedger(MemoryLedger):
    """Has a station of connections until it is closed, as the one in PostgreSQL."""

    closed = False

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:
        return [] if self.closed else [sample("database pool")]

    async def aclose(self) -> None:
        self.closed = True


class LostQueue(MemoryQueue):
    async def close(self) -> None:
        raise QueueUnavailable("the broker went away")


class NoFleet:
    def heartbeat(self, _metrics: object) -> bool:
        return True

    async def aclose(self) -> None:
        raise RuntimeError("no fleet")


class Endpoint:
    closed = False

    async def complete(self, _call: Call, _emit: Emit | None = None) -> Completion:
        return Completion(Tokens(1, 1))

    async def aclose(self) -> None:
        self.closed = True


def config(folder: Path) -> ProcessConfig:
    return ProcessConfig(
        deployment=DeploymentSpec(
            database=DATABASE, queue=QueueSpec(broker="redis"), instances=InstanceSpec(initial=1)
        ),
        upstream_url="http://endpoint",
        run_dir=folder,
    )


def test_a_gateway_closes_its_ledger_whatever_fails_before(tmp_path: Path) -> None:
    def broken() -> NoReturn:
        raise RuntimeError("no figures")

    async def main() -> None:
        ledger = PooledLedger()
        provider: Any = NoFleet()
        gateway = GatewayService(
            config(tmp_path),
            provider,
            InlineCompute(),
            cpu_sample=broken,
            ledger=ledger,
            queue=LostQueue(),
            wall_clock=lambda: 0.0,
        )
        gateway._watching = [asyncio.create_task(asyncio.sleep(3600))]
        accounting = gateway._system.accounting
        assert accounting is not None
        await accounting.start({})
        accounting.writer.add(LedgerEntry(entry_id="last", at_s=0.0))
        with pytest.raises(ExceptionGroup) as failed:
            await gateway.aclose()
        assert [str(error) for error in failed.value.exceptions] == ["no figures", "no fleet"]
        assert ledger.entry("last") is not None
        assert ledger.closed
        assert not list(tmp_path.glob("*.spill"))

    kernel.run(main())


def test_an_instance_samples_its_connections_before_it_closes_them(tmp_path: Path) -> None:
    async def main() -> None:
        ledger, endpoint = PooledLedger(), Endpoint()
        settings = config(tmp_path)
        batches = BatchConsumer(
            settings.deployment.queue,
            LostQueue(),
            build_accounting(ledger, DATABASE, source="i", wall_clock=lambda: 0.0, folder=tmp_path),
            load_prices(),
            uniform=hashed_uniform(0),
            wall_clock=lambda: 0.0,
            instance="i",
        )
        service = InstanceService(
            "i",
            settings,
            endpoint,
            InlineCompute(),
            cpu_sample=lambda: sample("i cpu"),
            usage=lambda: Usage(cpu=0.0, memory=0.0),
            control=None,
            on_orphaned=lambda: None,
            batches=batches,
        )
        service.start()
        await asyncio.sleep(0.5)
        await service.aclose()
        assert ledger.closed
        assert endpoint.closed
        stations = [s.station for s in read_samples(tmp_path / "stations-i.jsonl")]
        assert "i database pool" in stations

    kernel.run(main())


def test_a_cancellation_under_way_leaves_no_step_out() -> None:
    async def main() -> None:
        done: list[str] = []

        async def slow() -> None:
            await asyncio.sleep(10)

        closing = asyncio.create_task(close_all(slow, lambda: done.append("last")))
        await asyncio.sleep(1)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert done == ["last"]

    kernel.run(main())
