"""Items as chunks, each encoded once for as long as it is kept: contexts of a benchmark show the same media again."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax

import kamera_jax as kj
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.backbone import Backbone
from kamera_jax.inference.encode import encode_segment
from kamera_jax.kv import Segment

KEPT_BYTES = 2**30
"""Bytes of chunks that are kept from one group of contexts to the next, with what the model read of them: 1 GiB."""


class Encoder:
    """Encodes items; those that were shown last are kept, by their content.

    Args:
        vlm: the model.
        most: bytes that are kept; what a single call gives is kept whatever it takes, until the next one.
    """

    def __init__(self, vlm: Backbone, most: int = KEPT_BYTES) -> None:
        self._vlm = vlm
        self._most = most
        self._known: OrderedDict[str, kj.Chunk] = OrderedDict()
        self._bytes = 0

    def __call__(self, items: Sequence[Any]) -> list[kj.Chunk]:
        """The chunks of these items, each of its own bits whenever it is encoded."""
        while self._bytes > self._most:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= nbytes(dropped)
        return [self._chunk(item) for item in items]

    def _chunk(self, item: Any) -> kj.Chunk:
        item = self._read(item)  # a tower is run for what is not known alone
        if item.content not in self._known:
            segment = item if isinstance(item, Segment) else self._vlm.prepare(item)
            self._known[item.content] = encode_segment(self._vlm, segment)
            self._bytes += nbytes(self._known[item.content])
        self._known.move_to_end(item.content)
        return self._known[item.content]

    def _read(self, item: Any) -> Any:
        """The item with its content's digest: preprocessed, where the model does that by itself, else prepared."""
        preprocess = getattr(self._vlm, "preprocess", None)
        if preprocess is None or isinstance(item, Tokens):
            return segment_of(self._vlm, item)
        return preprocess(item)


def nbytes(chunk: kj.Chunk) -> int:
    """Of all its arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(chunk) if hasattr(leaf, "nbytes"))
