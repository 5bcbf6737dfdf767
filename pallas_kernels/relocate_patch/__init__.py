"""Rotate canonical keys to their target positions and add a low-rank patch, in one pass."""
