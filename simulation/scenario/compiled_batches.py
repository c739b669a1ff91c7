"""The batches of a compiled workload: every request of each, as columns.

A request's id, and with it its luck at the endpoint, depends on its batch and its place there alone: not on what else is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simulation.scenario.errors import WorkloadError

__all__ = ["FIRST_BATCH_ID", "CompiledBatch", "from_arrays", "place_of", "to_arrays"]

# Ids of requests outside of batches are rows of the workload, which has fewer; those of batch n begin at (n + 1) times this.
FIRST_BATCH_ID: Final = 1_000_000_000
_PREFIX: Final = "batch_"


@dataclass(frozen=True, eq=False)
class CompiledBatch:
    """One batch, submitted at `at_s`; request i of it has `input_tokens[i]` and `output_tokens[i]`.

    `number`: its place in the scenario's list. See `BatchSpec` for the rest.
    """

    number: int
    at_s: float
    poll_s: float
    model: str
    tenant: str
    max_tokens: int
    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        self.input_tokens.setflags(write=False)
        self.output_tokens.setflags(write=False)

    def __len__(self) -> int:
        return len(self.input_tokens)

    @property
    def first_id(self) -> int:
        """The id of its first request; the others follow."""
        return (self.number + 1) * FIRST_BATCH_ID


def place_of(request_id: int) -> tuple[int, int]:
    """(number of its batch, place there) of a request in a batch; the number is -1 for any other."""
    number, place = divmod(request_id, FIRST_BATCH_ID)
    return number - 1, place


def to_arrays(batches: tuple[CompiledBatch, ...]) -> dict[str, npt.NDArray[Any]]:
    """For a file: columns of batches, and of all their requests one after the other; nothing where there are none."""
    if not batches:
        return {}
    return {
        f"{_PREFIX}number": np.array([b.number for b in batches], dtype=np.int64),
        f"{_PREFIX}size": np.array([len(b) for b in batches], dtype=np.int64),
        f"{_PREFIX}at_s": np.array([b.at_s for b in batches], dtype=np.float64),
        f"{_PREFIX}poll_s": np.array([b.poll_s for b in batches], dtype=np.float64),
        f"{_PREFIX}max_tokens": np.array([b.max_tokens for b in batches], dtype=np.int64),
        f"{_PREFIX}input_tokens": np.concatenate([b.input_tokens for b in batches]),
        f"{_PREFIX}output_tokens": np.concatenate([b.output_tokens for b in batches]),
        f"{_PREFIX}model": np.array([b.model for b in batches]),
        f"{_PREFIX}tenant": np.array([b.tenant for b in batches]),
    }


def from_arrays(stored: Any) -> tuple[CompiledBatch, ...]:
    """What `to_arrays` gave. Raises WorkloadError, KeyError or ValueError where it is damaged."""
    if f"{_PREFIX}number" not in stored:
        return ()
    columns = {
        name: stored[_PREFIX + name]
        for name in ("number", "size", "at_s", "poll_s", "max_tokens", "model", "tenant")
    }
    inputs, outputs = stored[f"{_PREFIX}input_tokens"], stored[f"{_PREFIX}output_tokens"]
    ends = np.cumsum(columns["size"])
    if len(inputs) != len(outputs) or int(ends[-1]) != len(inputs):
        raise WorkloadError(f"workload: {len(inputs)} requests of batches, not {int(ends[-1])}")
    return tuple(
        CompiledBatch(
            number=int(columns["number"][k]),
            at_s=float(columns["at_s"][k]),
            poll_s=float(columns["poll_s"][k]),
            model=str(columns["model"][k]),
            tenant=str(columns["tenant"][k]),
            max_tokens=int(columns["max_tokens"][k]),
            input_tokens=inputs[end - size : end].copy(),
            output_tokens=outputs[end - size : end].copy(),
        )
        for k, (size, end) in enumerate(zip(columns["size"], ends, strict=True))
    )
