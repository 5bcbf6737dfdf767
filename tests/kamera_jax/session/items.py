"""What the tests of sessions add."""

CAPACITY = 80
"""The preamble and four items of up to 16 letters."""

ITEMS = ("a red star", "a blue moon.", "the cell", "a page of it", "which it is", "and the last", "one more")
