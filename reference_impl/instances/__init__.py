"""Instances: slots, metrics, and what starts and stops them."""
