"""What the errors of Kafka mean to a user of a queue."""

from __future__ import annotations

from typing import Final

from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)

from reference_impl.queues.errors import AccessRefused, QueueError, QueueMismatch
from reference_impl.queues.starting import unavailable

__all__ = ["KAFKA_ERRORS", "translated"]

# Every error that aiokafka and the sockets below it raise for a cluster that is away, or went.
KAFKA_ERRORS: Final = (KafkaError, OSError, TimeoutError)

_REFUSALS: Final = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)


def translated(error: BaseException, where: str) -> QueueError:
    """What one of KAFKA_ERRORS means."""
    if isinstance(error, _REFUSALS):
        return AccessRefused(
            f"{where} refuses these credentials ({error}): correct them, or the ACLs of the topics and groups"
        )
    if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
        return QueueMismatch(
            f"the topics at {where} have a smaller max.message.bytes than max_bytes here ({error}): raise the one, or lower "
            "the other"
        )
    return unavailable(error, where)
