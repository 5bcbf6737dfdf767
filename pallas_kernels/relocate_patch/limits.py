"""What each kernel serves, known without importing it."""

from pallas_kernels.relocate_patch.chunk import Cache, Chunk

HEAD_DIMS = (64, 80, 96, 128, 256)
DTYPES = ("bfloat16", "float32")
LANES = 128
ROWS = 16
"""Tokens of the smallest copy where features are minor; slots are multiples of it. Where tokens are, it is LANES."""
MAX_PAGE = 1024


def transposed(width: int) -> bool:
    """Whether XLA for TPU lays [..., T, width] out with tokens minor, so that a kernel reads [..., width, T] for free.

    A width that is no multiple of 128 lanes would be padded to one; token-major blocks would cost two transposes.
    """
    return width % LANES != 0


def tpu_refusal(chunk: Chunk) -> str | None:
    """Why ``"pallas_tpu"`` cannot serve these arrays, or their shapes and dtypes; None where it can."""
    if chunk.head_dim not in HEAD_DIMS:
        return f"it needs a head dim D in {HEAD_DIMS}, not {chunk.head_dim}"
    if wrong := {str(x.dtype) for x in chunk.stored} - set(DTYPES):
        return f"it needs arrays in {' or '.join(DTYPES)}, not {', '.join(sorted(wrong))}"
    return None


def tpu_cache_refusal(cache: Cache) -> str | None:
    """Why ``"pallas_tpu"`` cannot write to this cache, or None."""
    for name, array in (("cache_rot", cache.rot), ("cache_free", cache.free)):
        slots = array.shape[1] if cache.page is None else cache.page
        narrow = transposed(array.shape[-1])
        granule = LANES if narrow else ROWS
        why = f" because the {array.shape[-1]} features of {name} are no multiple of {LANES}" if narrow else ""
        if str(array.dtype) not in DTYPES:
            return f"it needs caches in {' or '.join(DTYPES)}, not {array.dtype}"
        if cache.page is not None and (slots % granule or slots > MAX_PAGE or slots & (slots - 1)):
            return f"it needs pages of a power of two of tokens from {granule} to {MAX_PAGE}{why}, not {slots}"
        if slots % granule:
            return f"it needs a multiple of {granule} slots{why}, not {slots}"
    return None
