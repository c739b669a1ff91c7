"""The database layer beside bare asyncpg, in one process and one run, on a private PostgreSQL.

    python -m tests.benchmarks.database [--json] [--rounds 5]

Rounds of ours and of the peer's alternate, and medians are told, so that a neighbour on the machine meets both. The ledger's
writer is fed row by row, as a gateway feeds it, and cuts, copies and books budgets itself; its peers put ready tuples into a
table of the same columns and indexes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from operator import attrgetter

import asyncpg

from reference_impl.database.entries import ENTRY_FIELDS, LedgerEntry
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from reference_impl.live.loop import run_live
from tests.servers.postgres import PostgresProcess

ROWS = 30_000
SINGLE_ROWS = 1_000
ACQUIRES = 1_000
BATCH_ROWS = 10_000

_row_of = attrgetter(*ENTRY_FIELDS)


def entries(count: int, first: int) -> list[LedgerEntry]:
    return [
        LedgerEntry(
            entry_id=f"gateway-5f0c/{first + n}",
            at_s=1_790_000_000.0 + n,
            key_id=f"key-{n % 20}",
            model="claude-haiku-4-5",
            cache="miss",
            attempts=1,
            input_tokens=200,
            output_tokens=60,
            cost_nanousd=500_000,
            latency_s=0.5,
            instance="instance-1",
        )
        for n in range(count)
    ]


async def rounds_of(rounds: int, *works: Callable[[int], Awaitable[float]]) -> list[list[float]]:
    """Rates of each work, round by round; the order alternates, the first round warms up."""
    found: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        order = range(len(works)) if number % 2 else reversed(range(len(works)))
        for position in order:
            rate = await works[position](number)
            if number:
                found[position].append(rate)
    return found


async def measure(dsn: str, rounds: int) -> dict[str, float]:
    pool = ConnectionPool(dsn, 4, 4)
    store = PostgresLedger(pool)
    await store.open()
    for n in range(20):
        await store.set_budget(f"key-{n}", 10**15)
    bare_pool = await asyncpg.create_pool(dsn, min_size=4, max_size=4)
    bare = await bare_pool.acquire()
    await bare.execute("CREATE TABLE bare (LIKE ledger_entries INCLUDING ALL)")
    spec = DatabaseSpec(batch_rows=BATCH_ROWS, flush_s=2.0)

    async def ours(number: int) -> float:
        rows = entries(ROWS, number * ROWS)
        writer = LedgerWriter(store, spec, name=f"writer-{number}")
        writer.start()
        began_s = time.perf_counter()
        for row in rows:
            writer.add(row)
        await writer.drained()
        rate = ROWS / (time.perf_counter() - began_s)
        assert writer.statistics().written == ROWS
        await writer.aclose()
        return rate

    async def copied(number: int) -> float:
        rows = [_row_of(row) for row in entries(ROWS, number * ROWS)]
        began_s = time.perf_counter()
        for start in range(0, ROWS, BATCH_ROWS):
            await bare.copy_records_to_table(
                "bare", records=rows[start : start + BATCH_ROWS], columns=ENTRY_FIELDS
            )
        return ROWS / (time.perf_counter() - began_s)

    async def inserted(number: int) -> float:
        rows = [_row_of(row) for row in entries(SINGLE_ROWS, 10**9 + number * SINGLE_ROWS)]
        places = ", ".join(f"${n + 1}" for n in range(len(ENTRY_FIELDS)))
        statement = f"INSERT INTO bare VALUES ({places})"
        began_s = time.perf_counter()
        for row in rows:
            await bare.execute(statement, *row)
        return SINGLE_ROWS / (time.perf_counter() - began_s)

    own, copy, single = await rounds_of(rounds, ours, copied, inserted)
    lent, lent_bare = await rounds_of(
        2 * rounds, _acquiring(pool.acquire), _acquiring(lambda: bare_pool.acquire(timeout=5.0))
    )
    await bare_pool.release(bare)
    await bare_pool.close()
    await store.aclose()
    return {
        "ledger_rows_per_s": statistics.median(own),
        "copy_rows_per_s": statistics.median(copy),
        "single_inserts_per_s": statistics.median(single),
        "ledger_ratio_to_copy": _ratio(own, copy),
        "ledger_ratio_to_single_inserts": _ratio(own, single),
        "acquire_us": 1e6 / statistics.median(lent),
        "asyncpg_acquire_us": 1e6 / statistics.median(lent_bare),
        "acquire_ratio_to_asyncpg": _ratio(lent_bare, lent),
    }


def _acquiring(
    acquire: Callable[[], AbstractAsyncContextManager[object]],
) -> Callable[[int], Awaitable[float]]:
    async def work(_number: int) -> float:
        began_s = time.perf_counter()
        for _ in range(ACQUIRES):
            async with acquire():
                pass
        return ACQUIRES / (time.perf_counter() - began_s)

    return work


def _ratio(ones: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    # The ledger commits synchronously, so its peers do too.
    with PostgresProcess("synchronous_commit=on") as server:
        dsn = server.create_database("ledger")
        result = run_live(measure(dsn, arguments.rounds))
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:32} {value:12,.2f}")


if __name__ == "__main__":
    main()
