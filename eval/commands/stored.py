"""Patches that a library has of chunks as they are asked about together."""

from collections.abc import Sequence

import kamera_jax as kj
from kamera_jax.chunk import source_of
from kamera_jax.identity import EXACT, chunk_key, content_key, content_of, extended, lineage, patch_key
from kamera_jax.inference.orders import orders_of
from kamera_jax.patch.size import Size


def stored_patch(
    library: kj.ChunkLibrary,
    chunk: kj.Chunk,
    antecedents: Sequence[kj.Chunk],
    *,
    together: Sequence[kj.Chunk] = (),
    size: Size | None = None,
) -> kj.Patch | None:
    """A patch that the library has of a chunk behind others; None where it has none.

    First comes the one that `kamera_jax.form_patch` would form of this size, bit for bit the same inputs. Where no size
    is asked for, then the largest that was formed behind these chunks in this order, and then one for any order of all
    that is asked about together.

    Args:
        library: where it may be.
        chunk: canonical.
        antecedents: the chunks before it, in order.
        together: all chunks that are asked about together, this one among them.
        size: as asked for; None for whatever there is.
    """
    if (key := formed_key(chunk, antecedents, size or Size())) and library.has(key):
        return library.get_patch(key)
    if size is not None and size != Size():
        return None
    keys = tuple(each.key for each in antecedents)
    others = sorted(each.key for each in together if each.key != chunk.key)
    patches = [each for each in library.patches(chunk.key) if each.codec == chunk.codec and each.model == chunk.model]
    behind = [each for each in patches if each.antecedents == keys]
    any_order = [each for each in patches if not each.lineage and sorted(each.antecedents) == others]
    return max(behind or any_order, key=lambda each: each.nbytes, default=None)


def formed_key(chunk: kj.Chunk, antecedents: Sequence[kj.Chunk], size: Size, *, any_order: bool = False) -> str:
    """The key that `kamera_jax.form_patch` gives a patch of a chunk behind others; empty where it gives none.

    Args:
        chunk, antecedents: canonical.
        size: what is asked for.
        any_order: see `kamera_jax.form_patch`.
    """
    orders = orders_of(antecedents) if any_order else [tuple(antecedents)]
    lineages = [_prefilled(chunk.preamble, order) for order in orders]
    context = lineages[0] if len(lineages) == 1 else content_key({"orders": lineages}) if all(lineages) else ""
    dtype = "int8" if size.stores_int8 else chunk.kv.rot.dtype.name
    return patch_key(chunk.key, chunk.codec, context, size.asked, dtype, None)


def _prefilled(preamble: str | None, chunks: Sequence[kj.Chunk]) -> str:
    """The lineage of a window of these chunks by full prefill."""
    context = lineage(preamble)
    for each in chunks:
        if each.spec is None:
            return ""
        content = each.content or content_of(source_of(each))
        context = extended(context, (chunk_key(content, each.spec, context), EXACT, ""))
    return context
