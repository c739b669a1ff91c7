"""Bottleneck reports: from one or two run folders to a page that says what limits, how surely, and what to do."""
