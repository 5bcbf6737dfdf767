"""Methods: one or more parts, the first of which fills windows, and each further one changes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from eval.methods.kept import rows_of, selected, taken
from kamera_jax.backbone import forward_flops
from kamera_jax.batch.windows import BatchRunner, Stack, Windows, fit, through
from kamera_jax.chunk import Chunk
from kamera_jax.compress.basis import arrays_of, for_codec
from kamera_jax.compress.codec import Codec, Shape
from kamera_jax.compress.compressed import ROW_BYTES
from kamera_jax.compress.stage import Basis, RowStage
from kamera_jax.inference.orders import mean_of, orders_of
from kamera_jax.kv import KV, Factors
from kamera_jax.window.window import aligned


@dataclass(frozen=True)
class Batch:
    """E contexts of one layout, with the windows of the reference and of the baseline.

    The first chunk stands where it was encoded, right behind the preamble, so it is exact: every method but full
    prefill keeps it. Costs and errors are measured over the chunks behind it.

    Attributes:
        runner: builds and asks windows of the model.
        shallow: the same for the model's first two layers.
        chunks: canonical, in window order.
        full: the reference, by full prefill.
        blind: the baseline: chunks as encoded alone, relocated.
        antecedents: by place, the chunks that a chunk's patch is formed behind where these are not those before it in
            the window.
        any_order: whether patches are formed behind these in several orders; see `kamera_jax.form_patch`.
        kept: where the chunks keep a share of their rows, by place each context's, which says which; else empty.
    """

    runner: BatchRunner
    shallow: BatchRunner
    chunks: tuple[Stack, ...]
    full: Windows
    blind: Windows
    antecedents: Mapping[int, Sequence[Stack]] = field(default_factory=dict)
    any_order: bool = False
    kept: tuple[tuple[Chunk, ...], ...] = ()

    @staticmethod
    def of(
        runner: BatchRunner,
        shallow: BatchRunner,
        chunks: Sequence[Stack],
        antecedents: Mapping[int, Sequence[Stack]] | None = None,
        any_order: bool = False,
    ) -> "Batch":
        """A batch of these chunks, with the windows of the reference and of the baseline filled."""
        full = runner.prefill(chunks)
        blind = runner.reuse(chunks, [None] * len(chunks))
        return Batch(runner, shallow, tuple(chunks), full, blind, antecedents or {}, any_order)

    @property
    def count(self) -> int:
        """How many contexts there are: E."""
        return self.full.state.valid.shape[0]

    @property
    def reused(self) -> range:
        """The places of the chunks behind the first."""
        return range(1, len(self.chunks))

    @property
    def patched(self) -> tuple[int, ...]:
        """The places of the chunks that get a patch: formed behind at least one other chunk."""
        behind = self.antecedents
        return tuple(i for i in range(len(self.chunks)) if (len(behind[i]) if i in behind else i))

    @property
    def reused_tokens(self) -> int:
        """How many tokens one context's chunks behind the first have."""
        return sum(self.chunks[place].length for place in self.reused)

    @property
    def is_media(self) -> tuple[bool, ...]:
        """For each chunk, whether it is an image and not text."""
        return tuple("media" in chunk.segment.inputs for chunk in self.chunks)

    def slots(self, place: int, count: int | None = None) -> np.ndarray:
        """The slots of a chunk's first ``count`` tokens; of all its tokens by default."""
        start = self.starts[place]
        length = self.chunks[place].length
        return np.arange(start, start + (length if count is None else min(count, length)))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first slot of each chunk; chunks that keep fewer rows lie closer."""
        sizes = [aligned(chunk.length) for chunk in self.chunks[:-1]]
        return tuple(np.cumsum([aligned(self.runner.preamble_length), *sizes]).tolist())

    @cached_property
    def true_slots(self) -> np.ndarray:
        """By context, where full prefill has the tokens whose rows lie at `reused_slots`: i32[E, n]."""
        if not self.kept:
            return np.broadcast_to(self.reused_slots, (self.count, len(self.reused_slots)))
        there = [self.full.slots[place] + rows_of(self.kept[place]) for place in self.reused]
        return np.concatenate([np.zeros((self.count, 0), int), *there], axis=1)

    @cached_property
    def reused_slots(self) -> np.ndarray:
        """The slots of all tokens behind the first chunk."""
        return np.concatenate([np.zeros(0, int), *(self.slots(place) for place in self.reused)])

    def factors(self, place: int) -> Factors:
        """The full-rank patch of a chunk, formed behind the chunks before it."""
        if place not in self._factors:
            conditioned = self.conditioned(place)
            chunk = self.chunks[place]
            rank = min(conditioned.rot.shape[2], conditioned.features.shape[-1])
            self._factors[place] = fit(conditioned, chunk.kv, chunk.length, rank=rank)
        return self._factors[place]

    def conditioned(self, place: int) -> KV:
        """The KV of a chunk, run behind the chunks that its patch is formed behind."""
        if place not in self.antecedents and not self.kept:
            return self.full.conditioned[place]
        if place not in self._conditioned:
            if place in self.antecedents:
                behind = self.antecedents[place]
                orders = orders_of(behind) if self.any_order else [behind]
                formed = [self.runner.prefill([*order, self.chunks[place]]).conditioned[-1] for order in orders]
                conditioned = mean_of(formed)
            else:
                conditioned = self.full.conditioned[place]
            self._conditioned[place] = taken(self.kept[place], conditioned) if self.kept else conditioned
        return self._conditioned[place]

    def served(self, codec: Codec | None) -> "Batch":
        """The same contexts with chunks as a codec gives them back, and patches fitted to these; None is exactly."""
        if codec is None:
            return self
        if codec not in self._served:
            own = self._keeping(codec.rows) if codec.rows else self
            heads = self.runner.vlm.spec.heads
            basis = self.basis(codec)
            chunks = [replace(chunk, kv=through(codec, chunk.kv, chunk.length, heads, basis)) for chunk in own.chunks]
            self._served[codec] = replace(own, chunks=tuple(chunks))
        return self._served[codec]

    def basis(self, codec: Codec) -> Basis:
        """What the model was measured for a codec with; nothing where that takes nothing."""
        spec = self.runner.vlm.spec
        layouts = Shape(spec.rot_dim, spec.free_dim, spec.heads).layouts(1, spec.layers)
        return arrays_of(for_codec(codec, spec, self.runner.vlm.fingerprint), layouts)

    def model_bytes(self, codec: Codec) -> float:
        """Bytes of that, which all chunks of the model share."""
        spec = self.runner.vlm.spec
        shape = Shape(spec.rot_dim, spec.free_dim, spec.heads)
        return float(codec.model_bytes(spec.layers, shape, self.basis(codec)))

    def kept_bytes(self, codec: Codec) -> float:
        """Bytes of one context's chunks, as they are served here, as a codec stores them."""
        spec = self.runner.vlm.spec
        shape = Shape(spec.rot_dim, spec.free_dim, spec.heads)
        rows = ROW_BYTES * sum(chunk.length for chunk in self.chunks) if codec.rows else 0
        return float(sum(codec.nbytes(chunk.length, spec.layers, shape, spec.dtype) for chunk in self.chunks) + rows)

    def _keeping(self, rows: tuple[RowStage, ...]) -> "Batch":
        """The same contexts with chunks that keep a share of their rows; chosen once for all that packs them."""
        if rows not in self._kept:
            kept = tuple(selected(self.runner, chunk, rows) for chunk in self.chunks)
            self._kept[rows] = replace(self, chunks=tuple(Stack.of(own) for own in kept), kept=kept)
        return self._kept[rows]

    @cached_property
    def _kept(self) -> "dict[tuple[RowStage, ...], Batch]":
        return {}

    @cached_property
    def _served(self) -> "dict[Codec, Batch]":
        return {}

    @cached_property
    def _conditioned(self) -> dict[int, KV]:
        return {}

    @cached_property
    def _factors(self) -> dict[int, Factors]:
        return {}

    @cached_property
    def inputs(self) -> dict[str, jax.Array]:
        """The model's inputs at every slot [E, S, ...]; zero at free slots."""
        laid: dict[str, jax.Array] = {}
        shape = (self.count, self.full.state.valid.shape[1])
        for place, chunk in enumerate(self.chunks):
            slots = self.slots(place)
            for name, rows in chunk.segment.inputs.items():
                here = laid.get(name)
                here = jnp.zeros((*shape, *rows.shape[2:]), rows.dtype) if here is None else here
                laid[name] = here.at[:, slots].set(rows[:, : len(slots)])
        return laid

    def tokens_flops(self, counts: Sequence[float | int]) -> float:
        """FLOPs of running so many of each chunk's tokens, which attend to everything up to that chunk's end."""
        total = 0.0
        before = self.runner.preamble_length
        for chunk, count in zip(self.chunks, counts, strict=True):
            before += chunk.length
            total += count * forward_flops(self.runner.vlm, 1, before - 1)
        return total


