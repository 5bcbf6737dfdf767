"""Near-duplicate frames of a video that share the rows of its KV, of which each says for how many tokens it stands."""

from functools import partial

import jax
import numpy as np
from jaxtyping import Float, Int

from kamera_jax.arguments import check_type, real_number
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, describe, source_of
from kamera_jax.errors import DonatedError, SharedRowsError
from kamera_jax.handle import deleted, traced
from kamera_jax.identity import EXACT, SHARED, shared_rows
from kamera_jax.kv import Segment, bucket
from kamera_jax.source import kept_rows, token_places
from kamera_jax.transfer import to_device
from kamera_jax.window.checks import check_bias_is_read, check_encoded_by

THRESHOLD = 0.95
"""Cosine of two media embeddings from which on their tokens share a row, by default."""


def share_rows(vlm: Backbone, chunk: Chunk, threshold: float | int = THRESHOLD) -> Chunk:
    """A video's chunk with one row of KV for tokens that show the same: fewer bytes, the same positions behind it.

    A token of a temporal patch shares the row that stands at the same place of an earlier one, the latest that was
    kept there, where the cosine of their media embeddings reaches the threshold. The row is the mean of theirs,
    un-rotated, at the position of the earliest; ``counts`` says for how many tokens it stands, and attention adds the
    logarithm of that to its scores, which is exact where the tokens' rows are equal. Text tokens keep their rows. What
    is run again is the whole source, and the key stays: the codec, such as ``"shared:0.95"``, says what was done.

    Temporal patches are runs of media tokens. Where the model has position axes of its own for height and width, one
    begins wherever a run comes back to the height and width that it began at, and all have to have the same grid; else
    all have to have the same number of tokens. Several images of one size in one chunk count as frames.

    Args:
        vlm: the model that encoded the chunk; its forward reads ``state.bias``
            (`kamera_jax.backbone.BackboneBase.reads_bias`).
        chunk: of a video, with its source and all its rows.
        threshold: above 0, and 1 at most, which is for equal embeddings alone.

    Raises:
        SharedRowsError: the chunk has no two temporal patches (it is text, an image, or a turn), they differ in size,
            it is not known which tokens its rows are of, or its rows are shared already.
        MissingInputsError: the chunk lost its source. ModelMismatchError: another model encoded it.
        BackboneError: the model does not say that its forward reads how many tokens a row stands for.
        ValueError: the threshold is none.
    """
    threshold = real_number(threshold, "threshold")
    if not 0 < threshold <= 1:
        raise ValueError(
            f"threshold is {threshold:g}; expected a cosine above 0 and of 1 at most, such as {THRESHOLD}: tokens "
            "whose media embeddings reach it share a row"
        )
    source = _checked(vlm, chunk)
    positions = np.asarray(source.positions)[:, : int(source.length)]
    owners = row_owners(chunk, source, threshold)
    kept = np.flatnonzero(owners == np.arange(len(owners)))
    codec = SHARED + repr(threshold) if chunk.codec == EXACT else f"{chunk.codec}+{SHARED}{threshold!r}"
    counts = np.ones(bucket(len(kept)), np.float32)
    counts[: len(kept)] = np.bincount(owners, minlength=len(owners))[kept]
    if len(kept) == chunk.length:
        return chunk.keeping(codec=codec, counts=to_device(counts))
    _check_known(chunk, source, positions[:, kept])
    there = np.zeros((len(positions), len(counts)), np.float32)
    there[:, : len(kept)] = positions[:, kept]
    there, counts = to_device((there, counts))
    shared = chunk.keeping(positions=there, length=len(kept), codec=codec, counts=counts)
    return shared.keeping(kv=shared.taken(chunk.kv))


