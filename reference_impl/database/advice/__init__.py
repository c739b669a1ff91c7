"""What a PostgreSQL database would be better with: indexes, batches, fewer indexes, another pool."""
