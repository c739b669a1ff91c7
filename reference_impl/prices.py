"""What tokens cost, and which models exist: one dated file, which a user replaces by a contract's own."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reference_impl.messages import Usage

__all__ = ["ModelPrice", "PriceError", "PriceTable", "load_prices"]

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PriceError(ValueError):
    """A price file cannot be used: one line that says where and why."""


class ModelPrice(BaseModel):
    """One model: its line, and its prices in $ per million tokens.

    `price`: input, 5-minute cache write, 1-hour cache write, cache read, output. A prompt of more than
    `long_prompt_tokens` costs `long_prompt_factor` times as much in all its parts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: str
    price: tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative]
    min_cache_tokens: Annotated[int, Field(ge=0)] = 1024
    long_prompt_tokens: Annotated[int, Field(ge=0)] | None = None
    long_prompt_factor: Annotated[float, Field(ge=1)] = 1.0
    max_input_tokens: Annotated[int, Field(ge=1)] = 1_000_000
    max_output_tokens: Annotated[int, Field(ge=1)] = 128_000


class PriceTable(BaseModel):
    """Models by name, with the date of their prices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: datetime.date
    source: str = ""
    batch_factor: Annotated[float, Field(ge=0, le=1)] = 0.5
    models: Mapping[str, ModelPrice]
    aliases: Mapping[str, str] = {}

    @model_validator(mode="after")
    def _aliases_lead_somewhere(self) -> PriceTable:
        for alias, name in self.aliases.items():
            if name not in self.models:
                raise ValueError(f"alias {alias!r} names the unknown model {name!r}")
        return self

    def find(self, model: str) -> ModelPrice | None:
        """The entry of a model or alias; None if it is not listed."""
        return self.models.get(self.aliases.get(model, model))

    def cost_usd(
        self,
        model: str,
        *,
        input_tokens: int,
        output_tokens: int,
        cache_read_input_tokens: int = 0,
        cache_creation_input_tokens: int = 0,
        cache_creation_1h_input_tokens: int = 0,
        batch: bool = False,
    ) -> float:
        """Price of one answer; an unlisted model costs nothing.

        `cache_creation_input_tokens` counts all cache writes, `cache_creation_1h_input_tokens` those of them that are
        kept for an hour.
        """
        entry = self.find(model)
        if entry is None:
            return 0.0
        uncached, write_5m, write_1h, read, output = entry.price
        total = (
            input_tokens * uncached
            + (cache_creation_input_tokens - cache_creation_1h_input_tokens) * write_5m
            + cache_creation_1h_input_tokens * write_1h
            + cache_read_input_tokens * read
            + output_tokens * output
        ) / 1e6
        prompt = input_tokens + cache_creation_input_tokens + cache_read_input_tokens
        return self._billed(entry, total, prompt, batch)

    def most_usd(
        self, model: str, *, input_tokens: int, output_tokens: int, batch: bool = False
    ) -> float:
        """The most that an answer of these sizes may cost, whichever of its input is read from or written to which cache."""
        entry = self.find(model)
        if entry is None:
            return 0.0
        *inputs, output = entry.price
        total = (input_tokens * max(inputs) + output_tokens * output) / 1e6
        return self._billed(entry, total, input_tokens, batch)

    def price_usd(self, model: str, usage: Usage, *, batch: bool = False) -> float:
        """Price of an answer with this usage, as `AsyncLLMProcessor(price=...)` takes it; `batch`: of one in a batch."""
        return self.cost_usd(
            model,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_input_tokens=usage.cache_read_input_tokens,
            cache_creation_input_tokens=usage.cache_creation_input_tokens,
            cache_creation_1h_input_tokens=usage.cache_creation_1h_input_tokens,
            batch=batch,
        )

    def _billed(
        self, entry: ModelPrice, total_usd: float, prompt_tokens: int, batch: bool
    ) -> float:
        if entry.long_prompt_tokens is not None and prompt_tokens > entry.long_prompt_tokens:
            total_usd *= entry.long_prompt_factor
        return total_usd * self.batch_factor if batch else total_usd


@cache
def _shipped() -> PriceTable:
    text = (resources.files("reference_impl") / "prices.yaml").read_text("utf-8")
    return PriceTable.model_validate(yaml.safe_load(text))


def load_prices(path: str | Path | None = None) -> PriceTable:
    """The shipped price table, or the one in a YAML file; raises PriceError in one line."""
    if path is None:
        return _shipped()
    try:
        document: Any = yaml.safe_load(Path(path).read_text("utf-8"))
        return PriceTable.model_validate(document)
    except OSError as error:
        raise PriceError(f"price file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise PriceError(f"price file {path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise PriceError(f"price file {path}: {field}: {first['msg']}") from error
