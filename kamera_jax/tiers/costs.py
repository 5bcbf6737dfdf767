"""What it costs to make a chunk again."""

import math
from collections.abc import Callable

from kamera_jax.arguments import real_number
from kamera_jax.backbone import Backbone, forward_flops
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.forward import preamble_chunk

Cost = Callable[[Chunk], float]
"""Seconds, FLOPs or anything else that is the same unit for all chunks."""


def tokens_of(chunk: Chunk) -> int:
    """Tokens that are run to make a chunk, whatever rows it keeps."""
    return chunk.length if chunk.source is None else int(chunk.source.length)


class Costs:
    """Costs of chunks, and of their patches: a patch is formed by a forward of its chunk.

    A caller's function says what a chunk costs; else it is the FLOPs of its forward where the model is known, and its
    tokens where it is not.
    """

    def __init__(self, vlm: Backbone | None, cost: Cost | None) -> None:
        """Know no chunk yet."""
        self._vlm = vlm
        self._cost = cost
        self._each = 1.0  # of a token, of the chunk that was seen last

    def of(self, chunk: Chunk) -> float:
        """Of a chunk.

        Raises:
            ValueError: the caller's function gives no finite number of at least 0.
        """
        tokens = tokens_of(chunk)
        if self._cost is not None:
            cost = real_number(self._cost(chunk), f"cost(chunk {chunk.key[:12]})", 0.0)
        else:
            cost = self._forward(tokens)
        self._each = cost / max(tokens, 1)
        return cost

    def of_patch(self, patch: Patch) -> float:
        """Of a patch, whose chunk need not be there."""
        return self._each * patch.length if self._cost is not None else self._forward(patch.length)

    def _forward(self, tokens: int) -> float:
        if self._vlm is None:
            return float(tokens)
        flops = forward_flops(self._vlm, tokens, preamble_chunk(self._vlm).length)
        return flops if math.isfinite(flops) and flops > 0 else float(tokens)
