"""Parts that recompute or replace some tokens; they differ in which tokens they choose.

They run after a part that fills the windows, or fill them by blind reuse, and leave the first chunk as it is.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from eval.methods.base import Batch, Cost
from eval.methods.recompute import Selection, most_deviating, recompute
from kamera_jax.batch.windows import Windows


def filled(batch: Batch, windows: Windows | None) -> Windows:
    """The windows before a part; windows filled by blind reuse if the part is the first."""
    return batch.runner.reuse(batch.chunks, [None] * len(batch.chunks)) if windows is None else windows


@runtime_checkable
class Choice(Protocol):
    """A choice of the tokens that are recomputed."""

    def select(self, batch: Batch, windows: Windows) -> Selection:
        """The chosen tokens."""
        ...

    def counts(self, batch: Batch) -> list[float]:
        """How many tokens of each chunk are chosen, averaged over layers."""
        ...

    def extra_flops(self, batch: Batch) -> float:
        """FLOPs that the choice itself takes."""
        ...


@dataclass(frozen=True)
class Recomputed:
    """Recomputes the chosen tokens on the windows as they are."""

    choice: Choice

    def prepare(self, batch: Batch) -> None:
        """Nothing is prepared."""

    def apply(self, batch: Batch, windows: Windows | None, prepared: None) -> Windows:
        """The windows with the chosen tokens recomputed."""
        windows = filled(batch, windows)
        return recompute(batch, windows, self.choice.select(batch, windows))

    def cost(self, batch: Batch, prepared: None) -> Cost:
        """The FLOPs of the chosen tokens, and of the choice."""
        counts = self.choice.counts(batch)
        return Cost(computed_tokens=sum(counts), flops=batch.tokens_flops(counts) + self.choice.extra_flops(batch))


@dataclass(frozen=True)
class Leading:
    """The first tokens of each chunk: EPIC's LegoLink (arXiv 2410.15332).

    In a chunk that is encoded without a preamble they take the attention-sink role; here the preamble takes it.

    Attributes:
        tokens: how many tokens of each chunk.
        text_whole: run all of a text passage, as MPIC-k (arXiv 2502.01960) does, which reuses images alone.
    """

    tokens: int
    text_whole: bool = False

    def select(self, batch: Batch, windows: Windows) -> Selection:
        """The same slots in every context."""
        slots = np.concatenate([batch.slots(place, self._count(batch, place)) for place in batch.reused])
        return Selection(jnp.broadcast_to(jnp.asarray(slots, jnp.int32), (batch.count, len(slots))))

    def counts(self, batch: Batch) -> list[float]:
        """The same count for every chunk, if it has so many tokens."""
        return [0.0, *(float(self._count(batch, place)) for place in batch.reused)]

    def extra_flops(self, batch: Batch) -> float:
        """None: the choice does not depend on the context."""
        return 0.0

    def _count(self, batch: Batch, place: int) -> int:
        length = batch.chunks[place].length
        return length if self.text_whole and not batch.is_media[place] else min(self.tokens, length)


@dataclass(frozen=True)
class LargestDeviation:
    """The tokens whose KV deviates most: CacheBlend (Yao et al., arXiv 2405.16444).

    All tokens go through the first two layers, the second of which is the first whose KV depends on the context; those
    with the largest squared deviation there are chosen, over the whole window. As in the authors' code one choice
    serves all deeper layers; the paper also describes taking a few more in the first of them. FLOPs are counted layer
    by layer, as a fused implementation takes them; what runs here does the first two layers of the chosen tokens twice.

    Attributes:
        share: of the tokens behind the first chunk.
    """

    share: float
    layers = 2

    def select(self, batch: Batch, windows: Windows) -> Selection:
        """The tokens that a prefill of the first two layers finds to deviate most."""
        if not (count := self._count(batch)):
            return Selection(jnp.zeros((batch.count, 0), jnp.int32))
        fresh = batch.shallow.prefill(batch.chunks).state
        slots = jnp.asarray(batch.reused_slots, jnp.int32)
        last = (self.layers - 1, self.layers)
        return Selection(most_deviating(windows.state, fresh, slots, layers=last, count=count))

    def counts(self, batch: Batch) -> list[float]:
        """The number of tokens, spread evenly over the chunks, as the choice is not known beforehand."""
        return [0.0, *(batch.chunks[place].length * self._count(batch) / batch.reused_tokens for place in batch.reused)]

    def extra_flops(self, batch: Batch) -> float:
        """The first two layers of all the tokens that are not chosen."""
        if not self._count(batch):
            return 0.0
        rest = [0.0, *(batch.chunks[place].length for place in batch.reused)]
        rest = [each - chosen for each, chosen in zip(rest, self.counts(batch), strict=True)]
        return batch.tokens_flops(rest) * self.layers / batch.runner.vlm.spec.layers

    def _count(self, batch: Batch) -> int:
        return round(self.share * batch.reused_tokens)


@dataclass(frozen=True)
class LayerBudgets:
    """The first tokens of each chunk, more of them in the earlier layers: VLCache (arXiv 2512.12977).

    Errors accumulate from a chunk's first tokens to its last and from layer to layer, so the first tokens are run
    again, and what is run in one layer must have been run in those before. The paper profiles every model's layers for
    their budgets; here they fall linearly with depth, their mean over layers being ``share``. Within a chunk no token
    that is kept sees one that has dropped out; those of later chunks do, a little in its favour.

    Attributes:
        share: of each chunk's tokens, averaged over layers.
    """

    share: float

    def shares(self, layers: int) -> np.ndarray:
        """The share of every layer, at most all tokens."""
        falling = np.arange(layers, 0, -1, dtype=np.float64)
        low = 0.0
        high = float(layers)
        for _ in range(60):
            middle = (low + high) / 2
            short = np.minimum(1.0, middle * falling).mean() < self.share
            low, high = (middle, high) if short else (low, middle)
        return np.minimum(1.0, high * falling)

    def select(self, batch: Batch, windows: Windows) -> Selection:
        """The same slots in every context, with the layers that keep the fresh KV."""
        slots = []
        kept = []
        for place in batch.reused:
            budgets = self._budgets(batch, place)
            slots.append(batch.slots(place, int(budgets.max())))
            kept.append(np.arange(budgets.max())[None, :] < budgets[:, None])
        chosen = jnp.asarray(np.concatenate(slots), jnp.int32)
        return Selection(jnp.broadcast_to(chosen, (batch.count, chosen.shape[0])), layers=np.concatenate(kept, axis=1))

    def counts(self, batch: Batch) -> list[float]:
        """The numbers of tokens by chunk, averaged over layers."""
        return [0.0, *(float(self._budgets(batch, place).mean()) for place in batch.reused)]

    def extra_flops(self, batch: Batch) -> float:
        """None: the choice does not depend on the context."""
        return 0.0

    def _budgets(self, batch: Batch, place: int) -> np.ndarray:
        shares = self.shares(batch.runner.vlm.spec.layers)
        return np.rint(shares * batch.chunks[place].length).astype(int)


@dataclass(frozen=True)
class OracleTokens:
    """Copies the KV of full prefill for the tokens that change most: an upper bound for methods that choose tokens.

    The choice is the best by squared change over all layers, and the copied KV has no error.

    Attributes:
        share: of the tokens behind the first chunk.
    """

    share: float

    def prepare(self, batch: Batch) -> jax.Array:
        """The chosen slots."""
        slots = jnp.asarray(batch.reused_slots, jnp.int32)
        count = round(self.share * batch.reused_tokens)
        layers = (0, batch.runner.vlm.spec.layers)
        return most_deviating(batch.full.state, batch.blind.state, slots, layers=layers, count=count)

    def apply(self, batch: Batch, windows: Windows | None, prepared: jax.Array) -> Windows:
        """The windows with the KV of full prefill at the chosen slots."""
        windows = filled(batch, windows)
        slots = np.arange(batch.full.state.valid.shape[1])
        chosen = (prepared[:, :, None] == jnp.asarray(slots)[None, None, :]).any(1)[:, None, :, None]

        def copied(ours: jax.Array, true: jax.Array) -> Any:
            return jnp.where(chosen, true, ours)

        state = windows.state
        true = batch.full.state
        return replace(
            windows, state=replace(state, rot=copied(state.rot, true.rot), free=copied(state.free, true.free))
        )

    def cost(self, batch: Batch, prepared: jax.Array) -> Cost:
        """The bytes of the copied KV."""
        return Cost(stored_bytes=float(prepared.shape[1] * batch.runner.vlm.spec.token_bytes))
