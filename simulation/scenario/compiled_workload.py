"""The compiled workload: every request of a scenario as columns, fixed before the run, the same file for both worlds.

No text is held: `prompts.py` makes it from prompt ids and token counts.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simulation.scenario.compiled_batches import CompiledBatch, from_arrays, to_arrays
from simulation.scenario.distribution_base import Floats
from simulation.scenario.errors import WorkloadError
from simulation.scenario.traces import Ints

__all__ = ["NONE", "CompiledWorkload"]

NONE: Final = -1


@dataclass(frozen=True, eq=False)
class CompiledWorkload:
    """Requests as read-only columns of equal length; row k is request k.

    Attributes:
        intended_s: when it is to be sent, seconds from the start of the run. NaN where that is an outcome: `think_s`
            after the answer to the row before it in its session.
        session_id: session or user, -1 for a single request. turn: its place there, from 0.
        think_s: the wait before it, from the end of the turn before (0 for the first turn).
        next_row: the row of the next turn that waits for this one, -1 if none does.
        prompt_id: equal prompts have equal ids (and token counts).
        input_tokens: of the whole prompt; context_tokens: those of them that are earlier turns of the conversation.
        output_tokens: of the answer; max_tokens: what the request allows.
        stream: whether it streams. model, tenant: index into `models`, `tenants`.
        patience_s: the client leaves when nothing has come by then (inf: never).
        batches: message batches beside them, whose requests are no rows.
    """

    intended_s: Floats
    session_id: Ints
    turn: npt.NDArray[np.int32]
    think_s: Floats
    next_row: Ints
    prompt_id: Ints
    input_tokens: npt.NDArray[np.int32]
    context_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    max_tokens: npt.NDArray[np.int32]
    stream: npt.NDArray[np.bool_]
    model: npt.NDArray[np.int16]
    tenant: npt.NDArray[np.int16]
    patience_s: Floats
    models: tuple[str, ...]
    tenants: tuple[str, ...]
    batches: tuple[CompiledBatch, ...] = ()
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        n = len(self.intended_s)
        for name, column in self._columns().items():
            if len(column) != n:
                raise WorkloadError(f"workload: column {name} has {len(column)} rows, not {n}")
            column.setflags(write=False)
        object.__setattr__(self, "sha256", self._digest())

    def __len__(self) -> int:
        return len(self.intended_s)

    @property
    def request_id(self) -> Ints:
        """The ids: 0, 1, 2, ..."""
        return np.arange(len(self), dtype=np.int64)

    @property
    def open_rows(self) -> Ints:
        """Rows whose instant is fixed, in order of that instant (ties: in order of row)."""
        order = np.argsort(self.intended_s, kind="stable")
        return order[: int(np.count_nonzero(~np.isnan(self.intended_s)))]

    @property
    def all_tenants(self) -> tuple[str, ...]:
        """`tenants`, and after them those that have batches alone."""
        return tuple(dict.fromkeys((*self.tenants, *(batch.tenant for batch in self.batches))))

    @cached_property
    def repeats_prompt(self) -> npt.NDArray[np.bool_]:
        """Which rows ask a prompt that another row asks too."""
        if not len(self):
            return np.zeros(0, dtype=np.bool_)
        _, which, counts = np.unique(self.prompt_id, return_inverse=True, return_counts=True)
        return np.asarray(counts[which] > 1, dtype=np.bool_)

    @cached_property
    def known_keys(self) -> dict[tuple[int, ...], str]:
        """The memory of `prompts.virtual_key`; its size is bounded by the number of prompts that repeat."""
        return {}

    def replaying(
        self, sent_s: Floats, batches_sent_s: Mapping[int, float] | None = None
    ) -> CompiledWorkload:
        """The same requests at other instants (NaN: not sent); none waits for another any more.

        `batches_sent_s`: instants of batches by their number; those without one were not submitted.
        """
        instants_s = np.array(sent_s, dtype=np.float64)
        if instants_s.shape != self.intended_s.shape:
            raise WorkloadError(f"replay: {len(instants_s)} instants for {len(self)} requests")
        submitted = batches_sent_s or {}
        return replace(
            self,
            intended_s=instants_s,
            next_row=np.full(len(self), NONE, dtype=np.int64),
            batches=tuple(
                replace(batch, at_s=submitted[batch.number])
                for batch in self.batches
                if batch.number in submitted
            ),
        )

    def save(self, path: str | Path) -> None:
        """Write a `.npz` file (no pickle); the same workload gives the same bytes."""
        arrays: dict[str, Any] = self._columns()
        arrays["models"] = np.array(self.models)
        arrays["tenants"] = np.array(self.tenants)
        arrays |= to_arrays(self.batches)
        arrays["sha256"] = np.array(self.sha256)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        Path(path).write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> CompiledWorkload:
        """Read what `save` wrote; raises WorkloadError where it is missing, foreign or damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                columns: dict[str, Any] = {name: stored[name] for name in _COLUMNS}
                workload = cls(
                    **columns,
                    models=tuple(stored["models"].tolist()),
                    tenants=tuple(stored["tenants"].tolist()),
                    batches=from_arrays(stored),
                )
                expected = str(stored["sha256"])
        except FileNotFoundError:
            raise WorkloadError(f"{path}: no such workload file") from None
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise WorkloadError(f"{path}: not a compiled workload: {error}") from None
        if workload.sha256 != expected:
            raise WorkloadError(f"{path}: damaged: its sha256 does not match its content")
        return workload

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {name: getattr(self, name) for name in _COLUMNS}

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, column in self._columns().items():
            little_endian = column.astype(column.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name}:{little_endian.dtype.str}:{len(column)};".encode())
            digest.update(np.ascontiguousarray(little_endian).data)
        digest.update(repr((self.models, self.tenants)).encode())
        for name, array in to_arrays(self.batches).items():
            digest.update(f"{name}:{array.dtype.str}:{len(array)};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


_COLUMNS = tuple(
    f.name
    for f in fields(CompiledWorkload)
    if f.name not in {"models", "tenants", "batches", "sha256"}
)
