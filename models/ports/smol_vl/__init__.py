"""Kamera-Smol-VL: pages of text, seen as pictures by a small tower, through SmolLM2 as it is."""
