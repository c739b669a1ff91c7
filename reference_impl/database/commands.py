"""`twinload ledger` and `twinload db advise`. Errors are ClickExceptions in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from reference_impl.database.aggregates import export_parquet, total
from reference_impl.database.connect import DSN_VARIABLE, reader_of_dsn
from reference_impl.database.entries import from_nanousd
from reference_impl.database.errors import DatabaseError, one_line
from reference_impl.database.pool_sizing import PoolVerdict, judge_pool
from reference_impl.database.port import GROUPS, Group, LedgerReader, Spend

__all__ = ["db", "ledger"]

T = TypeVar("T")

_dsn = click.option(
    "--database",
    "dsn",
    envvar=DSN_VARIABLE,
    required=True,
    metavar="DSN",
    help=f"postgresql://... or the path of a SQLite file; better in {DSN_VARIABLE}, where no process list shows it.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (DatabaseError, FileExistsError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@_dsn
@click.option("--by", "group", type=click.Choice(GROUPS), default="key", show_default=True)
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Only from this day (UTC) on.")
@click.option("--export", type=click.Path(path_type=Path), help="Write the rows to a Parquet file.")
@_json
def ledger(
    dsn: str, group: Group, since: datetime | None, export: Path | None, as_json: bool
) -> None:
    """Show what was spent, what the cache saved and what failures wasted."""
    since_s = 0.0 if since is None else since.replace(tzinfo=UTC).timestamp()

    async def read(reader: LedgerReader) -> tuple[list[Spend], int | None]:
        rows = await reader.spend(group, since_s=since_s)
        exported = None
        if export is not None:
            try:
                exported = await export_parquet(reader.entries(since_s=since_s), export)
            except FileExistsError:
                raise
            except OSError as error:
                raise click.ClickException(
                    f"--export {export}: {one_line(error)}; nothing was written"
                ) from error
        return rows, exported

    rows, exported = _run(_with_reader(dsn, read))
    if as_json:
        document = {
            "by": group,
            "rows": [_readable(row) for row in rows],
            "total": _readable(total(rows)),
            "exported_rows": exported,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document)))
        return
    table = Table(title=f"Spend by {group}")
    for heading in (
        group,
        "requests",
        "input tokens",
        "cached tokens",
        "output tokens",
        "cost $",
        "saved $",
        "wasted $",
        "hits",
        "retries",
    ):
        side: Literal["left", "right"] = "left" if heading == group else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    for row in (*rows, total(rows)):
        table.add_row(
            row.group or "(none)",
            *(
                f"{n:,}"
                for n in (row.requests, row.input_tokens, row.cached_tokens, row.output_tokens)
            ),
            *(
                f"{from_nanousd(n):.4f}"
                for n in (row.cost_nanousd, row.saved_nanousd, row.wasted_nanousd)
            ),
            f"{row.cache_hits:,}",
            f"{row.retries:,}",
        )
    # As wide as it has to be: a figure that is broken in two reads as another one.
    width = Console(width=1000).measure(table).maximum
    Console(width=width).print(table)
    if exported is not None:
        click.echo(f"{exported:,} rows written to {export}")


@click.group()
def db() -> None:
    """Look after the database."""


@db.command()
@_dsn
@click.option(
    "--measure",
    is_flag=True,
    help="Build each proposed index in a transaction, time it, roll back. Locks tables.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 5000),
    default=100,
    show_default=True,
    help="Statements looked at.",
)
@click.option(
    "--pool-size",
    type=click.IntRange(1),
    help="Judge a pool of this size (with --rate and --hold).",
)
@click.option(
    "--rate",
    "rate_per_s",
    type=click.FloatRange(0),
    help="Times per second that a connection is asked for.",
)
@click.option(
    "--hold", "hold_s", type=click.FloatRange(0), help="Seconds that one is kept, on average."
)
@_json
def advise(
    dsn: str,
    measure: bool,
    limit: int,
    pool_size: int | None,
    rate_per_s: float | None,
    hold_s: float | None,
    as_json: bool,
) -> None:
    """Propose indexes and batches, and find indexes that only cost. Changes nothing."""
    from reference_impl.database.advice.advise import advise as find
    from reference_impl.database.pool import ConnectionPool

    verdict = _verdict(pool_size, rate_per_s, hold_s)
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise click.UsageError(
            "db advise reads PostgreSQL's statistics; the DSN must be postgresql://..."
        )

    async def look() -> Any:
        pool = ConnectionPool(dsn, 1, 2, statement_timeout_s=600)
        await pool.initialize()
        try:
            return await find(pool, measure=measure, limit=limit)
        finally:
            await pool.close()

    advice = msgspec.structs.replace(_run(look()), pool=verdict)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(advice)))
        return
    click.echo(
        f"{advice.statements} statements looked at, {advice.unplanned} could not be planned."
    )
    if advice.hidden:
        click.echo(
            f"{advice.hidden} more are hidden from this user: GRANT pg_read_all_stats to see those of others."
        )
    for index in advice.indexes:
        gain = f"{index.estimated_gain:,.0f} times cheaper ({index.source})"
        if index.measured_gain is not None:
            gain += f", measured {index.measured_gain:,.1f} times faster ({index.before_ms:.2f} -> {index.after_ms:.2f} ms)"
        click.echo(f"\nadd an index: {gain}{'; ' + index.note if index.note else ''}")
        click.echo(f"  {index.sql}\n  for: {index.query[:160]} ({index.calls:,} calls)")
    for statement in advice.batches:
        click.echo(
            f"\nbatch: {statement.advice}\n  {statement.query[:160]} ({statement.calls:,} calls)"
        )
    for surplus in advice.surplus:
        click.echo(
            f"\ndrop {surplus.index} of {surplus.table} ({surplus.size_bytes:,} bytes)? {surplus.reason} {surplus.other}"
        )
    if verdict is not None:
        click.echo(
            f"\npool of {verdict.size}: {verdict.verdict}; {verdict.in_use:.1f} in use on average, "
            f"{verdict.needed} needed, mean wait {verdict.wait_s * 1000:.1f} ms"
        )


def _verdict(
    pool_size: int | None, rate_per_s: float | None, hold_s: float | None
) -> PoolVerdict | None:
    if pool_size is None and rate_per_s is None and hold_s is None:
        return None
    if pool_size is None or rate_per_s is None or hold_s is None:
        raise click.UsageError("--pool-size, --rate and --hold belong together")
    try:
        return judge_pool(pool_size, rate_per_s, hold_s)
    except ValueError as error:
        raise click.UsageError(f"--pool-size, --rate, --hold: {error}") from error


async def _with_reader(dsn: str, work: Callable[[LedgerReader], Awaitable[T]]) -> T:
    reader = reader_of_dsn(dsn)
    try:
        await reader.open()
        return await work(reader)
    finally:
        await reader.aclose()


def _readable(row: Spend) -> dict[str, object]:
    """A row with dollars in place of nano-dollars."""
    return {
        (name.removesuffix("_nanousd") + "_usd" if name.endswith("_nanousd") else name): (
            from_nanousd(value) if name.endswith("_nanousd") else value
        )
        for name, value in msgspec.structs.asdict(row).items()
    }
