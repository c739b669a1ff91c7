"""Which instance takes a call."""
