"""Invariant 5 on real brokers: workers and brokers are killed at random points, by seed; the mock's log is the truth.

After every run: each accepted task took effect once in the ledger (Valkey, SET NX), nothing is left in the queue or among the
dead letters, and the upstream calls beyond one a task are at most what the faults explain, and no more than the ledger's books
show as repeated runs.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from reference_impl.live.loop import run_live
from reference_impl.live.services.rabbitmq import RabbitMQNode
from reference_impl.queues.effects import EffectStatistics, EffectsUnavailable
from reference_impl.queues.errors import QueueUnavailable
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.queues.redis_effects import RedisEffects
from tests.faults.queues.worker_process import WorkerSettings, connect
from tests.faults.queues.workers import WorkerProcess
from tests.loadtests.mock.process import Mock, running_mock
from tests.servers.rabbitmq import private_rabbitmq, shared_rabbitmq_url
from tests.servers.valkey import ValkeyProcess, shared_valkey_url, unique_prefix

WORKERS = 2
CONCURRENCY = 16
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


async def produce(queue: MessageQueue, tasks: int) -> None:
    """What is not confirmed is sent again, under the same key."""
    for start in range(0, tasks, 100):
        batch = [
            QueuedTask(str(number), "call", {"n": number}, number % 3, max_retries=50)
            for number in range(start, min(start + 100, tasks))
        ]
        while True:
            try:
                await queue.enqueue_many(batch)
                break
            except QueueUnavailable:
                await asyncio.sleep(0.2)


async def progress(effects: RedisEffects) -> int:
    """Effects so far; the ledger's server may be what was just killed."""
    while True:
        try:
            return (await effects.statistics()).effects
        except EffectsUnavailable:
            await asyncio.sleep(0.05)


async def reach(effects: RedisEffects, number: float) -> None:
    async with asyncio.timeout(60 + number / 50):
        while await progress(effects) < number:
            await asyncio.sleep(0.02)


async def settle(effects: RedisEffects, queue: MessageQueue, tasks: int) -> EffectStatistics:
    """Wait until every task took effect and the queue is empty; the ledger's books."""
    await reach(effects, tasks)
    async with asyncio.timeout(60):
        while True:
            now = await queue.statistics()
            if now.depth == 0 and not now.held:
                break
            await asyncio.sleep(0.1)
    assert now.dead == 0
    for number in range(tasks):
        assert await effects.effect(str(number)) == b'{"debited":"%d"}' % number
    return await effects.statistics()


def reconcile(books: EffectStatistics, mock: Mock, tasks: int, most_wasted: int) -> None:
    """Once the mock has ended, and its log is whole."""
    assert books.effects == tasks, "debited twice, or never"
    calls = [record["request_id"] for record in mock.records()]
    assert set(calls) == set(range(tasks)), "an effect without its call, or a call without task"
    assert len(calls) <= books.runs, "a call that the books do not show"
    wasted = len(calls) - tasks
    print(
        f"{tasks} tasks, {len(calls)} calls, {books.runs} runs, {wasted} wasted of at most {most_wasted}"
    )
    assert 0 <= wasted <= most_wasted


async def kill_workers(
    queue_url: str, effects_url: str, mock: Mock, tasks: int, kills: int, seed: int
) -> EffectStatistics:
    luck = random.Random(seed)
    name = unique_prefix()
    settings = WorkerSettings(
        queue_url, name, mock.url, effects=effects_url, concurrency=CONCURRENCY
    )
    effects = RedisEffects(effects_url, name=name)
    queue = connect(queue_url, name, settings.lease_s, settings.levels)
    workers = [await WorkerProcess.start(settings) for _ in range(WORKERS)]
    try:
        producing = asyncio.create_task(produce(queue, tasks))
        for number in range(kills):
            reached = tasks * (number + luck.random()) / (kills + 1)
            await reach(effects, reached)
            victim = luck.randrange(WORKERS)
            await workers[victim].kill()
            workers[victim] = await WorkerProcess.start(settings)
        await producing
        books = await settle(effects, queue, tasks)
        for worker in workers:
            assert (await worker.drain())["dead"] == 0
        return books
    finally:
        for worker in workers:
            await worker.kill()
        await queue.close()
        await effects.aclose()


@pytest.mark.xdist_group("rabbitmq")
def test_killed_workers_lose_no_task_of_rabbitmq(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--profile", "fast", "--seed", "1") as mock:
        books = run_live(kill_workers(shared_rabbitmq_url(), shared_valkey_url(), mock, 600, 2, 1))
    reconcile(books, mock, 600, 2 * CONCURRENCY)


def test_killed_workers_lose_no_task_of_redis_streams(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--profile", "fast", "--seed", "1") as mock:
        url = shared_valkey_url()
        books = run_live(kill_workers(url, url, mock, 600, 2, 2))
    reconcile(books, mock, 600, 2 * CONCURRENCY)


@pytest.mark.soak
@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_ten_thousand_tasks_survive_killed_workers(tmp_path: Path, broker: str) -> None:
    with running_mock(tmp_path, "--profile", "fast", "--seed", "1") as mock:
        url = shared_rabbitmq_url() if broker == "rabbitmq" else shared_valkey_url()
        books = run_live(kill_workers(url, shared_valkey_url(), mock, 10_000, 6, 3))
    reconcile(books, mock, 10_000, 6 * CONCURRENCY)


async def kill_broker(
    node: RabbitMQNode | ValkeyProcess, effects_url: str, mock: Mock, tasks: int, seed: int
) -> EffectStatistics:
    luck = random.Random(seed)
    name = unique_prefix()
    settings = WorkerSettings(
        node.url, name, mock.url, effects=effects_url, concurrency=CONCURRENCY
    )
    effects = RedisEffects(effects_url, name=name)
    queue = connect(node.url, name, settings.lease_s, settings.levels)
    workers = [await WorkerProcess.start(settings) for _ in range(WORKERS)]
    try:
        producing = asyncio.create_task(produce(queue, tasks))
        reached = tasks * luck.uniform(0.2, 0.6)
        await reach(effects, reached)
        node.kill()
        if isinstance(node, RabbitMQNode):
            await node.start()
        else:
            await asyncio.to_thread(node.start, *DURABLE)
        await producing
        books = await settle(effects, queue, tasks)
        for worker in workers:
            assert (await worker.drain())["dead"] == 0
        return books
    finally:
        for worker in workers:
            await worker.kill()
        await queue.close()
        await effects.aclose()


def test_a_killed_redis_with_an_append_only_file_loses_no_task(tmp_path: Path) -> None:
    server = ValkeyProcess()
    try:
        server.start(*DURABLE)
        with running_mock(tmp_path, "--profile", "fast", "--seed", "1") as mock:
            books = run_live(kill_broker(server, server.url, mock, 600, 4))
        reconcile(books, mock, 600, WORKERS * CONCURRENCY)
    finally:
        server.close()


@pytest.mark.soak
@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_rabbitmq_loses_no_task(tmp_path: Path, seed: int) -> None:
    with private_rabbitmq() as node, running_mock(tmp_path, "--profile", "fast") as mock:
        books = run_live(kill_broker(node, shared_valkey_url(), mock, 10_000, seed))
    reconcile(books, mock, 10_000, WORKERS * CONCURRENCY)
