-- Batches with their requests, in place of tables that nothing wrote to.
DROP TABLE ledger_batch_results;
DROP TABLE ledger_batches;

CREATE TABLE ledger_batches (
    batch_id text PRIMARY KEY,
    tenant text NOT NULL,
    created_s double precision NOT NULL,
    expires_s double precision NOT NULL,
    cancel_initiated_s double precision,
    enqueued boolean NOT NULL DEFAULT false
);
CREATE INDEX ledger_batches_of_tenant ON ledger_batches (tenant, created_s);
CREATE INDEX ledger_batches_not_enqueued ON ledger_batches (created_s) WHERE NOT enqueued;

CREATE TABLE ledger_batch_requests (
    batch_id text NOT NULL,
    number integer NOT NULL,
    custom_id text NOT NULL,
    params bytea, -- until there is a result
    runs integer NOT NULL DEFAULT 0,
    kind text NOT NULL DEFAULT 'processing',
    result bytea,
    recorded_s double precision,
    PRIMARY KEY (batch_id, number)
) WITH (fillfactor = 70); -- room for updates in place
CREATE INDEX ledger_batch_requests_by_kind ON ledger_batch_requests (batch_id, kind);
