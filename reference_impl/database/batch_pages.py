"""One page of a tenant's batches as SQL, the same for SQLite and PostgreSQL.

The batches of the page are found first, in the index, and only their requests are counted.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Side", "page_sql", "side_of"]

# Where a page begins: at the newest batch, after one (older), or before one (newer).
Side = Literal["newest", "after", "before"]


def side_of(after_id: str | None, before_id: str | None) -> tuple[Side, str | None]:
    """Side and cursor of a page; `after_id` goes first where both are given."""
    if after_id is not None:
        return "after", after_id
    return ("newest", None) if before_id is None else ("before", before_id)


def page_sql(side: Side, columns: str, mark: Literal["?", "$"], batch_id: str = "batch_id") -> str:
    """A query with arguments (tenant, limit[, cursor]): rows of `columns` and whether there are more, the newest first.

    Args:
        columns: of `ledger_batches b JOIN ledger_batch_requests`, by batch.
        mark: what precedes the number of an argument. batch_id: that column as it is compared and sorted.
    """
    beyond = ""
    if side != "newest":
        sign = "<" if side == "after" else ">"
        beyond = (
            f"AND (created_s, {batch_id}) {sign} (SELECT created_s, {batch_id} "  # noqa: S608 - constants
            f"FROM ledger_batches WHERE tenant = {mark}1 AND batch_id = {mark}3)"
        )
    way = "ASC" if side == "before" else "DESC"
    nearest = f"ORDER BY created_s {way}, {batch_id} {way}"
    return (
        f"WITH listed AS (SELECT batch_id, created_s FROM ledger_batches "  # noqa: S608 - constants
        f"WHERE tenant = {mark}1 {beyond} {nearest} LIMIT {mark}2 + 1) "
        f"SELECT {columns}, (SELECT count(*) FROM listed) > {mark}2 "
        f"FROM ledger_batches b JOIN ledger_batch_requests USING (batch_id) "
        f"WHERE b.batch_id IN (SELECT batch_id FROM listed {nearest} LIMIT {mark}2) "
        f"GROUP BY b.batch_id ORDER BY created_s DESC, b.{batch_id} DESC"
    )
