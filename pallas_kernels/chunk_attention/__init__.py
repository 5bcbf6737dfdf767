"""Attention to canonical chunks where they lie: keys patched and rotated on the fly, no KV written."""
