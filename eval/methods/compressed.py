"""The conditioned KV itself in few bits: what reuse has to beat at equal bytes."""

from dataclasses import dataclass, replace

from eval.methods.base import Batch, Cost
from kamera_jax.batch.windows import Stack, Windows, through
from kamera_jax.compress.codec import Codec


@dataclass(frozen=True)
class Copied:
    """The KV of full prefill in few bits, stored for this context alone: nothing is shared, and nothing patched.

    Attributes:
        codec: what it is stored in.
    """

    codec: Codec

    def prepare(self, batch: Batch) -> tuple[Stack, ...]:
        """The conditioned KV, as it comes back."""
        heads = batch.runner.vlm.spec.heads
        basis = batch.basis(self.codec)
        return tuple(
            replace(chunk, kv=through(self.codec, conditioned, chunk.length, heads, basis))
            for chunk, conditioned in zip(batch.chunks, batch.full.conditioned, strict=True)
        )

    def apply(self, batch: Batch, windows: Windows | None, prepared: tuple[Stack, ...]) -> Windows:
        """The windows with it written to its slots."""
        return batch.runner.reuse(prepared, [None] * len(prepared))

    def cost(self, batch: Batch, prepared: tuple[Stack, ...]) -> Cost:
        """Its bytes, in place of those of the chunks' KV; nothing is run."""
        return Cost(kept_bytes=batch.kept_bytes(self.codec))
