"""Queues of tasks: one port, adapters to brokers, and what makes a task take effect once."""
