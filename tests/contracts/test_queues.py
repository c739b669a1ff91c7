"""One suite for every `MessageQueue`: in memory and virtual on both loops, brokers on a real one.

Waiting is by the loop's clock. A real broker's waits are as short as its own resolution allows; what differs between
brokers is declared in `Traits`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import enum
import math
from typing import Any

import msgspec
import pytest

from reference_impl.queues.errors import InvalidTask, QueueClosed, TaskTooLarge
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.queues.weighted_round import WeightedRound
from tests.contracts.queue_worlds import WORLDS, QueueWorld

LEVELS = 3


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> QueueWorld:
    return request.param(levels=LEVELS)  # type: ignore[no-any-return]


def task(name: str, priority: int = 0, **fields: Any) -> QueuedTask:
    return QueuedTask(name, "echo", {"name": name}, priority, **fields)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


async def take(queue: MessageQueue, wait_s: float = 10.0) -> QueuedTask:
    taken = await queue.dequeue(wait_s)
    assert taken is not None, "no task came"
    return taken


async def take_all(queue: MessageQueue, number: int) -> list[QueuedTask]:
    return [await take(queue) for _ in range(number)]


def test_a_task_arrives_whole_and_is_gone_when_acknowledged(world: QueueWorld) -> None:
    async def body() -> None:
        one, other = await world.connect(), await world.connect()
        sent = QueuedTask(
            "t-1",
            "summarise",
            {
                "text": "naïve · 東京 🗼 \u0000",
                "numbers": [1, 2.5, None, True],
                "nested": {"a": {}},
            },
            priority=1,
            max_retries=7,
            idempotency_key="key-1",
            trace_context={"traceparent": "00-ab-cd-01"},
        )
        assert await one.enqueue(sent) == "t-1"
        got = await take(other)
        assert got.enqueued_s is not None
        assert got == msgspec.structs.replace(sent, enqueued_s=got.enqueued_s)
        assert await other.ack("t-1")
        assert not await other.ack("t-1")
        assert await other.dequeue() is None

    world.play(body)


def test_an_empty_queue_gives_none_and_waits_as_long_as_it_is_told(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        loop = asyncio.get_running_loop()
        assert await queue.dequeue() is None
        began_s = loop.time()
        assert await queue.dequeue(0.2) is None
        assert 0.19 <= loop.time() - began_s < 2.0

    world.play(body)


def test_a_waiting_consumer_is_woken_by_a_task(world: QueueWorld) -> None:
    async def body() -> None:
        one, other = await world.connect(), await world.connect()
        waiting = asyncio.create_task(other.dequeue(math.inf))
        await asyncio.sleep(0.05)
        await one.enqueue(task("t"))
        got = await waiting
        assert got is not None
        assert got.task_id == "t"
        assert await other.ack("t")

    world.play(body)


def test_tasks_of_one_priority_leave_in_the_order_of_their_arrival(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        names = [f"t-{n}" for n in range(50)]
        assert await queue.enqueue_many([task(name) for name in names]) == names
        taken = [t.task_id for t in await take_all(queue, 50)]
        assert taken == names
        assert await queue.ack_many(taken) == [True] * 50

    world.play(body)


def test_a_consumer_whose_work_is_long_takes_each_class_in_order(world: QueueWorld) -> None:
    async def body() -> None:
        lease_s = 2 * world.traits.short_lease_s
        queue = await world.connect(lease_s=lease_s)
        await queue.enqueue_many([task(f"p{p}-{n}", p) for n in range(3) for p in (0, 2)])
        taken = []
        for _ in range(6):
            taken.append((await take(queue)).task_id)
            await asyncio.sleep(0.65 * lease_s)  # nobody asks: what came with it may go back
            assert await queue.ack(taken[-1])
        for priority in (0, 2):
            of_class = [name for name in taken if name.startswith(f"p{priority}")]
            assert of_class == [f"p{priority}-{n}" for n in range(3)], taken

    world.play(body)


def test_an_urgent_task_behind_ten_thousand_waits_at_most_one_round(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        backlog = world.traits.backlog
        for start in range(0, backlog, 1000):
            await queue.enqueue_many(
                [task(f"bulk-{n}") for n in range(start, min(start + 1000, backlog))]
            )
        first = await take_all(queue, 5)
        assert {t.priority for t in first} == {0}
        await queue.enqueue(task("urgent", priority=LEVELS - 1))
        before = 0
        while True:
            got = await take(queue)
            assert await queue.ack(got.task_id)
            if got.task_id == "urgent":
                break
            before += 1
        assert before <= WeightedRound(LEVELS).length

    world.play(body)


def test_no_class_is_starved_and_each_gets_its_share(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        for level in range(LEVELS):
            await queue.enqueue_many([task(f"p{level}-{n}", level) for n in range(30)])
        rounds = 3
        length = WeightedRound(LEVELS).length
        taken = await take_all(queue, rounds * length)
        shares = [sum(t.priority == level for t in taken) for level in range(LEVELS)]
        for level, share in enumerate(shares):
            assert abs(share - rounds * (level + 1)) <= 2, shares
        await queue.ack_many([t.task_id for t in taken])

    world.play(body)


def test_priorities_above_the_highest_share_its_class(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue_many([task("a", 99), task("b", LEVELS - 1), task("c", 50)])
        assert [(t.task_id, t.priority) for t in await take_all(queue, 3)] == [
            ("a", 99),
            ("b", LEVELS - 1),
            ("c", 50),
        ]
        await queue.ack_many(["a", "b", "c"])

    world.play(body)


def test_a_retry_comes_after_its_delay_and_counts(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        loop = asyncio.get_running_loop()
        await queue.enqueue(task("t"))
        first = await take(queue)
        given_back_s = loop.time()
        assert await queue.nack("t", delay_s=0.3, reason="try later") == "retry"
        assert await queue.dequeue() is None
        again = await take(queue)
        waited_s = loop.time() - given_back_s
        assert 0.29 <= waited_s <= 0.3 * world.traits.delay_factor + world.traits.slack_s
        assert again == msgspec.structs.replace(first, retry_count=1)
        assert await queue.ack("t")

    world.play(body)


def test_a_retry_without_delay_comes_at_once_behind_its_class(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue_many([task("a"), task("b")])
        assert (await take(queue)).task_id == "a"
        assert await queue.nack("a") == "retry"
        assert [t.task_id for t in await take_all(queue, 2)] == ["b", "a"]
        await queue.ack_many(["a", "b"])

    world.play(body)


@pytest.mark.parametrize("delay_s", [3e6, 1e9, math.inf])
def test_a_retry_waits_for_24_days_at_most(world: QueueWorld, delay_s: float) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue(task("t"))
        await take(queue)
        assert await queue.nack("t", delay_s) == "retry"
        assert await queue.dequeue(0.05) is None
        now = await queue.statistics()
        assert now.delayed in {1, None}
        assert (now.retried, now.dead) == (1, 0)

    world.play(body)


def test_a_task_is_dead_after_its_last_retry_and_keeps_its_reason(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue(task("t", max_retries=2))
        for fate in ("retry", "retry", "dead"):
            await take(queue)
            assert await queue.nack("t", reason="ValueError: nö") == fate
        assert await queue.dequeue(0.05) is None
        (letter,) = await queue.dead_letters()
        assert letter.task is not None
        assert (letter.task.task_id, letter.task.retry_count) == ("t", 2)
        assert letter.reason == "failed 3 times: ValueError: nö"
        # A broker counts a letter that was looked at again once it has taken it back.
        async with asyncio.timeout(10):
            while (await queue.statistics()).dead != 1:
                pass

    world.play(body)


def test_a_rejected_task_is_dead_at_once(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue(task("t"))
        await take(queue)
        assert await queue.reject("t", "poison")
        assert not await queue.reject("t", "poison")
        assert await queue.dequeue(0.05) is None
        assert [(d.task and d.task.task_id, d.reason) for d in await queue.dead_letters()] == [
            ("t", "poison")
        ]

    world.play(body)


def test_a_reason_that_no_text_can_hold_is_cleaned_and_bounded(world: QueueWorld) -> None:
    """Python gives names of files that are no UTF-8 with lone surrogates, in the texts of errors too."""

    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue(task("retried", max_retries=1))
        for fate in ("retry", "dead"):
            await take(queue)
            assert await queue.nack("retried", reason="no file 'caf\udce9\0'") == fate
        await queue.enqueue(task("rejected"))
        await take(queue)
        assert await queue.reject("rejected", "\ud83d" + "x" * 100_000)
        letters = [letter.reason for letter in await queue.dead_letters()]
        assert letters == [
            "failed 2 times: no file 'caf\ufffd\ufffd'",
            "\ufffd" + "x" * 9_999,
        ]

    world.play(body)


def test_dead_letters_can_be_looked_at_again_and_replayed_oldest_first(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        names = ["a", "b", "c"]
        for name in names:
            await queue.enqueue(task(name, 1, max_retries=5))
            await take(queue)
            await queue.nack(name)
            await take(queue)
            await queue.reject(name, f"reason {name}")
        for _ in range(2):
            letters = await queue.dead_letters()
            assert [letter.task and letter.task.task_id for letter in letters] == names
        assert len(await queue.dead_letters(limit=2)) == 2
        assert await queue.replay_dead_letters(limit=2) == 2
        again = await take_all(queue, 2)
        assert [(t.task_id, t.retry_count, t.priority) for t in again] == [("a", 0, 1), ("b", 0, 1)]
        await queue.ack_many(["a", "b"])
        assert [d.task and d.task.task_id for d in await queue.dead_letters()] == ["c"]
        assert await queue.replay_dead_letters() == 1
        assert (await take(queue)).task_id == "c"
        assert await queue.ack("c")
        assert await queue.replay_dead_letters() == 0

    world.play(body)


def test_a_released_task_is_ready_at_once_and_no_retry_is_counted(world: QueueWorld) -> None:
    async def body() -> None:
        one, other = await world.connect(), await world.connect()
        await one.enqueue(task("t"))
        first = await take(one)
        assert await one.release("t")
        assert not await one.release("t")
        again = await take(one if world.traits.one_consumer else other)
        assert again.retry_count == first.retry_count == 0

    world.play(body)


def test_a_task_comes_again_when_its_lease_has_ended(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect(lease_s=world.traits.short_lease_s)
        loop = asyncio.get_running_loop()
        await queue.enqueue(task("t"))
        await take(queue)
        held_since_s = loop.time()
        again = await take(queue)
        waited_s = loop.time() - held_since_s
        lease_s = world.traits.short_lease_s
        assert 0.8 * lease_s <= waited_s <= 3 * lease_s + world.traits.slack_s
        assert again.retry_count == 0
        assert again.redeliveries == (1 if world.traits.counts_redeliveries else 0)
        assert await queue.ack("t")

    world.play(body)


def test_an_extended_lease_holds(world: QueueWorld) -> None:
    async def body() -> None:
        lease_s = world.traits.short_lease_s
        queue = await world.connect(lease_s=lease_s)
        await queue.enqueue(task("t"))
        await take(queue)
        for _ in range(8):
            await asyncio.sleep(lease_s / 4)
            assert await queue.extend("t")
        assert await queue.dequeue() is None
        assert await queue.ack("t")
        assert not await queue.extend("t")
        with pytest.raises(ValueError, match="lease_s"):
            await queue.extend("t", lease_s * 2)

    world.play(body)


def test_what_a_consumer_held_is_ready_again_when_it_closes(world: QueueWorld) -> None:
    async def body() -> None:
        one = await world.connect()
        await one.enqueue_many([task("a"), task("b"), task("c")])
        await take_all(one, 2)
        await one.ack("a")
        await one.close()
        other = await world.connect()
        taken = await take_all(other, 2)
        assert sorted(t.task_id for t in taken) == ["b", "c"]
        assert await other.ack_many(["b", "c"]) == [True, True]
        assert await other.dequeue(0.05) is None

    world.play(body)


def test_what_a_dead_consumer_held_is_ready_again(world: QueueWorld) -> None:
    async def body() -> None:
        one = await world.connect(lease_s=world.traits.short_lease_s)
        await one.enqueue_many([task("a"), task("b")])
        await take(one)
        await world.crash(one)
        other = await world.connect(lease_s=world.traits.short_lease_s)
        seen = set()
        for _ in range(2):
            got = await take(other)
            seen.add(got.task_id)
            assert await other.ack(got.task_id)
        assert seen == {"a", "b"}

    world.play(body)


def test_an_orphan_behind_many_that_are_held_is_taken_over_by_one_who_asks_for_one(
    world: QueueWorld,
) -> None:
    if world.traits.one_consumer:
        pytest.skip("one consumer a group: nobody else can hold the others")

    async def body() -> None:
        lease_s = world.traits.short_lease_s
        holder, mortal, heir = [await world.connect(lease_s=lease_s) for _ in range(3)]
        names = [f"held-{n}" for n in range(25)]
        await holder.enqueue_many([task(name) for name in names])
        await take_all(holder, 25)

        async def hold() -> None:
            while True:
                for name in names:
                    assert await holder.extend(name)
                await asyncio.sleep(lease_s / 4)

        holding = asyncio.create_task(hold())
        await holder.enqueue(task("orphan"))
        assert (await take(mortal)).task_id == "orphan"
        await world.crash(mortal)
        assert (await take(heir)).task_id == "orphan"
        assert await heir.ack("orphan")
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        assert await holder.ack_many(names) == [True] * 25

    world.play(body)


def test_what_a_busy_consumer_does_not_ask_for_comes_to_an_idle_one(world: QueueWorld) -> None:
    if world.traits.one_consumer:
        pytest.skip("one consumer a group: nobody else is idle")

    async def body() -> None:
        busy, idle = await world.connect(), await world.connect()
        assert await idle.dequeue() is None
        await busy.enqueue_many([task(f"t-{level}", level) for level in range(LEVELS)])
        held = await take(busy)
        others = [await take(idle) for _ in range(LEVELS - 1)]
        assert {t.task_id for t in [held, *others]} == {f"t-{n}" for n in range(LEVELS)}
        assert await idle.ack_many([t.task_id for t in others]) == [True] * (LEVELS - 1)
        assert await busy.ack(held.task_id)

    world.play(body)


def test_a_task_whose_lease_was_lost_belongs_to_its_new_holder(world: QueueWorld) -> None:
    if world.traits.one_consumer:
        pytest.skip("one consumer a group: nobody else can take it over")

    async def body() -> None:
        lease_s = world.traits.short_lease_s
        one, other = await world.connect(lease_s=lease_s), await world.connect(lease_s=lease_s)
        await one.enqueue(task("t"))
        await take(one)
        again = await take(other)
        assert again.task_id == "t"
        assert not await one.ack("t")
        assert await one.nack("t") == "lost"
        assert not await one.extend("t")
        assert not await one.reject("t", "late")
        assert await other.ack("t")

    world.play(body)


def test_copies_of_a_task_that_is_held_are_settled_with_it(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue_many([task("t"), task("t"), task("u")])
        assert [t.task_id for t in await take_all(queue, 2)] == ["t", "u"]
        assert await queue.ack_many(["t", "u"]) == [True, True]
        assert await queue.dequeue(0.05) is None

    world.play(body)


def test_a_task_past_its_deadline_is_dead_and_not_run(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue(task("late", deadline_s=world.clock() + 0.1))
        await asyncio.sleep(0.15)
        await queue.enqueue(task("good", deadline_s=world.clock() + 600))
        assert (await take(queue)).task_id == "good"
        assert await queue.ack("good")
        (letter,) = await queue.dead_letters()
        assert letter.task is not None
        assert letter.task.task_id == "late"
        assert "deadline" in letter.reason

    world.play(body)


def test_a_megabyte_of_unicode_goes_through_and_more_than_the_limit_is_refused(
    world: QueueWorld,
) -> None:
    async def body() -> None:
        queue = await world.connect()
        text = "東京🗼" * 100_000  # 1.0 MB of UTF-8
        assert len(text.encode()) == 1_000_000
        await queue.enqueue(QueuedTask("big", "echo", {"text": text}))
        got = await take(queue)
        assert got.payload == {"text": text}
        assert await queue.ack("big")
        with pytest.raises(TaskTooLarge, match=r"'huge' has \d+ bytes.*reference"):
            await queue.enqueue_many(
                [task("small"), QueuedTask("huge", "echo", {"text": "x" * 5_000_000})]
            )
        assert await queue.dequeue(0.05) is None, "nothing of a refused batch is accepted"

    world.play(body)


@pytest.mark.parametrize(
    "payload",
    [
        {"x": object()},
        {"x": math.nan},
        [math.inf],
        {"x": "\ud800"},
        {"x": {1, 2}, "y": 1j},
        nested(3000),
    ],
    ids=["object", "nan", "infinity", "surrogate", "set", "nested"],
)
def test_a_payload_that_is_not_json_is_refused_by_name(world: QueueWorld, payload: Any) -> None:
    async def body() -> None:
        queue = await world.connect()
        with pytest.raises(InvalidTask, match=r"'odd'.*not JSON"):
            await queue.enqueue(QueuedTask("odd", "echo", payload))

    world.play(body)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"task_id": 1}, "task 1: Expected `str`, got `int` - at `\\$.task_id`"),
        ({"task_id": b"odd"}, "task b'odd'"),
        ({"task_type": 7}, r"task_type"),
        ({"priority": 1.5}, r"priority"),
        ({"priority": True}, r"priority"),
        ({"max_retries": 2.5}, r"max_retries"),
        ({"redeliveries": "1"}, r"redeliveries"),
        ({"idempotency_key": None}, r"idempotency_key"),
        ({"deadline_s": "soon"}, r"deadline_s"),
        ({"deadline_s": math.nan}, r"NaN and infinity"),
        ({"trace_context": {"traceparent": 1}}, r"trace_context"),
        ({"trace_context": None}, r"trace_context"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused_by_name_with_its_whole_batch(
    world: QueueWorld, fields: dict[str, Any], named: str
) -> None:
    async def body() -> None:
        queue = await world.connect()
        odd = QueuedTask(**{"task_id": "odd", "task_type": "echo", "payload": {}} | fields)
        with pytest.raises(InvalidTask, match=named):
            await queue.enqueue_many([task("good"), odd])
        with pytest.raises(InvalidTask, match=named):
            await queue.enqueue(odd)
        now = await queue.statistics()
        assert (now.depth, now.dead) == (0, 0)

    world.play(body)


def test_what_is_a_text_or_a_number_by_its_kind_is_taken_as_one(world: QueueWorld) -> None:
    class Urgency(enum.IntEnum):
        HIGH = 2

    class Kind(enum.StrEnum):
        ECHO = "echo"

    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue(QueuedTask("t", Kind.ECHO, (1, 2), Urgency.HIGH, deadline_s=2**40))
        got = await take(queue)
        assert (got.task_type, got.priority, got.payload, got.deadline_s) == (
            "echo",
            2,
            [1, 2],
            2.0**40,
        )
        assert await queue.ack("t")

    world.play(body)


def test_statistics_count_what_is_where(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue_many([task(f"t-{n}", n % LEVELS, max_retries=0) for n in range(9)])
        taken = [t.task_id for t in await take_all(queue, 3)]
        await queue.ack(taken[0])
        await queue.nack(taken[1])
        now = await world.settled(queue, dead=1)
        if now.held is None:
            assert now.depth <= 7, "what was prefetched is not told"
        else:
            assert now.depth + now.held == 7
        assert now.dead == 1
        assert (now.enqueued, now.delivered, now.acknowledged, now.dead_lettered) == (9, 3, 1, 1)
        if now.oldest_s is not None:
            assert 0 <= now.oldest_s < 30
        if now.held is not None and not world.traits.prefetches:
            assert now.held == 1

    world.play(body)


def test_a_closed_queue_says_so_and_closes_twice(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.close()
        await queue.close()
        with pytest.raises(QueueClosed, match="another connection"):
            await queue.enqueue(task("t"))
        with pytest.raises(QueueClosed):
            await queue.dequeue()

    world.play(body)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (
            b'{"task_id":"x","task_type":"echo","payload":%b}' % (b"[" * 5000 + b"]" * 5000),
            "nested",
        ),
        (b'{"task_id":"x","payload":{}}', "task_type"),
    ],
    ids=["nested", "incomplete"],
)
def test_a_message_that_is_no_task_is_dead_and_those_around_it_arrive(
    world: QueueWorld, data: bytes, named: str
) -> None:
    async def body() -> None:
        queue = await world.connect()
        await queue.enqueue(task("before"))
        await world.smuggle(data)
        await queue.enqueue(task("after"))
        taken = [t.task_id for t in await take_all(queue, 2)]
        assert taken == ["before", "after"]
        assert await queue.ack_many(taken) == [True, True]
        await world.settled(queue, dead=1)
        (letter,) = await queue.dead_letters()
        assert (letter.task, letter.raw) == (None, data)
        assert named in letter.reason
        assert await queue.replay_dead_letters() == 0, "what is no task stays where it is"
        assert (await world.settled(queue, dead=1)).depth == 0

    world.play(body)


def test_a_cancelled_wait_loses_nothing(world: QueueWorld) -> None:
    async def body() -> None:
        queue = await world.connect()
        for number in range(5):
            waiting = asyncio.create_task(queue.dequeue(math.inf))
            await asyncio.sleep(0.002 * number)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await queue.enqueue(task("t"))
        assert (await take(queue)).task_id == "t"
        assert await queue.ack("t")

    world.play(body)


def test_many_consumers_share_the_tasks_and_each_is_taken_once(world: QueueWorld) -> None:
    if world.traits.one_consumer:
        pytest.skip("one consumer a group")

    async def body() -> None:
        queues = [await world.connect() for _ in range(3)]
        names = [f"t-{n}" for n in range(60)]
        await queues[0].enqueue_many([task(name) for name in names])
        taken: list[str] = []

        async def consume(queue: MessageQueue) -> None:
            while (got := await queue.dequeue(0.3)) is not None:
                taken.append(got.task_id)
                assert await queue.ack(got.task_id)

        await asyncio.gather(*map(consume, queues))
        assert sorted(taken) == sorted(names)

    world.play(body)
