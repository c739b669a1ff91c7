"""The port to the Messages API and its adapters."""
