"""Parts that wait for the question: what it reads decides which rows it is asked of, or which tokens are run again.

They are bounds and rivals: nothing is chosen before a question is known, as a library has to. Each question is asked of
a window of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eval.methods.base import Batch, Cost
from eval.methods.recompute import Selection, recompute
from eval.methods.tokens import filled
from kamera_jax.backbone import Output, with_defaults
from kamera_jax.batch.windows import AT_ONCE, BatchRunner, Windows
from kamera_jax.kv import Segment, WindowState
from kamera_jax.types import Params


@dataclass(frozen=True)
class AskedWindows(Windows):
    """Windows that become others for every question.

    Attributes:
        asked: gives the windows that one question of every context, tails [E, 1, ·] at local positions, is asked of.
    """

    asked: Callable[[Segment], Windows] | None = None


def ask(runner: BatchRunner, windows: Windows, tails: Segment, at: np.ndarray | None = None) -> jax.Array:
    """`BatchRunner.ask`, of windows that may be others for every question."""
    if not isinstance(windows, AskedWindows) or windows.asked is None:
        return runner.ask(windows, tails, at)
    logits = []
    for place in range(tails.positions.shape[1]):
        one = jax.tree.map(lambda leaf, place=place: leaf[:, place : place + 1], tails)
        own = windows.asked(one)
        logits.append(runner.ask(own, one, None if at is None else at[:, place : place + 1]))
    return jnp.concatenate(logits, axis=1)


@dataclass(frozen=True)
class ByQuestion:
    """Keeps, or runs again, the share of tokens that a question reads most.

    Of the chunks behind the first a question's attention, in the mean over layers, heads and its tokens, is collected
    in one forward of the question on all rows. ``"select"`` asks it again of the rows that it read most alone: what a
    selection that knows the question can do (SnapKV's evidence, arXiv 2404.14469), over whole windows. ``"prophet"``
    multiplies attention by the norm of a row's values in each layer, and runs the tokens again on the window as it
    stands (ProphetKV). FLOPs are those of the tokens run again; the question's own forwards are not counted.

    Attributes:
        share: of the tokens behind the first chunk.
        again: whether the tokens are run again, or the others hidden.
    """

    share: float
    again: bool

    def prepare(self, batch: Batch) -> None:
        """Nothing is prepared."""

    def apply(self, batch: Batch, windows: Windows | None, prepared: None) -> AskedWindows:
        """The windows as they were filled, which become others when they are asked."""
        windows = filled(batch, windows)
        if "attention_mass" not in with_defaults(batch.runner.vlm).collects:
            raise ValueError(f"{type(batch.runner.vlm).__name__} does not collect attention_mass, which this takes")
        own = {name: getattr(windows, name) for name in ("state", "conditioned", "slots", "position")}
        return AskedWindows(**own, asked=partial(self._asked, batch, windows))

    def cost(self, batch: Batch, prepared: None) -> Cost:
        """The tokens that are run again for each question."""
        if not self.again:
            return Cost()
        shares = [0.0, *(batch.chunks[place].length * self.share for place in batch.reused)]
        return Cost(computed_tokens=float(self._count(batch)), flops=batch.tokens_flops(shares))

    def _count(self, batch: Batch) -> int:
        return round(self.share * batch.reused_tokens)

    def _asked(self, batch: Batch, windows: Windows, tails: Segment) -> Windows:
        slots = jnp.asarray(batch.reused_slots, jnp.int32)
        given = (batch.runner.params, tails.at(windows.position), windows.state)
        read = _read(*given, forward=batch.runner.vlm.forward, by_values=self.again)
        _, most = jax.lax.top_k(read[:, slots], self._count(batch))
        chosen = jnp.sort(slots[most], axis=-1)
        if self.again:
            return recompute(batch, windows, Selection(chosen))
        every = jnp.arange(windows.state.valid.shape[1], dtype=jnp.int32)
        reused = (every[:, None] == slots[None, :]).any(1)
        kept = (every[None, :, None] == chosen[:, None, :]).any(-1)
        valid = windows.state.valid & (kept | ~reused[None, :])
        return replace(windows, state=replace(windows.state, valid=valid))


@partial(jax.jit, static_argnames=("forward", "by_values"))
def _read(
    params: Params, tails: Segment, state: WindowState, *, forward: Callable[..., Output], by_values: bool
) -> Float[Array, "E S"]:
    """What the one question of every context reads of each slot, in the mean over layers."""

    def one(each: tuple[Segment, WindowState]) -> jax.Array:
        tail, state = each
        tail = jax.tree.map(lambda leaf: leaf[0], tail)
        mass = forward(params, tail, state, collect=("attention_mass",)).aux["attention_mass"]
        mass = mass[:, : state.valid.shape[0]]
        if by_values:
            mass = mass * jnp.linalg.norm(state.free.astype(jnp.float32), axis=-1)
        return mass.mean(0)

    return jax.lax.map(one, (tails, state), batch_size=AT_ONCE)
