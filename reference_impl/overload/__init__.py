"""Policies that keep a system up under more load than it can take."""
