"""The keys of a queue on Redis Streams and the commands on them, as one consumer of its group.

- `ready:{level}`: a stream a class; an entry's field `t` is the task. What is read is pending until it is acknowledged.
- `delayed`: a sorted set of retries by the instant at which they are due, of the server's clock.
- `dead`: a stream of what nobody could finish, with reason and instant.
- `settings`: what all users of the queue must have alike; the first writes it down.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from reference_impl.queues import redis_scripts
from reference_impl.queues.errors import QueueMismatch
from reference_impl.queues.inbox import Delivery
from reference_impl.queues.letters import read_letter
from reference_impl.queues.port import DeadLetter

__all__ = ["RedisSession", "Row"]

_MAX_BATCH: Final = 500
_GROUP: Final = "workers"


class Row(NamedTuple):
    """An entry of a class's stream, and how often its lease was lost."""

    level: int
    entry_id: bytes
    fields: Mapping[bytes, bytes]
    redeliveries: int = 0

    @property
    def data(self) -> bytes:
        """The task; or, where others wrote something else, all of it."""
        return self.fields.get(b"t", b"") or msgspec.json.encode(
            {str(key): str(value) for key, value in self.fields.items()}
        )


class RedisSession:
    """Commands of one consumer; every one may raise one of REDIS_ERRORS.

    Args:
        client: of redis-py, without a decoder. name: of the queue, in one slot of a cluster. levels: its classes.
    """

    def __init__(self, client: Any, name: str, levels: int) -> None:
        self._client = client
        self._consumer = f"consumer-{secrets.token_hex(8)}"
        space = f"twinload:{{{name}}}"
        self._settings = f"{space}:settings"
        self._streams = [f"{space}:ready:{level}" for level in range(levels)]
        self._delayed = f"{space}:delayed"
        self._dead = f"{space}:dead"
        self._enqueue = client.register_script(redis_scripts.ENQUEUE)
        self._ack = client.register_script(redis_scripts.ACK)
        self._give_back = client.register_script(redis_scripts.GIVE_BACK)
        self._extend = client.register_script(redis_scripts.EXTEND)
        self._return = client.register_script(redis_scripts.RETURN)
        self._take_over = client.register_script(redis_scripts.TAKE_OVER)
        self._move_due = client.register_script(redis_scripts.MOVE_DUE)
        self._replay = client.register_script(redis_scripts.REPLAY)

    # -- making it ----------------------------------------------------------------------------------------------------

    async def make(self, where: str, lease_s: float) -> None:
        """Have the queue exist. Raises QueueMismatch."""
        await self.make_groups()
        settings = {"levels": str(len(self._streams)), "lease_s": f"{lease_s:g}"}
        for field, value in settings.items():
            await self._client.hsetnx(self._settings, field, value)
        written = await self._client.hgetall(self._settings)
        for field, value in settings.items():
            other = written[field.encode()].decode()
            if other != value:
                raise QueueMismatch(
                    f"the queue at {where} was made with {field}={other}, here it is {value}: use the same, or another name"
                )

    async def make_groups(self) -> None:
        for stream in self._streams:
            try:
                await self._client.xgroup_create(stream, _GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    # -- tasks --------------------------------------------------------------------------------------------------------

    async def add(self, tasks: Iterable[tuple[int, bytes]]) -> None:
        """Tasks with their classes, in batches."""
        arguments = [part for task in tasks for part in task]
        for start in range(0, len(arguments), 2 * _MAX_BATCH):
            await self._enqueue(self._streams, arguments[start : start + 2 * _MAX_BATCH])

    async def read(
        self, levels: Iterable[int], most: int, block_s: float | None = None
    ) -> list[Row]:
        """Hold up to `most` of each of these classes; with `block_s`, wait for the first."""
        wanted = {self._streams[level]: ">" for level in levels}
        if not wanted:
            return []
        block_ms = None if block_s is None else max(1, math.ceil(block_s * 1000))
        answer = await self._client.xreadgroup(
            _GROUP, self._consumer, wanted, count=min(most, _MAX_BATCH), block=block_ms
        )
        return [
            Row(self._streams.index(stream.decode()), entry_id, fields)
            for stream, entries in answer or ()
            for entry_id, fields in entries
        ]

    async def has_unread(self, level: int) -> bool:
        """Whether tasks of a class wait that nobody has read."""
        stream = self._streams[level]
        last = _last_read(await self._client.xinfo_groups(stream))
        return bool(await self._client.xrange(stream, min=f"({last}", count=1))

    async def take_over(self, level: int, idle_s: float, most: int) -> list[Row]:
        """Hold up to `most` of a class that somebody has held, without a sign of life, for `idle_s`."""
        rows = await self._take_over(
            [self._streams[level]], [_GROUP, self._consumer, math.ceil(idle_s * 1000), most]
        )
        return [
            Row(level, entry_id, dict(zip(fields[::2], fields[1::2], strict=True)), deliveries)
            for entry_id, fields, deliveries in rows
        ]

    async def acknowledge(self, deliveries: Iterable[Delivery[bytes]]) -> set[bytes]:
        """Forget them; those that were still held here."""
        return await self._where_held(self._ack, deliveries)

    async def renew(
        self, deliveries: Iterable[Delivery[bytes]], passed_s: float = 0.0
    ) -> set[bytes]:
        """Hold what is still held as if its lease had begun `passed_s` ago; what that is."""
        return await self._where_held(self._extend, deliveries, math.floor(passed_s * 1000))

    async def _where_held(
        self, script: Any, deliveries: Iterable[Delivery[bytes]], *arguments: int
    ) -> set[bytes]:
        """Run a script on each class's entries; the receipts for which it answered yes."""
        held: set[bytes] = set()
        for level, ids in _by_level(deliveries).items():
            answers = await script(
                [self._streams[level]], [_GROUP, self._consumer, *arguments, *ids]
            )
            held.update(entry_id for entry_id, yes in zip(ids, answers, strict=True) if yes)
        return held

    async def put_back(self, level: int, entry_id: bytes, data: bytes, delay_s: float) -> bool:
        """Have `data` wait in place of an entry; False if that is not held here any more."""
        if delay_s > 0:
            return await self._end(
                level, entry_id, "delayed", data, level, math.ceil(delay_s * 1000)
            )
        return await self._end(level, entry_id, "ready", data)

    async def hand_back(self, deliveries: Iterable[Delivery[bytes]]) -> None:
        """Have them wait again, as far as they are still held here; nothing is counted."""
        for level, ids in _by_level(deliveries).items():
            await self._return([self._streams[level]], [_GROUP, self._consumer, *ids])

    async def hand_back_all(self) -> None:
        """The same for whatever the server says is held here: also what an answer told of that nobody read."""
        for stream in self._streams:
            while pending := await self._client.xpending_range(
                stream, _GROUP, "-", "+", _MAX_BATCH, self._consumer
            ):
                ids = [row["message_id"] for row in pending]
                await self._return([stream], [_GROUP, self._consumer, *ids])

    async def bury(
        self, level: int, entry_id: bytes, data: bytes, reason: str, died_s: float
    ) -> bool:
        """The same among the dead letters."""
        return await self._end(level, entry_id, "dead", data, reason, died_s)

    async def drop(self, level: int, entry_id: bytes) -> bool:
        """Nothing in its place."""
        return await self._end(level, entry_id, "gone", b"")

    async def _end(self, level: int, entry_id: bytes, *details: str | bytes | float) -> bool:
        keys = [self._streams[level], self._delayed, self._dead]
        return bool(await self._give_back(keys, [_GROUP, self._consumer, entry_id, *details]))

    async def move_due(self) -> float:
        """Make retries ready that are due; seconds until the next is, infinity if there is none."""
        due_in_ms = await self._move_due([self._delayed, *self._streams], [_MAX_BATCH])
        return math.inf if due_in_ms < 0 else due_in_ms / 1000

    # -- people -------------------------------------------------------------------------------------------------------

    async def dead_letters(
        self, most: int, after: bytes = b"", until: bytes = b"+"
    ) -> list[tuple[bytes, DeadLetter]]:
        """The oldest, with what they are known by; those behind `after`, up to `until`."""
        entries = await self._client.xrange(
            self._dead, min=b"(" + after if after else b"-", max=until, count=most
        )
        return [(entry_id, _letter(fields)) for entry_id, fields in entries]

    async def last_dead_letter(self) -> bytes | None:
        """What the youngest is known by; None if there is none."""
        entries = await self._client.xrevrange(self._dead, count=1)
        return entries[0][0] if entries else None

    async def replay(self, entry_id: bytes, level: int, data: bytes) -> bool:
        """`data` in place of a dead letter; False if that is gone."""
        return bool(await self._replay([self._dead, self._streams[level]], [entry_id, data]))

    async def state(self) -> tuple[tuple[int, ...], int, int, int, list[bytes]]:
        """What is ready by class, delayed, held by any consumer, and dead; and the oldest task of each class that is ready."""
        async with self._client.pipeline(transaction=True) as pipeline:
            for stream in self._streams:
                pipeline.xlen(stream)
                pipeline.xpending(stream, _GROUP)
                pipeline.xinfo_groups(stream)
            pipeline.zcard(self._delayed)
            pipeline.xlen(self._dead)
            *classes, delayed, dead = await pipeline.execute()
        held = [pending["pending"] for pending in classes[1::3]]
        ready = [max(0, length - own) for length, own in zip(classes[::3], held, strict=True)]
        async with self._client.pipeline(transaction=False) as pipeline:
            for stream, groups in zip(self._streams, classes[2::3], strict=True):
                pipeline.xrange(stream, min=f"({_last_read(groups)}", count=1)
            heads = [fields.get(b"t", b"") for row in await pipeline.execute() for _, fields in row]
        return tuple(ready), delayed, sum(held), dead, heads


def _last_read(groups: list[dict[str, Any]]) -> str:
    """The youngest entry of a stream that anybody has read; a server that lost its data has no groups."""
    last: bytes = groups[0]["last-delivered-id"] if groups else b"0-0"
    return last.decode()


def _by_level(deliveries: Iterable[Delivery[bytes]]) -> dict[int, list[bytes]]:
    """Their receipts."""
    by_level: dict[int, list[bytes]] = {}
    for delivery in deliveries:
        by_level.setdefault(delivery.level, []).append(delivery.receipt)
    return by_level


def _letter(fields: Mapping[bytes, bytes]) -> DeadLetter:
    return read_letter(
        fields.get(b"t", b""),
        fields.get(b"reason", b"").decode(),
        float(fields.get(b"died", b"0")),
    )
