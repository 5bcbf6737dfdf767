"""Chunks that keep the rows of some tokens, chosen before any question is known, and merge the others into them."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, describe, source_of
from kamera_jax.compress import scores
from kamera_jax.compress.basis import queries_of_model
from kamera_jax.compress.rows import MEASURED, Select
from kamera_jax.compress.stage import RowStage
from kamera_jax.errors import CodecError
from kamera_jax.handle import traced
from kamera_jax.identity import EXACT, LOOKM, row_stages
from kamera_jax.inference.evidence import row_scores
from kamera_jax.kv import Segment, bucket
from kamera_jax.source import kept_rows
from kamera_jax.transfer import to_device


def select_rows(vlm: Backbone, chunk: Chunk, stages: Sequence[RowStage]) -> Chunk:
    """A chunk with the rows of the tokens that are worth most: one choice for all layers and heads.

    Each row stays at its token's position, and the tokens right before and behind media are always kept. What is run
    again is the whole source, and the key stays: the codec says which rows there are.

    Args:
        vlm: the model that encoded it.
        chunk: with its source and a row for every token.
        stages: a selection, and how its rows take in the others; none for the chunk as it is.

    Raises:
        CodecError: the chunk's rows are shared or chosen already, or its tokens' positions do not tell them apart, or
            it is being traced, where it is not known which rows remain.
        MissingInputsError: it lost its source. BasisError: nothing was measured of the model's questions, or something
            else than the codec names. BackboneError: the model does not collect the queries that this takes.
    """
    if not stages:
        return chunk
    stages = [_named(vlm, stage) for stage in stages]
    name = "+".join(stage.name for stage in stages)
    chosen = next(stage for stage in stages if isinstance(stage, Select))
    source = _checked(chunk, name)
    always = always_kept(source, text=chosen.how == LOOKM)
    fixed = int(always.sum())
    if chosen.how == LOOKM:
        keep = fixed + round(chosen.share * (chunk.length - fixed))
    else:
        keep = max(fixed, 1, round(chosen.share * chunk.length))
    codec = name if chunk.codec == EXACT else f"{chunk.codec}+{name}"
    if keep >= chunk.length:
        return chunk.keeping(codec=codec)
    values = np.asarray(scores.one_choice(row_scores(vlm, chunk, chosen)))[: chunk.length]
    rows = scores.best(values, always, chunk.length, keep)
    positions = np.asarray(source.positions)[:, : chunk.length]
    _check_known(chunk, positions[:, rows], positions)
    there = np.zeros((len(positions), bucket(len(rows))), np.float32)
    there[:, : len(rows)] = positions[:, rows]
    kept = chunk.keeping(positions=to_device(there), length=len(rows), codec=codec)
    return kept.keeping(kv=kept.taken(chunk.kv))


def _named(vlm: Backbone, stage: RowStage) -> RowStage:
    """The stage, whose name says which statistics of the model it takes: others choose other rows."""
    if not isinstance(stage, Select) or stage.option != MEASURED:
        return stage
    return stage.named(queries_of_model(vlm.spec, vlm.fingerprint).digest)


def _checked(chunk: Chunk, name: str) -> Segment:
    """The source of a chunk whose rows may be chosen."""
    if traced(*jax.tree.leaves(chunk)):
        raise CodecError(
            f"{describe(chunk)} is inside a JAX transformation, where it is not known which rows {name} keeps; choose "
            "them before it"
        )
    source = source_of(chunk)
    if chunk.counts is not None or row_stages(chunk.codec) or not chunk.keeps_all_rows:
        raise CodecError(
            f"{describe(chunk)} has codec {chunk.codec!r} and keeps {chunk.length} rows of {int(source.length)} "
            f"tokens, and {name} chooses from a row for each token: compress the chunk as encoded"
        )
    return source


def always_kept(source: Segment, *, text: bool = False) -> Bool[np.ndarray, " T"]:
    """Which tokens are kept whatever they score: the start and end of every run of media, or all that are no media.

    Args:
        source: all tokens.
        text: whether every token that is no media is kept; in a text that is all of it.
    """
    count = int(source.length)
    media = source.inputs.get("is_media")
    if media is None:
        return np.full(count, text)
    media = np.asarray(media)[:count]
    if text:
        return ~media
    before = np.concatenate([media[1:], [False]])
    behind = np.concatenate([[False], media[:-1]])
    return ~media & (before | behind)


def _check_known(chunk: Chunk, rows: np.ndarray, tokens: np.ndarray) -> None:
    """Raise CodecError where several tokens have one position, so that a patch could not be formed."""
    try:
        kept_rows(rows, rows.shape[1], tokens, tokens.shape[1], describe(chunk))
    except ValueError as error:
        raise CodecError(
            f"{describe(chunk)} has several tokens at one position, so rows of theirs could not be distinguished; take "
            "fewer frames a second, or keep all rows"
        ) from error