@dataclass(frozen=True)
class Cost:
    """The cost of a method, for each of E contexts, or one number for all of them.

    Attributes:
        stored_bytes: bytes that are stored beside the chunks' KV.
        computed_tokens: context tokens that are run when the window is filled.
        flops: FLOPs of filling the window.
        kept_bytes: bytes of the chunks' KV as it is stored; None where it is stored exactly.
        model_bytes: bytes that are stored once for the model, whatever its chunks are; in no other figure.
    """

    stored_bytes: np.ndarray | float = 0.0
    computed_tokens: float = 0.0
    flops: np.ndarray | float = 0.0
    kept_bytes: float | None = None
    model_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.stored_bytes + other.stored_bytes,
            self.computed_tokens + other.computed_tokens,
            self.flops + other.flops,
            self.kept_bytes if other.kept_bytes is None else other.kept_bytes,
            max(self.model_bytes, other.model_bytes),
        )


@runtime_checkable
class Part(Protocol):
    """One step of a method."""

    def prepare(self, batch: Batch) -> Any:
        """What this step makes once, beforehand, and stores; None if nothing."""
        ...

    def apply(self, batch: Batch, windows: Windows | None, prepared: Any) -> Windows:
        """The windows after this step.

        Args:
            batch: the contexts.
            windows: the windows before this step; None if it is the first.
            prepared: what `prepare` returned.
        """
        ...

    def cost(self, batch: Batch, prepared: Any) -> Cost:
        """The cost of this step."""
        ...


