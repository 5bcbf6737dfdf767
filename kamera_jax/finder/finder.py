"""Which chunks of a library a question is about: late interaction on a few calibrated attention heads."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from kamera_jax.arguments import check_keys, check_text, check_type, whole_number
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk
from kamera_jax.errors import ChunkNotFoundError, LibraryCorruptError, RetrievalError
from kamera_jax.finder.choosing import choose
from kamera_jax.finder.heads import RetrievalHeads
from kamera_jax.finder.scoring import Head, asked, is_absorbed, key_head, match, standardised
from kamera_jax.finder.slices import Pair, Slices
from kamera_jax.forward import preamble_chunk
from kamera_jax.handle import in_bytes
from kamera_jax.identity import EXACT
from kamera_jax.library.library import ChunkLibrary

MEMORY = 2**30
"""Bytes of keys that a finder keeps by default."""


@dataclass(frozen=True)
class Hit:
    """A chunk that was found.

    Attributes:
        key: of the chunk.
        score: how much better it matches than the others do, in standard deviations over the chunks searched; the sum
            over the heads, or a cosine.
        patch: key of the stored patch that goes with it; None if there is none.
        antecedents: keys of the chunks that the patch was formed behind, in order: what the chunk refers to.
    """

    key: str
    score: float
    patch: str | None = None
    antecedents: tuple[str, ...] = ()

    def __repr__(self) -> str:
        behind = "" if self.patch is None else f", a patch behind {len(self.antecedents)} chunks"
        return f"<Hit {self.key[:12]}, score {self.score:.2f}{behind}>"


class Finder:
    """Finds the chunks of a library that a question is about, by what the model's own attention heads look for.

    The question is run alone behind the preamble. Of every chunk the keys of a few heads are compared with its queries,
    both un-rotated: of the rest of the library nothing is read. They are read once, kept in memory within a bound, and
    looked at again when the library changes. Averages of keys find nothing, as the measurements in docs/retrieval.md
    say; the largest product of one token of the question and one row of the chunk does. One thread at a time.
    """

    def __init__(
        self,
        vlm: Backbone,
        library: ChunkLibrary,
        heads: RetrievalHeads | None = None,
        *,
        memory_bytes: int = MEMORY,
    ) -> None:
        """Read nothing yet.

        Args:
            vlm: the model that the chunks were encoded with; chunks of other models, or behind another preamble, and
                kept turns are left out.
            library: where they are.
            heads: by which they are found; by default those that lie beside the model's weights. See `calibrate`.
            memory_bytes: keys that are kept, at most; what is beyond is read at every question.

        Raises:
            RetrievalError: there are no heads, or they are of another model.
        """
        check_type(library, ChunkLibrary, "library", "kamera_jax.ChunkLibrary.open(folder)")
        if heads is None:
            heads = getattr(vlm, "retrieval", None)
            heads = heads if heads is not None and heads.model == vlm.spec.fingerprint else None
        if heads is None:
            raise RetrievalError(
                f"nothing says by which heads of model {vlm.spec.fingerprint[:12]} chunks are found; choose them on "
                "questions whose chunk is known: heads=Finder.calibrate(vlm, [(question, chunk), …])"
            )
        if heads.model != vlm.spec.fingerprint:
            raise RetrievalError(
                f"the heads were chosen for model {heads.model[:12]}, and this is {vlm.spec.fingerprint[:12]}: choose "
                "them anew with Finder.calibrate"
            )
        self.heads = heads
        self.library = library
        self._vlm = vlm
        self._memory = whole_number(memory_bytes, "memory_bytes", 0)
        self._slices: Slices | None = None
        self._places: tuple[Head, ...] = ()

    def __repr__(self) -> str:
        known = self._slices
        kept = "nothing read yet" if known is None else f"{known.chunks} chunks, {in_bytes(known.nbytes)} of keys"
        return f"<Finder by {len(self.heads.heads)} heads of model {self.heads.model[:12]}: {kept}>"

    @property
    def nbytes(self) -> int:
        """Bytes of keys that are in memory."""
        return 0 if self._slices is None else self._slices.nbytes

    @property
    def read_bytes(self) -> int:
        """Bytes of keys that were read from the library so far."""
        return 0 if self._slices is None else self._slices.read_bytes

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why a chunk of the library is not searched, by its key: another model's, a kept turn, or damaged."""
        return {} if self._slices is None else dict(self._slices.left_out)

    @staticmethod
    def calibrate(
        vlm: Backbone,
        pairs: Iterable[tuple[str, Chunk | Sequence[Chunk]]],
        others: Iterable[Chunk] = (),
        *,
        heads: int = 4,
    ) -> RetrievalHeads:
        """Choose the heads that find a model's chunks, on questions whose right chunk is known.

        Each head is taken that helps most beside those before it: by the mean reciprocal rank of the right chunk among
        the wrong ones. Ask other questions than these to see how well they do.

        Args:
            vlm: the model.
            pairs: questions, each with its right chunk, or with all that are right: each is ranked among the wrong
                ones alone.
            others: chunks that are right for no question.
            heads: how many are chosen, at most: fewer where one more does not help.

        Raises:
            RetrievalError: there are no pairs, or no wrong chunks to tell the right ones from.
            ModelMismatchError: a chunk is of another model.
        """
        return choose(vlm, pairs, others, heads)

    def find(self, question: str, top: int = 4, *, among: Collection[str] | None = None) -> tuple[Hit, ...]:
        """The chunks that match a question best, the best first.

        Args:
            question: as it would be asked.
            top: how many chunks, at most.
            among: keys of the chunks that are searched, such as those of one document; all by default.

        Raises:
            BackboneError: the model does not collect queries.
            ValueError: the question is empty, or ``top`` is below 1.
        """
        check_text(question, "the question")
        top = whole_number(top, "top", 1)
        wanted = None if among is None else frozenset(check_keys(among))
        keys, scores = self.scores(question)
        here = [place for place, key in enumerate(keys) if wanted is None or key in wanted]
        if not here:
            return ()
        total = standardised(scores[here]) @ np.asarray(self.heads.weights)
        best = np.argsort(-total, kind="stable")[:top]
        return linked(self.library, [(keys[here[place]], float(total[place])) for place in best])

    def scores(self, question: str) -> tuple[tuple[str, ...], np.ndarray]:
        """The keys of all chunks that are searched, and how well each head matches them, f32[P, H]."""
        ask = asked(self._vlm, question)
        known = self._known(ask.queries)
        known.refresh()
        length = jnp.int32(ask.length)
        keys: list[str] = []
        parts = [np.zeros((0, len(self._places)), np.float32)]
        for block, gone in known.blocks():
            matched = np.asarray(match(ask.queries, length, block.arrays, block.lengths, heads=self._places))
            kept = [place for place, key in enumerate(block.keys) if key not in gone]
            keys += [block.keys[place] for place in kept]
            parts.append(matched[kept])
        return tuple(keys), np.concatenate(parts)

    def _known(self, queries: Any) -> Slices:
        if self._slices is not None:
            return self._slices
        spec = self._vlm.spec
        layers, _, count, _ = queries.shape
        if any(layer >= layers or head >= count for layer, head in self.heads.heads):
            raise RetrievalError(f"{self.heads!r} names heads that a model of {layers} layers of {count} has not")
        pairs = [Pair(layer, key_head(spec, queries, head)) for layer, head in self.heads.heads]
        places = {pair: place for place, pair in enumerate(sorted(set(pairs)))}
        self._places = tuple(
            Head(layer, head, places[pair]) for (layer, head), pair in zip(self.heads.heads, pairs, strict=True)
        )
        of = {"model": spec.fingerprint, "preamble": preamble_chunk(self._vlm).key}
        heads = None if is_absorbed(spec, queries) else spec.heads
        self._slices = Slices(self.library, tuple(places), of, self._memory, heads)
        return self._slices


