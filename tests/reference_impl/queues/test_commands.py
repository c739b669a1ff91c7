"""`twinload queue`: what an operator sees of a queue, and that looking at it makes nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis.asyncio import Redis

from reference_impl.queues.commands import queue
from reference_impl.queues.connect import URL_VARIABLE, connect_queue
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.shape import QueueShape, find_shape
from tests.servers.kafka import shared_kafka_url
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import shared_valkey_url, unique_prefix

LEVELS = 3
BROKERS = [
    pytest.param(shared_valkey_url, id="redis"),
    pytest.param(shared_rabbitmq_url, id="rabbitmq", marks=pytest.mark.xdist_group("rabbitmq")),
]


def kafka_url() -> str:
    return f"kafka://{shared_kafka_url()}"


def invoke(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(queue, arguments, env={URL_VARIABLE: url})


def shown(url: str, *arguments: str) -> dict[str, Any]:
    result = invoke(url, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


async def fill(url: str, name: str, **options: Any) -> None:
    """Seven tasks in three classes; three are dead, and one waits for its retry."""
    made = connect_queue(url, name=name, levels=LEVELS, lease_s=30, **options)
    try:
        await made.enqueue_many(
            [QueuedTask(f"t{n}", "summarise", {"n": n}, priority=n % LEVELS) for n in range(7)]
        )
        for number in range(3):
            task = await made.dequeue(5)
            assert task is not None
            await made.reject(task.task_id, f"no handler, {number}:\x1b[31m\nnone")
        task = await made.dequeue(5)
        assert task is not None
        await made.nack(task.task_id, 3600, "later")
    finally:
        await made.close()


@pytest.mark.parametrize("server", BROKERS)
def test_status_tells_what_waits_by_class_and_why_others_do_not(server: Callable[[], str]) -> None:
    url, name = server(), unique_prefix()
    asyncio.run(fill(url, name))
    found = shown(url, "status", "--name", name)
    assert len(found["ready"]) == LEVELS
    assert (sum(found["ready"]), found["delayed"], found["dead"]) == (3, 1, 3)
    assert found["depth"] == 4
    is_redis = url.startswith("redis")
    assert found["held"] == (0 if is_redis else None)
    assert (found["oldest_s"] is not None) == is_redis
    text = invoke(url, "status", "--name", name).stdout
    assert "ready    3 (class" in text
    assert ("this broker does not tell" in text) != is_redis


@pytest.mark.parametrize("server", BROKERS)
def test_dead_letters_are_listed_with_instant_and_reason_and_stay(
    server: Callable[[], str],
) -> None:
    url, name = server(), unique_prefix()
    asyncio.run(fill(url, name))
    lines = invoke(url, "dead", "--name", name).stdout.splitlines()
    assert lines[-1] == f"dead letters in {name}: 3"
    assert [line.partition(": ")[2] for line in lines[:-1]] == [
        f"no handler, {number}: [31m none" for number in range(3)
    ]
    found = shown(url, "dead", "--name", name, "--limit", "2")
    assert found["dead"] == 3
    assert [letter["task"]["task_type"] for letter in found["letters"]] == ["summarise"] * 2
    assert found["letters"][0]["died"][:10] == lines[0][:10]


@pytest.mark.parametrize("server", BROKERS)
def test_a_replay_takes_the_oldest_as_many_as_asked_then_all(server: Callable[[], str]) -> None:
    url, name = server(), unique_prefix()
    asyncio.run(fill(url, name))
    answers = [shown(url, "replay", "--name", name, *limit) for limit in (("--limit", "2"), (), ())]
    assert [(answer["replayed"], answer["dead"]) for answer in answers] == [(2, 1), (1, 0), (0, 0)]
    assert sum(shown(url, "status", "--name", name)["ready"]) == 6


@pytest.mark.parametrize("server", [*BROKERS, pytest.param(kafka_url, id="kafka")])
def test_looking_for_a_queue_that_is_not_there_says_so_and_makes_none(
    server: Callable[[], str],
) -> None:
    url, name = server(), unique_prefix()
    for verb in ("status", "dead", "replay"):
        result = invoke(url, verb, "--name", name)
        assert result.exit_code != 0
        assert f"no queue {name!r} at" in result.stderr
    assert asyncio.run(find_shape(url, name)) is None


def test_looking_on_redis_writes_no_key() -> None:
    url, name = shared_valkey_url(), unique_prefix()
    invoke(url, "status", "--name", name)

    async def keys() -> list[bytes]:
        client: Any = Redis.from_url(url)
        async with client:
            found: list[bytes] = await client.keys(f"*{name}*")
        return found

    assert asyncio.run(keys()) == []


@pytest.mark.parametrize("server", BROKERS)
def test_wrong_levels_are_named_with_the_right_ones_and_make_no_class(
    server: Callable[[], str],
) -> None:
    url, name = server(), unique_prefix()
    asyncio.run(fill(url, name))
    for levels in ("2", "5"):
        result = invoke(url, "status", "--name", name, "--levels", levels)
        assert result.exit_code != 0
        assert f"has {LEVELS} classes, and --levels says {levels}" in result.stderr
        assert result.stderr.count("\n") == 1
    shape = asyncio.run(find_shape(url, name))
    assert shape == QueueShape(LEVELS, 30 if url.startswith("redis") else None)
    assert invoke(url, "status", "--name", name, "--levels", str(LEVELS)).exit_code == 0


@pytest.mark.xdist_group("rabbitmq")
def test_a_rabbitmq_queue_that_was_declared_otherwise_is_named_with_the_option_for_it() -> None:
    url, name = shared_rabbitmq_url(), unique_prefix()
    asyncio.run(fill(url, name, delivery_limit=7, capacity=100))
    result = invoke(url, "status", "--name", name)
    assert result.exit_code != 0
    assert "was made with capacity (x-max-length) 100, here it is none" in result.stderr
    assert "--delivery-limit and --capacity" in result.stderr
    assert result.stderr.count("\n") == 1
    declared = ("--delivery-limit", "7", "--capacity", "100")
    assert shown(url, "status", "--name", name, *declared)["dead"] == 3


def test_a_queue_on_kafka_is_found_with_its_classes() -> None:
    url, name = kafka_url(), unique_prefix()

    async def enqueue() -> None:
        made = connect_queue(url, name=name, levels=LEVELS)
        await made.enqueue_many(
            [QueuedTask(f"t{n}", "x", {}, priority=n % LEVELS) for n in range(5)]
        )
        await made.close()

    asyncio.run(enqueue())
    found = shown(url, "status", "--name", name)
    assert found["ready"] == [2, 2, 1]
    assert (found["delayed"], found["held"], found["dead"]) == (0, None, 0)


@pytest.mark.xdist_group("rabbitmq")
def test_a_refused_password_is_in_no_message() -> None:
    url = shared_rabbitmq_url().replace("guest:guest", "guest:sesame")
    result = invoke(url, "status")
    assert result.exit_code != 0
    assert "correct user and password" in result.stderr
    assert "sesame" not in result.output


@pytest.mark.parametrize("scheme", ["amqp", "redis", "kafka"])
def test_a_broker_that_is_not_there_is_one_line_without_the_password(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        user = "" if scheme == "kafka" else "user:sesame@"
        result = invoke(f"{scheme}://{user}127.0.0.1:{bound.getsockname()[1]}", "status")
    assert result.exit_code != 0
    assert f"no broker at {scheme}://127.0.0.1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "sesame" not in result.output + caplog.text


def test_nothing_of_a_url_that_cannot_be_read_is_repeated() -> None:
    result = invoke("redis://user:ses/ame@host:1", "status")
    assert result.exit_code == 2
    assert "--queue is no URL of a queue" in result.stderr
    assert "ame" not in result.stderr.replace("name", "")
