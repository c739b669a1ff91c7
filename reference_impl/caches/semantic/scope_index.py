"""The prompts of one scope that have cached answers, with their vectors: in memory, and in the store that processes share.

A record names the model that made its vector. What another model made is never compared with: its prompt is embedded anew,
so after a change of the model the index is rebuilt and not mixed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np

from reference_impl.caches.background import BackgroundTasks
from reference_impl.caches.semantic.embedder import Embedder, EmbedderUnavailable, Vector
from reference_impl.caches.semantic.index import VectorIndex
from reference_impl.caches.shared_level import SharedLevel

__all__ = ["Candidate", "ScopeIndex"]

logger = logging.getLogger(__name__)


class _Record(msgspec.Struct, array_like=True, frozen=True):
    """As it lies in the store: `vector` is float32, little endian."""

    model_id: str
    key: str
    prompt: str
    vector: bytes


class Candidate(msgspec.Struct, frozen=True):
    """A prompt whose answer is under `key`, and its similarity to the one asked."""

    key: str
    prompt: str
    similarity: float


class ScopeIndex:
    """At most `max_entries` prompts, the oldest out first.

    `shared` is where the scope survives a restart and meets other processes, or None. It is read at the first search and
    again, behind the caller, every `reload_s`.
    """

    def __init__(
        self,
        scope: str,
        embedder: Embedder,
        shared: SharedLevel[Any] | None,
        *,
        max_entries: int,
        reload_s: float,
    ) -> None:
        self._group = f"semantic:{scope}"
        self._embedder = embedder
        self._shared = shared
        self._max_entries = max_entries
        self._reload_s = reload_s
        self._index = VectorIndex(embedder.dimension)
        self._prompts: OrderedDict[str, str] = OrderedDict()
        self._load_task: asyncio.Task[Any] | None = None
        self._loaded_at_s: float | None = None

    def __len__(self) -> int:
        return len(self._prompts)

    async def ready(self, tasks: BackgroundTasks) -> None:
        """Wait for the first load, though no longer than a look-up may wait for the store; start a load that is due."""
        if self._shared is None:
            return
        now_s = asyncio.get_running_loop().time()
        loading = self._load_task is not None and not self._load_task.done()
        due = self._loaded_at_s is None or now_s >= self._loaded_at_s + self._reload_s
        if due and not loading:
            self._load_task = tasks.start(self._load(self._shared), "semantic-load")
        if self._loaded_at_s is None and self._load_task is not None:
            try:
                async with asyncio.timeout(self._shared.timeout_s):
                    await asyncio.shield(self._load_task)
            except TimeoutError:
                pass  # it goes on behind this look-up, which makes do with what is here

    def nearest(self, vector: Vector, count: int) -> list[Candidate]:
        """The most similar prompts, most similar first."""
        return [
            Candidate(key, self._prompts[key], similarity)
            for key, similarity in self._index.nearest(vector, count)
        ]

    def add(self, key: str, prompt: str, vector: Vector) -> list[str]:
        """Remember here that the answer to `prompt` is under `key`; the keys that had to leave for it."""
        self._index.add(key, vector)
        self._prompts[key] = prompt
        self._prompts.move_to_end(key)
        evicted = []
        while len(self._prompts) > self._max_entries:
            oldest, _ = self._prompts.popitem(last=False)
            self._index.discard(oldest)
            evicted.append(oldest)
        return evicted

    async def share(
        self, key: str, prompt: str, vector: Vector, evicted: Collection[str], *, ttl_s: float
    ) -> None:
        """Tell the other processes what `add` did here."""
        if self._shared is None:
            return
        record = _Record(self._embedder.model_id, key, prompt, vector.astype("<f4").tobytes())
        await self._shared.add_member(
            self._group, self._member(key), msgspec.msgpack.encode(record), ttl_s=ttl_s
        )
        if evicted:
            await self._shared.remove_members(self._group, [self._member(key) for key in evicted])

    async def discard(self, key: str) -> None:
        """Forget a prompt whose answer is gone."""
        self._prompts.pop(key, None)
        self._index.discard(key)
        if self._shared is not None:
            await self._shared.remove_members(self._group, [self._member(key)])

    def _member(self, key: str) -> str:
        return f"{self._embedder.model_id}|{key}"

    async def _load(self, shared: SharedLevel[Any]) -> None:
        members = await shared.members(self._group)
        if members is None:
            return  # the store is away: the next search tries again
        foreign = self._take_own(members)
        self._loaded_at_s = asyncio.get_running_loop().time()
        if foreign:
            await self._rebuild(foreign)

    def _take_own(self, members: Mapping[str, bytes]) -> dict[str, str]:
        """Keep the records of this model; returns the prompts, by key, that only another model has embedded."""
        own: dict[str, _Record] = {}
        foreign: dict[str, str] = {}
        for payload in members.values():
            try:
                record = msgspec.msgpack.decode(payload, type=_Record)
            except msgspec.DecodeError:
                continue  # not ours: a group of that name in someone else's layout
            fits = len(record.vector) == 4 * self._embedder.dimension
            if record.model_id == self._embedder.model_id and fits:
                own[record.key] = record
            else:
                foreign[record.key] = record.prompt
        for record in own.values():
            if record.key not in self._prompts:
                vector = np.frombuffer(record.vector, dtype="<f4").astype(np.float32)
                self.add(record.key, record.prompt, vector)
        return {key: prompt for key, prompt in foreign.items() if key not in self._prompts}

    async def _rebuild(self, foreign: Mapping[str, str]) -> None:
        """Embed the prompts that another model embedded, and share the new vectors beside the old."""
        logger.info(
            "semantic index: embedding %d prompts again for %s",
            len(foreign),
            self._embedder.model_id,
        )
        try:
            vectors = await self._embedder.embed(list(foreign.values()))
        except EmbedderUnavailable as error:
            logger.warning("semantic index not rebuilt: %s", error)
            return
        for (key, prompt), vector in zip(foreign.items(), vectors, strict=True):
            if vector is not None:
                # The group lives on as long as it did: an addition never shortens its life.
                evicted = self.add(key, prompt, vector)
                await self.share(key, prompt, vector, evicted, ttl_s=self._reload_s)