def linked(library: ChunkLibrary, found: Iterable[tuple[str, float]]) -> tuple[Hit, ...]:
    """Hits with their stored patches: of several that one whose antecedents are all there, and most of them."""
    hits = []
    for key, score in found:
        patch: str | None = None
        behind: tuple[str, ...] = ()
        try:
            item = library.info(key)
            codec = item.fields["codec"] if item.fields["storage"] == EXACT else None
            for each in item.patches:
                fields = library.info(each).fields
                antecedents = tuple(fields["antecedents"])
                fits = codec is None or fields["codec"] == codec
                if fits and all(map(library.has, antecedents)) and len(antecedents) > len(behind):
                    patch = each
                    behind = antecedents
        except (LibraryCorruptError, ChunkNotFoundError):
            pass  # the chunk is there without what goes with it
        hits.append(Hit(key, score, patch, behind))
    return tuple(hits)


class EmbeddingFinder:
    """Finds chunks by vectors of the caller's, of a text or image encoder: by the cosine with the question's.

    It has `Finder`'s ``find``, so either may be given to ``Session.ask``.
    """

    def __init__(
        self,
        library: ChunkLibrary,
        vectors: Mapping[str, Any],
        embed: Callable[[str], Any],
    ) -> None:
        """Take vectors.

        Args:
            library: where the chunks are.
            vectors: by the keys of the chunks; all of one length.
            embed: a question's vector.

        Raises:
            ValueError: there are no vectors, or they are of different lengths, not finite, or zero.
        """
        check_type(library, ChunkLibrary, "library", "kamera_jax.ChunkLibrary.open(folder)")
        self.library = library
        self._embed = embed
        self._keys = tuple(vectors)
        made = [np.asarray(vectors[key], np.float32) for key in self._keys]
        if not made or any(each.ndim != 1 or each.shape != made[0].shape for each in made):
            shapes = sorted({each.shape for each in made})[:3]
            raise ValueError(f"vectors have the shapes {shapes}; expected at least one, all [D] of one length")
        self._unit = np.stack(
            [_unit(each, f"the vector of {key[:12]}") for key, each in zip(self._keys, made, strict=True)]
        )

    def __repr__(self) -> str:
        return f"<EmbeddingFinder of {len(self._keys)} chunks, vectors of {self._unit.shape[1]} numbers>"

    def find(self, question: str, top: int = 4, *, among: Collection[str] | None = None) -> tuple[Hit, ...]:
        """The chunks whose vectors are nearest to the question's; see `Finder.find`. What was deleted is left out.

        Raises:
            ValueError: ``embed`` gave a vector of another length; else see `Finder.find`.
        """
        check_text(question, "the question")
        top = whole_number(top, "top", 1)
        wanted = None if among is None else frozenset(check_keys(among))
        vector = np.asarray(self._embed(question), np.float32)
        if vector.shape != self._unit.shape[1:]:
            raise ValueError(f"embed gave {vector.shape} for the question; expected {self._unit.shape[1:]}")
        there = set(self.library.keys())
        cosines = self._unit @ _unit(vector, "the question's vector")
        order = [place for place in np.argsort(-cosines, kind="stable") if self._keys[place] in there]
        chosen = [place for place in order if wanted is None or self._keys[place] in wanted][:top]
        return linked(self.library, [(self._keys[place], float(cosines[place])) for place in chosen])


def _unit(vector: np.ndarray, what: str) -> np.ndarray:
    size = float(np.linalg.norm(vector))
    if not np.isfinite(size) or size == 0:
        raise ValueError(f"{what} has the length {size}; expected finite numbers that are not all zero")
    return vector / size
