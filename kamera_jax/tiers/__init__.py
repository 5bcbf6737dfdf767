"""Tiers of a store: what is kept on the device, in host memory and on disk, by what it is worth."""
