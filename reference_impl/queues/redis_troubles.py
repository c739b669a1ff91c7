"""What goes wrong where nobody is told by an exception: the errands that a connection runs in the background."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from reference_impl.queues.errors import QueueError

__all__ = ["Troubles"]

logger = logging.getLogger(__name__)


class Troubles:
    """Of the errands to the server at `where`: logged when the first begins to fail and when none does any more, not each time.

    What is no QueueError was foreseen by nobody: it is logged for each errand, with its traceback.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._failing: dict[str, type[Exception]] = {}

    def failed(self, errand: str, error: Exception) -> None:
        was_well, before = not self._failing, self._failing.get(errand)
        self._failing[errand] = type(error)
        if isinstance(error, QueueError):
            if was_well:
                logger.warning("the queue on Redis is in trouble, trying on: %s", error)
        elif before is not type(error):
            logger.error(
                "the queue at %s: an error in its %s that nobody foresaw",
                self._where,
                errand,
                exc_info=error,
            )

    @contextmanager
    def noting(self, errand: str) -> Iterator[None]:
        """For what is tried again whatever it raises."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a loop that ended would be missed by nobody
            self.failed(errand, error)
        else:
            self.well(errand)

    def well(self, errand: str) -> None:
        if self._failing.pop(errand, None) is not None and not self._failing:
            logger.warning("the queue on Redis at %s answers again", self._where)
