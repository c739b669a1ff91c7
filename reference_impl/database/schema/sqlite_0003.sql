-- Whether the hold's owner has been given notice: see `LedgerStore.reserve`.
ALTER TABLE ledger_holds ADD COLUMN noticed INTEGER NOT NULL DEFAULT 0;
