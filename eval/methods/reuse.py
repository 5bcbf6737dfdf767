"""Parts that fill windows: full prefill, blind reuse, and reuse with patches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.methods.base import Batch, Cost
from kamera_jax import patch
from kamera_jax.batch.windows import Windows, fit_size
from kamera_jax.kv import KV, Factors, KVSpec
from kamera_jax.patch.size import Size


@dataclass(frozen=True)
class Full:
    """Full prefill, the reference: every chunk is run again behind the chunks before it."""

    def prepare(self, batch: Batch) -> None:
        """Nothing is prepared."""

    def apply(self, batch: Batch, windows: Windows | None, prepared: None) -> Windows:
        """The windows by full prefill."""
        return batch.runner.prefill(batch.chunks)

    def cost(self, batch: Batch, prepared: None) -> Cost:
        """All tokens are run."""
        lengths = [chunk.length for chunk in batch.chunks]
        return Cost(computed_tokens=float(sum(lengths)), flops=batch.tokens_flops(lengths))


@dataclass(frozen=True)
class CachedEncoder(Full):
    """Full prefill where a cache keeps what the media tower gave: a row of cost beside it, with its answers.

    FLOPs are the language model's, as everywhere, so that they are those of `Full`.
    """

    def cost(self, batch: Batch, prepared: None) -> Cost:
        """All tokens are run; kept are embeddings of media, in the model's dtype, and the ids of text."""
        kept = 0.0
        for chunk, media in zip(batch.chunks, batch.is_media, strict=True):
            row = chunk.segment.inputs["media"].shape[-1] if media else 0
            size = row * jnp.dtype(batch.runner.vlm.spec.dtype).itemsize if media else 4
            kept += chunk.length * size
        return replace(super().cost(batch, prepared), kept_bytes=kept)


@dataclass(frozen=True)
class CachedPrefix(Full):
    """Full prefill where a cache keeps prefixes: the first chunk stands where it stood, and all behind it is run."""

    def cost(self, batch: Batch, prepared: None) -> Cost:
        """The tokens behind the first chunk are run."""
        lengths = [0, *(batch.chunks[place].length for place in batch.reused)]
        return Cost(computed_tokens=float(sum(lengths)), flops=batch.tokens_flops(lengths))


@dataclass(frozen=True)
class Blind:
    """Blind reuse: chunks as they were encoded alone.

    Attributes:
        relocated: whether keys are rotated to the chunk's place; if not, all chunks keep the positions right behind the
            preamble that they were encoded at.
    """

    relocated: bool = True

    def prepare(self, batch: Batch) -> None:
        """Nothing is prepared."""

    def apply(self, batch: Batch, windows: Windows | None, prepared: None) -> Windows:
        """The windows with the chunks written to their slots."""
        return batch.runner.reuse(batch.chunks, [None] * len(batch.chunks), relocated=self.relocated)

    def cost(self, batch: Batch, prepared: None) -> Cost:
        """Nothing is run."""
        return Cost()


Budget = Callable[[Batch, int], Factors]
"""A function that gives the patches of one place, for every context, within some budget."""


@dataclass(frozen=True)
class Patched:
    """Reuse with a patch for every chunk behind the first, formed behind the chunks before it.

    Where a context says what its patches are formed behind (`eval.tasks.Context.antecedents`), every chunk that has
    antecedents gets one.

    Attributes:
        budget: gives the patches.
    """

    budget: Budget

    def prepare(self, batch: Batch) -> list[Factors | None]:
        """The patches, which are formed once and stored beside the chunks."""
        return [self.budget(batch, i) if i in batch.patched else None for i in range(len(batch.chunks))]

    def apply(self, batch: Batch, windows: Windows | None, prepared: list[Factors | None]) -> Windows:
        """The windows with the chunks rotated, patched and written."""
        return batch.runner.reuse(batch.chunks, prepared)

    def cost(self, batch: Batch, prepared: list[Factors | None]) -> Cost:
        """The patches' bytes, and the FLOPs of the low-rank products."""
        stored = np.zeros(batch.count)
        products = np.zeros(batch.count)
        for factors, chunk in zip(prepared, batch.chunks, strict=True):
            if factors is None:
                continue
            host = jax.tree.map(np.asarray, factors)
            for each in range(batch.count):
                own = jax.tree.map(lambda leaf, each=each: leaf[each], host)
                stored[each] += patch.nbytes(own, chunk.length)
                products[each] += 2.0 * float(own.ranks.sum()) * chunk.length * own.v.shape[-1]
        return Cost(stored_bytes=stored, flops=products)


