"""One thread for the matrix products of this process.

OpenBLAS starts a thread per core for every product and waits for them spinning. Beside an event loop, and with other
processes on the same cores, that is a loss: 500 sentences took 47 s with two threads on two busy cores, and 3 s with one.
"""

from __future__ import annotations

import ctypes

import numpy as np

__all__ = ["use_one_blas_thread"]

# The names under which numpy's wheels and a system's OpenBLAS export it.
_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def use_one_blas_thread() -> bool:
    """Limit numpy's BLAS, for the whole process; False where it is not OpenBLAS, which is left as it is."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]  # noqa: SLF001 - the one handle to the BLAS that numpy itself uses
    except (AttributeError, OSError):
        return False
    for name in _SETTERS:
        setter = getattr(library, name, None)
        if setter is not None:
            setter(1)
            return True
    return False
