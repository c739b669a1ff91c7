"""Pool, ledger, budgets and advice: the database behind the gateway."""
