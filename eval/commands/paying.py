"""After how many reuses a patch of what was encoded has paid: computed from FLOPs, or measured."""

from collections.abc import Iterable
from typing import Any

import kamera_jax as kj
from eval.commands import worth
from eval.commands.bench import lifetime
from eval.commands.encoding import FAILURES, Encoded
from eval.commands.worth import HOW as HOW
from kamera_jax.forward import preamble_chunk
from kamera_jax.kv import bucket
from models.vlm import VisionLanguageModel

TIMED_TOKENS = 1024
"""Chunks of more tokens than this are not timed: that would take longer than encoding them."""

RUNS = 5
"""How often ``--measure`` times each step; the median counts."""


def rows(
    vlm: VisionLanguageModel, library: kj.ChunkLibrary, items: Iterable[Encoded], *, measure: bool
) -> list[dict[str, Any]]:
    """A row for each length of what was encoded; measured ones of each padded length, but for those that are long."""
    new = [each for each in items if each.status == "encoded"]
    if not measure:
        return worth.rows(vlm, (each.tokens for each in new))
    came = {bucket(each.tokens): each for each in new if each.key is not None}
    timed: list[dict[str, Any]] = []
    limit = vlm.spec.max_positions
    try:
        for each in came.values():
            room = limit is None or 2 * each.tokens + preamble_chunk(vlm).length <= limit
            if each.tokens <= TIMED_TOKENS and room and each.key is not None:
                chunk = library.get(each.key)
                timed.append(lifetime(vlm, chunk, chunk, None, RUNS))
    except FAILURES:  # everything is stored: only this is lacking
        return timed
    return timed
