CREATE TABLE ledger_entries (
    entry_id TEXT PRIMARY KEY,
    at_s REAL NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    outcome TEXT NOT NULL,
    cache TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_nanousd INTEGER NOT NULL,
    saved_nanousd INTEGER NOT NULL,
    latency_s REAL NOT NULL,
    instance TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE ledger_budgets (
    key_id TEXT PRIMARY KEY,
    limit_nanousd INTEGER NOT NULL CHECK (limit_nanousd >= 0),
    spent_nanousd INTEGER NOT NULL DEFAULT 0,
    held_nanousd INTEGER NOT NULL DEFAULT 0 CHECK (held_nanousd >= 0)
) WITHOUT ROWID;

CREATE TABLE ledger_holds (
    hold TEXT NOT NULL,
    key_id TEXT NOT NULL,
    held_nanousd INTEGER NOT NULL,
    hold_s REAL NOT NULL,
    ends_at_s REAL NOT NULL,
    PRIMARY KEY (key_id, hold)
) WITHOUT ROWID;

CREATE TABLE ledger_writers (
    writer TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE ledger_batches (
    batch_id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL,
    state TEXT NOT NULL,
    total INTEGER NOT NULL,
    created_s REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE ledger_batch_results (
    batch_id TEXT NOT NULL,
    custom_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (batch_id, custom_id)
) WITHOUT ROWID;
