"""Tests; a package, so that a `tests` package of some dependency never shadows it."""