def _checked(vlm: Backbone, chunk: Chunk) -> Segment:
    """The source of a chunk whose rows may be shared, as far as that shows without its values."""
    check_type(chunk, Chunk, "chunk", "encode(vlm, video) makes one")
    refused = partial(_refused, chunk)
    check_encoded_by(vlm, chunk)
    check_bias_is_read(vlm)
    if deleted(chunk):
        raise DonatedError(f"{describe(chunk)} was donated, and its KV is gone; donate a copy of it, chunk.copied()")
    if traced(*jax.tree.leaves(chunk)):
        raise refused(
            "is inside a JAX transformation, where it is not known how many rows remain; share them before it"
        )
    if chunk.counts is not None or shared_rows(chunk.codec):
        raise refused(f"has codec {chunk.codec!r}: its rows are shared already; share those of the chunk as encoded")
    if chunk.turn:
        raise refused("is a turn, a question with its answer; expected the chunk of a video")
    source = source_of(chunk)
    if not chunk.keeps_all_rows:
        raise refused(f"keeps {chunk.length} rows of {int(source.length)} tokens; expected a row for each token")
    if not {"media", "is_media"} <= set(source.inputs):
        raise refused("has no media, it is text; expected the chunk of a video")
    return source


def row_owners(chunk: Chunk, source: Segment, threshold: float) -> Int[np.ndarray, " T"]:
    """The token whose row each token takes: its own, or one at the same place of an earlier temporal patch.

    Args:
        chunk: what an error names.
        source: all its tokens.
        threshold: see `share_rows`.

    Raises:
        SharedRowsError: it has no two temporal patches, or they differ in size.
    """
    patches = _temporal_patches(chunk, source)
    media = np.asarray(source.inputs["media"])
    owners = np.arange(int(source.length))
    latest = patches[0].copy()
    kept = media[latest].astype(np.float32)
    for patch in patches[1:]:
        new = media[patch].astype(np.float32)
        same = _cosine(kept, new) >= threshold
        owners[patch] = np.where(same, latest, patch)
        latest = owners[patch]
        kept = np.where(same[:, None], kept, new)
    return owners


def _refused(chunk: Chunk, why: str) -> SharedRowsError:
    return SharedRowsError(f"{describe(chunk)} {why}")


def _temporal_patches(chunk: Chunk, source: Segment) -> Int[np.ndarray, "P n"]:
    """The tokens of each temporal patch, by place.

    Raises:
        SharedRowsError: there are no two, or they differ in size.
    """
    places = np.asarray(token_places(source.inputs, source.positions, source.length))
    positions = np.asarray(source.positions)
    media = np.flatnonzero(places < len(places))
    patches = np.split(media, np.flatnonzero(places[media] == 0)[1:]) if len(media) else []
    if len(patches) < 2:
        one = "one temporal patch, as an image has" if patches else "no media tokens"
        raise _refused(chunk, f"has {one}; expected the chunk of a video of two or more, whose rows can be shared")
    grids = [(positions[1:, patch] - positions[1:, patch[:1]]).tolist() for patch in patches]
    sizes = [len(patch) for patch in patches]
    if len(set(sizes)) > 1 or any(grid != grids[0] for grid in grids):
        raise _refused(
            chunk,
            f"has {len(patches)} blocks of media tokens that differ in size ({min(sizes)} to {max(sizes)} tokens) or "
            "grid, so it is not known which tokens stand at the same place; expected one video as a chunk of its own",
        )
    return np.stack(patches)


def _cosine(a: Float[np.ndarray, "n E"], b: Float[np.ndarray, "n E"]) -> Float[np.ndarray, " n"]:
    """Of each row of the one with that of the other; 1 where they are equal, whatever rounding makes of it."""
    norms = np.sqrt(np.square(a).sum(1, dtype=np.float64) * np.square(b).sum(1, dtype=np.float64))
    cosine = np.einsum("ne,ne->n", a, b, dtype=np.float64) / np.where(norms > 0, norms, 1.0)
    return np.where((a == b).all(1), 1.0, cosine)


def _check_known(chunk: Chunk, source: Segment, positions: Float[np.ndarray, "A K"]) -> None:
    """Raise SharedRowsError where several tokens have one position, so that a patch could not be formed."""
    try:
        kept_rows(positions, positions.shape[1], np.asarray(source.positions), int(source.length), describe(chunk))
    except ValueError as error:
        raise _refused(
            chunk,
            "has temporal patches that stand at one position, as of frames that follow within one tick of the model's "
            "time axis, so rows of theirs could not be distinguished; take fewer frames a second",
        ) from error
