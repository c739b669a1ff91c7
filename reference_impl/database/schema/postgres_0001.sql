CREATE TABLE ledger_entries (
    entry_id text PRIMARY KEY,
    at_s double precision NOT NULL,
    key_id text NOT NULL,
    model text NOT NULL,
    kind text NOT NULL,
    outcome text NOT NULL,
    cache text NOT NULL,
    attempts integer NOT NULL,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost_nanousd bigint NOT NULL,
    saved_nanousd bigint NOT NULL,
    latency_s double precision NOT NULL,
    instance text NOT NULL
);
-- Entries arrive nearly in order of time: a BRIN index finds a day at a thousandth of a B-tree's size and cost.
CREATE INDEX ledger_entries_at ON ledger_entries USING brin (at_s);

CREATE TABLE ledger_budgets (
    key_id text PRIMARY KEY,
    limit_nanousd bigint NOT NULL CHECK (limit_nanousd >= 0),
    spent_nanousd bigint NOT NULL DEFAULT 0,
    held_nanousd bigint NOT NULL DEFAULT 0 CHECK (held_nanousd >= 0),
    granted_nanousd bigint NOT NULL DEFAULT 0 -- by the last reservation: what its statement returns
) WITH (fillfactor = 50); -- room for updates in place

CREATE TABLE ledger_holds (
    hold text NOT NULL,
    key_id text NOT NULL,
    held_nanousd bigint NOT NULL,
    hold_s double precision NOT NULL,
    ends_at timestamptz NOT NULL,
    PRIMARY KEY (key_id, hold)
) WITH (fillfactor = 50);

CREATE TABLE ledger_writers (
    writer text PRIMARY KEY,
    sequence bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE ledger_batches (
    batch_id text PRIMARY KEY,
    key_id text NOT NULL,
    state text NOT NULL,
    total bigint NOT NULL,
    created_s double precision NOT NULL
);

CREATE TABLE ledger_batch_results (
    batch_id text NOT NULL,
    custom_id text NOT NULL,
    outcome text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (batch_id, custom_id)
);
