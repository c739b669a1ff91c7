"""Private servers on this machine, for tests and for people without Docker."""
