"""The queues beside bare drivers and taskiq, in one process and one run, on the same messages.

    python -m tests.benchmarks.queues [--json] [--messages 2000] [--rounds 3]

Rounds alternate and medians are told. `published` and `consumed` are messages a second by the clock, because part of the work is
another process; `cpu_ms` is this process's CPU time a message for both. Ours and bare aio-pika use the same kind of queue
(quorum), persistent messages and 200 confirms in flight; taskiq-aio-pika its own default, a classic queue. Kafka is librdkafka's
mock cluster, whose threads run in this process, so the CPU time of both Kafka rows has it too. `memory_single` enqueues, dequeues
and acknowledges one by one; the others in batches of 100.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from redis.asyncio import Redis
from taskiq_aio_pika import AioPikaBroker

from reference_impl.live.loop import run_live
from reference_impl.queues.codec import encode_task
from reference_impl.queues.kafka import KafkaQueue
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.redis_streams import RedisStreamsQueue
from tests.servers.kafka import shared_kafka_url
from tests.servers.rabbitmq import private_rabbitmq
from tests.servers.valkey import ValkeyProcess

BATCH = 100
IN_FLIGHT = 200

Round = Callable[[int], Awaitable[tuple[float, float, float]]]


def tasks(number: int) -> list[QueuedTask]:
    return [
        QueuedTask(f"task-{n}", "call", {"prompt": "x" * 200, "n": n}, enqueued_s=0.0)
        for n in range(number)
    ]


async def _timed(
    publish: Awaitable[None], consume: Callable[[], Awaitable[None]]
) -> tuple[float, float, float]:
    """Seconds to publish, seconds to consume, CPU seconds of both."""
    cpu_s = time.process_time()
    began_s = time.perf_counter()
    await publish
    published_s = time.perf_counter()
    await consume()
    ended_s = time.perf_counter()
    return published_s - began_s, ended_s - published_s, time.process_time() - cpu_s


async def _ours(queue: MessageQueue, number: int) -> tuple[float, float, float]:
    given = tasks(number)

    async def publish() -> None:
        step = BATCH if not isinstance(queue, RabbitMQQueue) else number
        for start in range(0, number, step):
            await queue.enqueue_many(given[start : start + step])

    async def consume() -> None:
        left = number
        while left:
            taken = await queue.dequeue_many(BATCH, 5.0)
            assert taken, f"{left} tasks are missing"
            await queue.ack_many([task.task_id for task in taken])
            left -= len(taken)

    await queue.statistics()  # connected and declared, as the others are before they are timed
    if isinstance(queue, KafkaQueue):
        await queue.dequeue()  # its consumers too
    try:
        return await _timed(publish(), consume)
    finally:
        await queue.close()


async def _memory_single(number: int) -> tuple[float, float, float]:
    queue = MemoryQueue()
    given = tasks(number)

    async def publish() -> None:
        for task in given:
            await queue.enqueue(task)

    async def consume() -> None:
        for _ in range(number):
            task = await queue.dequeue(5.0)
            assert task is not None
            await queue.ack(task.task_id)

    return await _timed(publish(), consume)


async def _bare_aiokafka(url: str, name: str, number: int) -> tuple[float, float, float]:
    """As our adapter uses it: an idempotent producer, commits once a batch was worked on, no group."""
    producer: Any = AIOKafkaProducer(bootstrap_servers=url, enable_idempotence=True)
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=url,
        group_id=name,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    await producer.start()
    await producer.partitions_for(name)
    await consumer.start()
    partition = TopicPartition(name, 0)
    consumer.assign([partition])
    bodies = [encode_task(task) for task in tasks(number)]

    async def publish() -> None:
        for start in range(0, number, BATCH):
            batch = bodies[start : start + BATCH]
            await asyncio.gather(*[await producer.send(name, body, partition=0) for body in batch])

    async def consume() -> None:
        left = number
        while left:
            fetched = await consumer.getmany(timeout_ms=50, max_records=BATCH)
            for record in fetched.get(partition, []):
                json.loads(record.value)
                left -= 1
                position = record.offset + 1
            if fetched:
                await consumer.commit({partition: position})

    try:
        return await _timed(publish(), consume)
    finally:
        await consumer.stop()
        await producer.stop()


async def _bare_aio_pika(url: str, name: str, number: int) -> tuple[float, float, float]:
    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(prefetch_count=BATCH)
    queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    bodies = [encode_task(task) for task in tasks(number)]

    async def publish() -> None:
        left = iter(bodies)

        async def some() -> None:
            for body in left:
                await channel.default_exchange.publish(
                    aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT), name
                )

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))

    async def consume() -> None:
        left = number
        done = asyncio.Event()

        async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            nonlocal left
            json.loads(message.body)
            await message.ack()
            left -= 1
            if left == 0:
                done.set()

        await queue.consume(handle)
        await asyncio.wait_for(done.wait(), 60)

    try:
        return await _timed(publish(), consume)
    finally:
        await connection.close()


async def _taskiq(url: str, name: str, number: int) -> tuple[float, float, float]:
    broker = AioPikaBroker(url, queue_name=name, exchange_name=name, qos=BATCH)

    async def call(prompt: str, n: int) -> None: ...

    task = broker.register_task(call, task_name="call")
    broker.is_worker_process = True  # only then does it open a channel to read
    await broker.startup()
    messages: Any = broker.listen()

    async def publish() -> None:
        left = iter(range(number))

        async def some() -> None:
            for n in left:
                await task.kiq("x" * 200, n)

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))

    async def consume() -> None:
        for _ in range(number):
            message = await anext(messages)
            broker.formatter.loads(message.data)
            await message.ack()

    try:
        return await _timed(publish(), consume)
    finally:
        await messages.aclose()
        await broker.shutdown()


async def _bare_redis(url: str, name: str, number: int) -> tuple[float, float, float]:
    client: Any = Redis.from_url(url, protocol=2)
    await client.xgroup_create(name, "g", id="0", mkstream=True)
    bodies = [encode_task(task) for task in tasks(number)]

    async def publish() -> None:
        for start in range(0, number, BATCH):
            pipeline = client.pipeline(transaction=False)
            for body in bodies[start : start + BATCH]:
                pipeline.xadd(name, {"t": body})
            await pipeline.execute()

    async def consume() -> None:
        left = number
        while left:
            ((_, entries),) = await client.xreadgroup("g", "c", {name: ">"}, count=BATCH)
            for _, fields in entries:
                json.loads(fields[b"t"])
            ids = [entry_id for entry_id, _ in entries]
            pipeline = client.pipeline(transaction=False)
            pipeline.xack(name, "g", *ids)
            pipeline.xdel(name, *ids)
            await pipeline.execute()
            left -= len(entries)

    try:
        return await _timed(publish(), consume)
    finally:
        await client.aclose()


async def measure(
    amqp: str, redis: str, kafka: str, messages: int, rounds: int
) -> dict[str, float]:
    many = messages * 5

    contenders: dict[str, tuple[int, Round]] = {
        "memory": (many, lambda _: _ours(MemoryQueue(), many)),
        "memory_single": (many, lambda _: _memory_single(many)),
        "redis_streams_batched": (
            many,
            lambda n: _ours(RedisStreamsQueue(redis, name=f"ours-{n}"), many),
        ),
        "bare_redis": (many, lambda n: _bare_redis(redis, f"bare-{n}", many)),
        "rabbitmq": (
            messages,
            lambda n: _ours(RabbitMQQueue(amqp, name=f"ours-{n}", levels=3), messages),
        ),
        "aio_pika": (messages, lambda n: _bare_aio_pika(amqp, f"bare-{n}", messages)),
        "kafka": (
            many,
            lambda n: _ours(KafkaQueue(kafka, name=f"ours-{n}", levels=3, in_group=False), many),
        ),
        "aiokafka": (many, lambda n: _bare_aiokafka(kafka, f"bare-{n}", many)),
        "taskiq": (messages, lambda n: _taskiq(amqp, f"taskiq-{n}", messages)),
    }
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, (_, play) in contenders.items():
            seconds = await play(number)
            if number:  # the first round warms up
                taken[name].append(seconds)
    result: dict[str, float] = {}
    for name, (count, _) in contenders.items():
        result[f"{name}_published_per_s"] = count / statistics.median(t[0] for t in taken[name])
        result[f"{name}_consumed_per_s"] = count / statistics.median(t[1] for t in taken[name])
        result[f"{name}_per_s"] = count / statistics.median(t[0] + t[1] for t in taken[name])
        result[f"{name}_cpu_ms"] = 1e3 * statistics.median(t[2] for t in taken[name]) / count
    for ours, bare in (("rabbitmq", "aio_pika"), ("kafka", "aiokafka")):
        for phase in ("published_", "consumed_", ""):
            ratio = result[f"{ours}_{phase}per_s"] / result[f"{bare}_{phase}per_s"]
            result[f"{ours}_{phase}ratio_to_{bare}"] = ratio
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--messages", type=int, default=2000, help="a round (default 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    options = parser.parse_args()
    with ValkeyProcess() as valkey, private_rabbitmq() as rabbitmq:
        urls = rabbitmq.url, valkey.url, shared_kafka_url()
        result = run_live(measure(*urls, options.messages, options.rounds))
    if options.json:
        print(json.dumps(result))
    else:
        for name, figure in result.items():
            print(f"{name:40} {figure:>14,.4g}")


if __name__ == "__main__":
    main()
