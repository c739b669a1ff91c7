"""`GET /v1/models`: the models of the price file and of the profile."""

from __future__ import annotations

from typing import Any

from loadtests.mock.exchange import Exchange
from loadtests.mock.pages import page
from reference_impl.errors import NotFound
from reference_impl.prices import PriceTable

__all__ = ["ModelRoutes"]

_LINES = ("haiku", "sonnet", "opus", "fable", "mythos")


class ModelRoutes:
    """Lists models, and looks one up by its name or alias."""

    def __init__(self, prices: PriceTable, others: tuple[str, ...]) -> None:
        self._prices = prices
        self._names = [*prices.models, *(name for name in others if prices.find(name) is None)]

    async def list(self, exchange: Exchange) -> None:
        await exchange.reply_json(page(exchange, [self._info(name) for name in self._names]))

    async def get(self, exchange: Exchange, name: str) -> None:
        resolved = self._prices.aliases.get(name, name)
        if resolved not in self._names:
            raise NotFound(f"model: {name[:100]}")
        await exchange.reply_json(self._info(resolved))

    def _info(self, name: str) -> dict[str, Any]:
        entry = self._prices.find(name)
        return {
            "type": "model",
            "id": name,
            "display_name": name.removeprefix("claude-").replace("-", " ").title(),
            # The mock does not know release dates; the API allows the epoch for that.
            "created_at": "1970-01-01T00:00:00Z",
            "lifecycle": "active",
            "line": entry.line if entry is not None and entry.line in _LINES else None,
            "max_input_tokens": None if entry is None else entry.max_input_tokens,
            "max_tokens": None if entry is None else entry.max_output_tokens,
        }
