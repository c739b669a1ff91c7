"""From what is known of one request of a batch to its row in the table of a run: the same in both worlds.

The store says what became of it, and when; its ledger what it cost and how many calls it took; the trace of the run that
answered where the time went. A trace may be missing (an instance was killed before it wrote it down): the row is then complete
but for its stages.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from reference_impl.batches.port import RequestProgress, ResultKind
from reference_impl.database.entries import LedgerEntry, from_nanousd
from reference_impl.telemetry import RequestRecord, RequestTrace
from reference_impl.telemetry.records import Outcome

__all__ = ["BATCH", "batch_record"]

BATCH: Final = "batch"

# Of results that no call stands behind. An error's own outcome is in the ledger.
_OUTCOMES: Final[dict[ResultKind | None, Outcome]] = {
    "succeeded": "ok",
    "errored": "server_error",
    "canceled": "cancelled",
    "expired": "timeout",
    None: "unfinished",
}


def batch_record(
    progress: RequestProgress | None,
    entry: LedgerEntry | None,
    trace: RequestTrace | None,
    *,
    request_id: int,
    tenant: str,
    model: str,
    input_tokens: int,
    intended_s: float,
    sent_s: float,
    ended_s: float,
    refused: Outcome | None = None,
) -> RequestRecord:
    """The row of a request, from the submission of its batch to its recorded result.

    Args:
        progress: how far it is; None: its batch was never accepted.
        entry: its row of the ledger, None where no call was made for it. trace: of the run that was recorded.
        intended_s, sent_s: when its batch was due and was submitted first. ended_s: when its result was recorded, or the run of
            the scenario ended; all on the run's clock.
        refused: how the submission failed for good, if it did.
    """
    outcome: Outcome = refused or _OUTCOMES[None if progress is None else progress.kind]
    if outcome == "server_error" and entry is not None:
        outcome = msgspec.convert(entry.outcome, Outcome)
    # What was under way when the run ended has no result, so its stages are not known.
    known = trace if trace is not None and outcome != "unfinished" else RequestTrace()
    if outcome == "unfinished" and progress is not None and not progress.runs:
        known = RequestTrace(queue_wait_s=max(0.0, ended_s - sent_s))  # nobody has come to it yet
    attempts = 0
    if entry is not None:
        attempts = entry.attempts
    elif progress is not None and outcome == "unfinished":
        attempts = progress.runs
    return RequestRecord.assemble(
        msgspec.structs.replace(
            known,
            attempts=attempts,
            instance="" if entry is None else entry.instance,
            cost_usd=0.0 if entry is None else from_nanousd(entry.cost_nanousd),
        ),
        request_id=request_id,
        tenant=tenant,
        kind=BATCH,
        model=model,
        intended_s=intended_s,
        sent_s=sent_s,
        # Whole at once, like any answer that is not streamed.
        first_token_s=ended_s if outcome == "ok" else math.nan,
        done_s=max(sent_s, ended_s),
        outcome=outcome,
        status=200 if outcome == "ok" else 0,
        input_tokens=input_tokens,
        cached_tokens=0 if entry is None else entry.cached_tokens,
        output_tokens=0 if entry is None else entry.output_tokens,
    )