@dataclass(frozen=True)
class Method:
    """A named sequence of parts.

    Attributes:
        name: the name as the command line has it.
        parts: the steps in order.
        codec: what the chunks are stored in; None for exactly.
    """

    name: str
    parts: tuple[Part, ...]
    codec: Codec | None = None

    def prepare(self, batch: Batch) -> tuple[Any, ...]:
        """What each part makes once, beforehand, and stores, such as patches."""
        batch = batch.served(self.codec)
        return tuple(part.prepare(batch) for part in self.parts)

    def fill(self, batch: Batch, prepared: Sequence[Any]) -> Windows:
        """The filled windows. This is everything that happens when a context is asked for."""
        batch = batch.served(self.codec)
        windows = None
        for part, own in zip(self.parts, prepared, strict=True):
            windows = part.apply(batch, windows, own)
        assert windows is not None
        return windows

    def cost(self, batch: Batch, prepared: Sequence[Any]) -> Cost:
        """The cost of all parts together."""
        own = batch.served(self.codec)
        stored = Cost()
        if self.codec is not None:
            stored = Cost(kept_bytes=own.kept_bytes(self.codec), model_bytes=own.model_bytes(self.codec))
        return sum((part.cost(own, each) for part, each in zip(self.parts, prepared, strict=True)), stored)
