"""Pages of a list, by the cursors `after_id` and `before_id`."""

from __future__ import annotations

from typing import Any

from loadtests.mock.exchange import Exchange
from reference_impl.errors import InvalidRequest

__all__ = ["page"]


def page(exchange: Exchange, items: list[dict[str, Any]]) -> dict[str, Any]:
    """One page of `items` as the query asks for it (`limit` 1 to 1000, 20 by default); raises InvalidRequest."""
    limit = exchange.integer("limit", 20, 1, 1000)
    query = exchange.query()
    ids = [item["id"] for item in items]
    begin, end = 0, len(items)
    has_more = False
    if "after_id" in query:
        begin = _index(ids, query["after_id"], "after_id") + 1
    if "before_id" in query:
        end = _index(ids, query["before_id"], "before_id")
        begin = max(begin, end - limit) if "after_id" not in query else begin
        has_more = begin > 0
        chosen = items[begin:end][:limit]
    else:
        chosen = items[begin : begin + limit]
        has_more = begin + limit < end
    return {
        "data": chosen,
        "has_more": has_more,
        "first_id": chosen[0]["id"] if chosen else None,
        "last_id": chosen[-1]["id"] if chosen else None,
    }


def _index(ids: list[str], wanted: str, name: str) -> int:
    try:
        return ids.index(wanted)
    except ValueError as error:
        raise InvalidRequest(f"{name}: no such item") from error
