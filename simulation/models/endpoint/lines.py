"""How the endpoint serves each model line: its timing or engine, and its limits."""

from __future__ import annotations

from reference_impl.prices import ModelPrice, PriceTable
from simulation.models.endpoint.batching import BatchingEngine
from simulation.models.endpoint.timing import ProviderTiming, ServiceTiming, Timing
from simulation.scenario.endpoint import (
    EndpointProfile,
    LimitsSpec,
    ProviderService,
    SelfHostedService,
    ServiceTimeService,
)

__all__ = ["Line", "Lines"]

_MAX_REMEMBERED = 1_000


class Line:
    """How the endpoint serves one model line."""

    def __init__(
        self,
        name: str,
        service: ProviderService | SelfHostedService | ServiceTimeService,
        limits: LimitsSpec,
        speedup: float,
    ) -> None:
        self.name = name
        self.timing: Timing | None = None
        self.engine: BatchingEngine | None = None
        self.chunk_tokens = 1
        self.thinking_share = service.thinking_share
        self.limits = limits
        self.limited = limits != LimitsSpec(burst_s=limits.burst_s)
        if isinstance(service, ProviderService):
            self.timing = ProviderTiming(service, speedup)
            self.chunk_tokens = service.tokens_per_chunk
        elif isinstance(service, ServiceTimeService):
            self.timing = ServiceTiming(service, speedup)
        else:
            self.engine = BatchingEngine(service, speedup)


class Lines:
    """Finds the line of a model by the price file."""

    def __init__(self, profile: EndpointProfile, prices: PriceTable) -> None:
        self._models = frozenset(profile.models)
        self._prices = prices
        self._default = (profile.service, profile.limits)
        self._speedup = profile.speedup
        self._specs = profile.lines
        self._lines: dict[str, Line] = {}
        self._by_model: dict[str, Line] = {}
        self._shared = Line("", profile.service, profile.limits, profile.speedup)

    def price(self, model: str) -> ModelPrice | None:
        """The price file's entry."""
        return self._prices.find(model)

    def knows(self, model: str) -> bool:
        """Whether the model exists here (checked for calls with a body)."""
        return model in self._models or self._prices.find(model) is not None

    def find(self, model: str) -> Line:
        """The line of a model; models that are not listed share one."""
        line = self._by_model.get(model)
        if line is None:
            entry = self._prices.find(model)
            line = self._shared if entry is None else self._line(entry.line)
            if len(self._by_model) < _MAX_REMEMBERED:  # names come from clients
                self._by_model[model] = line
        return line

    def _line(self, name: str) -> Line:
        line = self._lines.get(name)
        if line is None:
            spec = self._specs.get(name)
            service, limits = self._default
            if spec is not None:
                service, limits = spec.service or service, spec.limits or limits
            line = Line(name, service, limits, self._speedup)
            if spec is None or spec.service is None:
                # The service is one for all lines that have none of their own: an engine is shared.
                line.timing, line.engine = self._shared.timing, self._shared.engine
            self._lines[name] = line
        return line

    def prepare(self) -> None:
        """Find every listed model's line, and build the tables of its timing."""
        for name in self._prices.models:
            line = self.find(name)
            if line.timing is not None:
                line.timing.shares(0.5, 2)

    def engines(self) -> dict[str, BatchingEngine]:
        """Each engine by the line that it is of ("" is the shared one)."""
        own = {
            name: line.engine
            for name, line in self._lines.items()
            if line.engine is not None and line.engine is not self._shared.engine
        }
        return own if self._shared.engine is None else {"": self._shared.engine, **own}
