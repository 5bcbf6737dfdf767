"""What a chat template does to the texts that it is given: seen by what it writes of marks."""

import os
from collections.abc import Callable, Iterable
from functools import partial

PADDED = " \n{} \n"
"""A mark between white space, of which a template may take either side."""


def header_of_all(before: str, with_blocks: Iterable[str]) -> str:
    """What a template writes before a message, whether a text or a media block comes first in it.

    Templates may write a space behind the header unless an image comes first (SmolVLM's "User:"). As a chunk's tokens
    are the same wherever it stands, the space is left out.
    """
    for whole in with_blocks:
        shared = os.path.commonprefix([before, whole])
        if whole and shared and before[len(shared) :].isspace():
            return shared
    return before


def stripping(written: str, mark: str) -> Callable[[str], str]:
    """What the template does to the white space around a text, seen by what it made of `PADDED`."""
    before, after = PADDED.split("{}")
    return partial(_stripped, left=f"{before}{mark}" not in written, right=f"{mark}{after}" not in written)


def _stripped(text: str, *, left: bool, right: bool) -> str:
    text = text.lstrip() if left else text
    return text.rstrip() if right else text
