-- Counting a batch reads the index alone: `recorded_s` comes after `result` in a row, so all results were read to find it.
DROP INDEX ledger_batch_requests_by_kind;
CREATE INDEX ledger_batch_requests_by_kind ON ledger_batch_requests (batch_id, kind, recorded_s);
