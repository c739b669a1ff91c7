"""Invariant 5 on real brokers: whatever is killed, stopped or cut off, no task is lost and none takes effect twice.

Each run is `Trial`: tasks through two worker processes while a plan of faults, drawn from a seed, is played; then `reconcile`
compares the mock's log with the store of effects. The small runs play a few hundred tasks; the soak ten thousand of each kind
of fault, three times in each run, with three seeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from reference_impl.live.loop import run_live
from tests.faults.queues.brokers import (
    BrokerUnderTest,
    KafkaUnderTest,
    RabbitMQUnderTest,
    RedisUnderTest,
)
from tests.faults.queues.plan import Kind, draw_plan
from tests.faults.queues.trial import Account, Trial, reconcile
from tests.loadtests.mock.process import running_mock
from tests.servers.rabbitmq import private_rabbitmq
from tests.servers.valkey import shared_valkey_url

WORKERS = 2
SMALL = 400
LARGE = 10_000
KINDS: list[Kind] = [
    "worker killed",
    "worker stopped",
    "worker reset",
    "worker cut",
    "broker killed",
    "broker stopped",
    "producer reset",
    "producer cut",
]
SMALL_PLANS: list[list[Kind]] = [
    ["worker killed", "worker reset", "producer reset"],
    ["worker stopped", "worker cut", "producer cut"],
    ["broker killed", "broker stopped"],
]


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[BrokerUnderTest]:
    """This module's own, which it kills and stops; runs keep apart by the names of their queues."""
    with private_rabbitmq() as node:
        yield RabbitMQUnderTest(node)


@pytest.fixture
def redis() -> Iterator[BrokerUnderTest]:
    with closing(RedisUnderTest()) as server:
        asyncio.run(server.start())
        yield server


def play(
    broker: BrokerUnderTest,
    effects_url: str,
    folder: Path,
    kinds: Sequence[Kind],
    seed: int,
    tasks: int,
    workers: int = WORKERS,
) -> None:
    plan = draw_plan(kinds, seed, workers)
    with running_mock(folder, "--profile", "fast", "--seed", str(seed)) as mock:

        async def main() -> Account:
            return await Trial(broker, effects_url, mock, tasks=tasks, workers=workers).play(plan)

        account = run_live(main())
    reconcile(account, mock, plan, tasks=tasks, workers=workers)


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("kinds", SMALL_PLANS, ids=" + ".join)
def test_no_task_of_rabbitmq_is_lost(
    rabbitmq: BrokerUnderTest, tmp_path: Path, kinds: list[Kind]
) -> None:
    play(rabbitmq, shared_valkey_url(), tmp_path, kinds, 1, SMALL)


@pytest.mark.parametrize("kinds", SMALL_PLANS, ids=" + ".join)
def test_no_task_of_redis_streams_is_lost(
    redis: BrokerUnderTest, tmp_path: Path, kinds: list[Kind]
) -> None:
    """The store of effects is on the same server, and is killed with it."""
    play(redis, redis.url, tmp_path, kinds, 2, SMALL)


@pytest.mark.soak  # joining a group takes the mock's clients seconds, and its faults are the fewest
def test_no_task_of_kafka_is_lost(tmp_path: Path) -> None:
    play(KafkaUnderTest(), shared_valkey_url(), tmp_path, ["worker killed"], 3, SMALL, workers=1)


@pytest.mark.soak
@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_no_task_of_ten_thousand_of_rabbitmq_is_lost(
    rabbitmq: BrokerUnderTest, tmp_path: Path, kind: Kind, seed: int
) -> None:
    play(rabbitmq, shared_valkey_url(), tmp_path, [kind] * 3, seed, LARGE)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_no_task_of_ten_thousand_of_redis_streams_is_lost(
    redis: BrokerUnderTest, tmp_path: Path, kind: Kind, seed: int
) -> None:
    play(redis, redis.url, tmp_path, [kind] * 3, seed, LARGE)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["worker killed", "worker stopped"])
def test_no_task_of_ten_thousand_of_kafka_is_lost(tmp_path: Path, kind: Kind, seed: int) -> None:
    """Its mock allows one consumer; see `KafkaUnderTest` for what that leaves out."""
    broker = KafkaUnderTest()
    play(broker, shared_valkey_url(), tmp_path, [kind] * 3, seed, LARGE, workers=1)
