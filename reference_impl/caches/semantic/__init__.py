"""Answers to prompts that mean the same: vectors, their index, and the gate against near misses."""
