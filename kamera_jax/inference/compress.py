"""Compressing a chunk, and measuring a model for it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from kamera_jax.arguments import check_list, check_type
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, describe
from kamera_jax.compress.asking import QuerySums
from kamera_jax.compress.basis import CodecBasis, hold, measured, subject
from kamera_jax.compress.codec import Shape, check_storable
from kamera_jax.compress.codec import codec as codec_named
from kamera_jax.compress.compressed import Compressed
from kamera_jax.compress.stage import PARTS
from kamera_jax.compress.training import trained
from kamera_jax.errors import DonatedError
from kamera_jax.handle import deleted, traced
from kamera_jax.inference.evidence import queries_of_question
from kamera_jax.inference.selection import select_rows
from kamera_jax.kv import KV
from kamera_jax.window.checks import check_encoded_by


def compress(vlm: Backbone, chunk: Chunk, codec: str) -> Compressed:
    """A chunk's KV in fewer bytes.

    A patch is best formed for what is served, ``form_patch(vlm, compressed.restore(), …)``: it then gives back most of
    what the codec lost.

    Args:
        vlm: the model that encoded the chunk.
        chunk: canonical or not; it is left as it is.
        codec: what its KV goes through: ``"int8"``; ``"kivi:B"``, keys by channel and values by token in groups of 32,
            and ``"kivi:B:channel"``, values by channel too (arXiv 2402.02750); ``"saw:B"``, Hadamard blocks, then by
            token and head; ``"turbo:B"``, the best codebook of a normal distribution behind a random rotation; with B
            bits from 1 to 8. Before one of these may stand a low-rank stage, whose few numbers they are then given, as
            in ``"pca:0.5+kivi:4"``: ``"pca:share"``, components that were measured once for the model (see
            `calibrate_codec`), ``"xkv:l:r"``, r components of l layers side by side, the chunk's own (arXiv
            2503.18893), or ``"capsule:share"``, some keys, a network for the others, and components of values along the
            sequence (KVCapsule, arXiv 2605.16439, reconstructed from its abstract). And first of all what keeps a share
            R of the rows, one choice for all layers and heads, at their own positions: ``"kvzip:R"``, what a replay of
            the chunk behind itself reads (arXiv 2505.23416); ``"keydiff:R"``, ``"leverage:R"`` and ``"knorm:R"``
            (``:small`` or ``:large``, else as the replay reads), keys alone; ``"expected:R"`` and ``"tri:R"``,
            statistics of the chunk's own queries, or ``"expected:R:measured"`` of the model's questions; and then
            ``"merge:average"``, ``"pivot"``, ``"weighted"`` or ``"values"``, by which they take in the others (LOOK-M,
            arXiv 2406.18139). ``"lookm:R"`` keeps all text and the share R of media that the chunk itself reads most,
            and merges by pivot.

    Raises:
        CodecError: there is no such codec, or the KV has values that it cannot store, or rows cannot be chosen: they
            are already, or the chunk is being traced. MissingInputsError: they are chosen of a chunk without a source.
            BackboneError: they are chosen by queries, which the model does not collect.
        BasisError: nothing was measured of this model for it.
        ModelMismatchError: another model encoded the chunk. DonatedError: its arrays were given away.
    """
    check_type(chunk, Chunk, "chunk", "encode(vlm, item) makes one of text or an image")
    named = codec_named(codec)
    check_encoded_by(vlm, chunk)
    if deleted(chunk):
        raise DonatedError(f"the arrays of {describe(chunk)} were donated; compress what took their place")
    named.check_shape(Shape.of(chunk.kv, chunk.spec))
    chunk = select_rows(vlm, chunk, named.rows)
    if named.packing and not traced(*jax.tree.leaves(chunk.kv)):
        for part in PARTS:
            check_storable(np.asarray(getattr(chunk.kv, part)), chunk.length, f"kv.{part}", named)
    return Compressed.of(chunk, named.storage)


def calibrate_codec(
    vlm: Backbone, chunks: Iterable[Chunk], *, capsule: bool = False, questions: Sequence[str] = ()
) -> CodecBasis:
    """What ``"pca:share"`` takes of a model: the directions in which its keys and its values vary, in each layer.

    And, if it is asked for, what ``"capsule:share"`` takes: components of values along the sequence, and a small
    network that is trained, which takes a minute for a small model. And what ``"expected:R:measured"`` takes: how the
    queries of questions are distributed in each head.

    Codecs use it from now on, in this process; ``models.hub.basis.keep(vlm, basis)`` keeps it where it is found again
    whenever the model is loaded, in whatever dtype. The embedded models bring theirs. The same chunks give the same
    basis. KV that was packed with a basis is read with that one, and names it.

    Args:
        vlm: the model.
        chunks: of the kinds that will be stored; some thousand tokens, and more than a layer's KV has features.
        capsule: whether to train it; their KV is then held in host memory.
        questions: of the kind that will be asked; each chunk is asked the next one of them, behind it alone.

    Raises:
        BasisError: there are no chunks, or their KV is not finite. ModelMismatchError: another model encoded one.
        BackboneError: there are questions, and the model does not collect queries.
    """
    check_type(chunks, Iterable, "chunks", "a list of what encode(vlm, item) gives")
    check_list(questions, str, "questions", "what will be asked of chunks, or nothing")

    sums = QuerySums()

    def given() -> Iterator[tuple[KV, int]]:
        for number, chunk in enumerate(chunks):
            check_type(chunk, Chunk, "chunk", "encode(vlm, item) makes one of text or an image")
            check_encoded_by(vlm, chunk)
            if deleted(chunk):
                raise DonatedError(f"the arrays of {describe(chunk)} were donated; measure what took their place")
            if questions:
                sums.add(*queries_of_question(vlm, chunk, questions[number % len(questions)]))
            yield chunk.kv, chunk.length

    model = subject(vlm.spec, vlm.fingerprint)
    if capsule:
        kvs = [(jax.tree.map(np.asarray, kv), length) for kv, length in given()]
        basis = replace(measured(model, kvs), capsule=trained(model, kvs))
    else:
        basis = measured(model, given())
    if questions:
        basis = replace(basis, queries=sums.of(model))
    hold(basis)
    return basis
