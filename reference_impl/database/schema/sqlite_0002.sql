-- Batches with their requests, in place of tables that nothing wrote to.
DROP TABLE ledger_batch_results;
DROP TABLE ledger_batches;

CREATE TABLE ledger_batches (
    batch_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    created_s REAL NOT NULL,
    expires_s REAL NOT NULL,
    cancel_initiated_s REAL,
    enqueued INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX ledger_batches_of_tenant ON ledger_batches (tenant, created_s);
CREATE INDEX ledger_batches_not_enqueued ON ledger_batches (created_s) WHERE NOT enqueued;

CREATE TABLE ledger_batch_requests (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    params BLOB, -- until there is a result
    runs INTEGER NOT NULL DEFAULT 0,
    kind TEXT NOT NULL DEFAULT 'processing',
    result BLOB,
    recorded_s REAL,
    PRIMARY KEY (batch_id, number)
); -- with row ids: requests may be megabytes
CREATE INDEX ledger_batch_requests_by_kind ON ledger_batch_requests (batch_id, kind);
