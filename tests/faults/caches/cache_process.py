"""One process with a cache over a shared store, told what to do by lines on its input; answers with lines of JSON.

`fetch KEY N` looks KEY up N times at once; `watch KEY` answers when its memory no longer has KEY; `quit`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.redis_store import RedisStore
from reference_impl.caches.shared_level import SharedLevel
from reference_impl.live.loop import run_live

COMPUTE_S = 0.3
WATCH_EVERY_S = 0.002


def say(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main(url: str, prefix: str) -> None:
    loop = asyncio.get_running_loop()
    shared: SharedLevel[str] = SharedLevel(
        RedisStore(url, prefix=prefix), name=f"process-{os.getpid()}", timeout_s=1.0, lease_s=2.0
    )
    layer: CacheLayer[str] = CacheLayer(shared=shared)

    async def compute() -> str:
        await asyncio.sleep(COMPUTE_S)
        return "value"

    say(ready=True)
    while True:
        words = (await asyncio.to_thread(sys.stdin.readline)).split()
        if not words or words[0] == "quit":
            break
        if words[0] == "fetch":
            results = await asyncio.gather(
                *(layer.fetch(words[1], compute) for _ in range(int(words[2])))
            )
            say(
                computations=layer.statistics().computations,
                values=sorted({value for value, _ in results}),
                sources=sorted({source for _, source in results}),
            )
        elif words[0] == "watch":
            say(watching=True)
            while await layer.find(words[1]) is not None:
                await asyncio.sleep(WATCH_EVERY_S)
            say(gone_at_s=loop.time())
    await layer.aclose()


if __name__ == "__main__":
    run_live(main(sys.argv[1], sys.argv[2]))