def rank_budget(rank: int) -> Budget:
    """Patches of ``rank`` components in every layer."""
    return lambda batch, place: patch.truncate(batch.factors(place), rank)


def bytes_budget(share: float) -> Budget:
    """Patches of as many components in every layer as take at most this share of the chunk's KV bytes."""

    def budget(batch: Batch, place: int) -> Factors:
        spec = batch.runner.vlm.spec
        chunk = batch.chunks[place]
        most = int(share * chunk.length * spec.token_bytes)
        return patch.truncate(batch.factors(place), even_rank(spec, chunk.length, most))

    return budget


def formed_budget(share: float) -> Budget:
    """Patches as `kamera_jax.form_patch` makes them of so many bytes, at most this share of the chunk's KV.

    They have the components of most energy, whatever their layer, in int8.
    """

    def budget(batch: Batch, place: int) -> Factors:
        most = int(share * batch.chunks[place].length * batch.runner.vlm.spec.token_bytes)
        chunk = batch.chunks[place]
        return fit_size(batch.conditioned(place), chunk.kv, chunk.length, Size(max_bytes=most))

    return budget


def most_budget(most: int) -> Budget:
    """Patches as `kamera_jax.form_patch` makes them of at most so many bytes each; see `formed_budget`."""

    def budget(batch: Batch, place: int) -> Factors:
        chunk = batch.chunks[place]
        return fit_size(batch.conditioned(place), chunk.kv, chunk.length, Size(max_bytes=most))

    return budget


def even_rank(spec: KVSpec, length: int, most: int) -> int:
    """Components in every layer of a chunk of so many tokens that take at most so many bytes.

    Raises:
        ValueError: not even one component a layer fits.
    """
    features = spec.rot_dim + spec.free_dim
    itemsize = jnp.dtype(spec.dtype).itemsize
    return patch.rank_for_bytes(most, layers=spec.layers, length=length, features=features, itemsize=itemsize)


def energy_budget(share: float) -> Budget:
    """Patches of the fewest components that keep this share of every layer's squared change."""

    def budget(batch: Batch, place: int) -> Factors:
        fitted = _each(batch, place, lambda true, own, length: patch.fit_energy(true, own, length, share).factors)
        widest = max(factors.u.shape[1] for factors in fitted)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(_widened(each, widest) for each in fitted))

    return budget


def _each(batch: Batch, place: int, fit: Callable[[KV, KV, int], Factors]) -> list[Factors]:
    """A patch for each context, from conditioned and canonical KV and the chunk's length."""
    conditioned = batch.conditioned(place)
    chunk = batch.chunks[place]

    def own(kv: KV, each: int) -> KV:
        return jax.tree.map(lambda leaf: leaf[each], kv)

    return [fit(own(conditioned, each), own(chunk.kv, each), chunk.length) for each in range(batch.count)]


def _widened(factors: Factors, rank: int) -> Factors:
    more = ((0, 0), (0, rank - factors.u.shape[1]), (0, 0))
    return Factors(jnp.pad(factors.u, more), jnp.pad(factors.v, more), factors.ranks)


def half_budget(rank: int | None, *, deep: bool) -> Budget:
    """Patches of ``rank`` components, or all, in one half of the layers; a middle layer counts as deep."""

    def budget(batch: Batch, place: int) -> Factors:
        factors = batch.factors(place)
        layers = batch.runner.vlm.spec.layers
        kept = (np.arange(layers) >= layers // 2) == deep
        most: Any = jnp.asarray(np.where(kept, factors.u.shape[2] if rank is None else rank, 0), jnp.int32)
        return jax.vmap(patch.limit, in_axes=(0, None))(factors, most)

    return budget
