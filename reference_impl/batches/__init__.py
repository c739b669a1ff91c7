"""Message batches: thousands of requests submitted at once, answered through a queue."""
