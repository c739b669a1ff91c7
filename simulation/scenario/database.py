"""How a database behaves in virtual time: what each kind of statement costs, alone and beside others."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from reference_impl.deployment import Spec
from simulation.scenario.distributions import Constant, Distribution

__all__ = ["DatabaseDemand"]

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DatabaseDemand(Spec):
    """Time of one statement on the server, and of the way there. Defaults: PostgreSQL 18 on the loopback of a small machine.

    Attributes:
        one_way_s: latency of a message between gateway and database.
        reserve_s: reserving from a budget. query_s: any other single statement.
        write_s, write_per_row_s: a batch of the ledger, and each of its rows (COPY at 160,000 rows/s).
        connect_s: opening a connection, without the way there and back.
        contention, coherence: with n statements under way each takes `1 + contention (n - 1) + coherence n (n - 1)`
            times as long (Gunther, Guerrilla Capacity Planning, 2007: the universal scalability law).
    """

    one_way_s: Distribution = Constant(value=30e-6)
    reserve_s: Distribution = Constant(value=0.4e-3)
    query_s: Distribution = Constant(value=0.2e-3)
    write_s: Distribution = Constant(value=2e-3)
    write_per_row_s: Seconds = 6.2e-6
    connect_s: Seconds = 5e-3
    contention: Annotated[float, Field(ge=0, le=1)] = 0.03
    coherence: Annotated[float, Field(ge=0, le=1)] = 0.0

    def slowdown(self, under_way: int) -> float:
        """How many times as long a statement takes as one of `under_way`."""
        others = under_way - 1
        return 1.0 + self.contention * others + self.coherence * under_way * others
