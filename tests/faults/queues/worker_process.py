"""One worker as a process of its own: tasks from a broker, calls to the mock, effects in a store.

`python -m tests.faults.queues.worker_process '{"queue": URL, "name": ..., "mock": URL, ...}'`. It says `{"ready": true}`, drains on
SIGTERM, and says what it did.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec

from reference_impl.deployment import RetrySpec
from reference_impl.live.loop import run_live
from reference_impl.live.serving import stop_on_signals
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.messages import Call, RequestTag
from reference_impl.processor import AsyncLLMProcessor
from reference_impl.queues.effects import EffectStore
from reference_impl.queues.kafka import KafkaQueue
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.redis_streams import RedisStreamsQueue
from reference_impl.task_processor import TaskProcessor
from reference_impl.telemetry import RequestTrace
from tests.faults.queues.effects_at import effects_at


class WorkerSettings(msgspec.Struct):
    queue: str
    name: str
    mock: str
    effects: str = ""
    concurrency: int = 8
    lease_s: float = 3.0
    levels: int = 3


def connect(url: str, name: str, lease_s: float, levels: int) -> MessageQueue:
    """The queue that a URL stands for."""
    options: dict[str, Any] = {"name": name, "lease_s": lease_s, "levels": levels}
    if url.startswith("amqp"):
        return RabbitMQQueue(url, **options, heartbeat_s=1.0, timeout_s=5.0)
    if url.startswith("kafka"):
        return KafkaQueue(url.partition("://")[2], **options, in_group=False)
    return RedisStreamsQueue(url, **options, timeout_s=2.0)


async def main(settings: WorkerSettings) -> None:
    stop = stop_on_signals()
    queue = connect(settings.queue, settings.name, settings.lease_s, settings.levels)
    effects: EffectStore | None = None
    if settings.effects:
        effects = effects_at(settings.effects, settings.name)
    llm = HttpMessages(AiohttpTransport(settings.mock), api_key="test", forward_tags=True)
    port = AsyncLLMProcessor(port=llm, retry=RetrySpec(max_attempts=1))

    async def call(task: QueuedTask) -> dict[str, str]:
        """One upstream call, marked with the task's number, so that the mock's log can be compared."""
        body = msgspec.json.encode(
            {
                "model": "claude-haiku-4-5",
                "max_tokens": 16,
                "messages": [{"role": "user", "content": task.task_id}],
            }
        )
        number = int(task.task_id)
        await port.complete(
            Call(
                request_id=number,
                model="claude-haiku-4-5",
                max_tokens=16,
                stream=False,
                trace=RequestTrace(),
                body=body,
                size_bytes=len(body),
                tag=RequestTag(number, output_tokens=4),
            )
        )
        return {"debited": task.task_id}

    processor = TaskProcessor(
        queue,
        concurrency=settings.concurrency,
        timeout_s=30.0,
        retry=RetrySpec(backoff_s=0.1, backoff_max_s=1.0),
        effects=effects,
    )
    processor.register_handler("call", call, whole_task=True)
    running = asyncio.create_task(processor.process_queue())
    say({"ready": True})
    await stop.wait()
    await processor.drain(10.0)
    await running
    await queue.close()
    await port.aclose()
    if effects is not None:
        await effects.aclose()
    say(msgspec.structs.asdict(processor.statistics()))


def say(document: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_live(main(msgspec.json.decode(sys.argv[1], type=WorkerSettings)))
