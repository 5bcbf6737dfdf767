"""Texts of one bucket, of which two differ in a word."""

TEXTS = ("the page is red", "a blue cell", "which star is it", "the cell is red")
