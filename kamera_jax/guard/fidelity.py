"""Does a window answer as full prefill would? Measured with probes, against the present or the history reference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax import patch as patches
from kamera_jax.arguments import check_list, real_number
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Entry
from kamera_jax.errors import MissingKeyError
from kamera_jax.inference.encode import prefill
from kamera_jax.inference.generate import query
from kamera_jax.kv import KV
from kamera_jax.window.checks import check_model
from kamera_jax.window.window import Window

Reference = Literal["present", "history"]
"""Full prefill of what is in the window, or of all chunks ever seen with the evicted ones hidden from the tail only."""

MAX_KL = 0.05
"""Nats of next-token KL, averaged over probes, that a window may cost by default."""


@dataclass(frozen=True)
class Fidelity:
    """How a window compares with a reference.

    Attributes:
        kl: mean KL(reference ‖ window) over the probes, in nats: next token, whole vocabulary, f32.
        probe_kl: of each probe, f32[n].
        flips: probes whose most probable next token differs.
        kv_error: Frobenius error of the chunks' un-rotated KV relative to the reference's, f32[L].
        max_kl: the budget that ``kl`` was compared with.
        reference: which reference.
    """

    kl: float
    probe_kl: np.ndarray
    flips: int
    kv_error: np.ndarray
    max_kl: float
    reference: Reference

    def __repr__(self) -> str:
        return f"<Fidelity ok={self.ok}: {self.reason}>"

    @property
    def ok(self) -> bool:
        """Whether the mean KL is within ``max_kl``."""
        return self.kl <= self.max_kl

    @property
    def reason(self) -> str:
        """The figures in words."""
        bound = "within" if self.ok else "above"
        return (
            f"mean KL {self.kl:.3g} nats over {len(self.probe_kl)} probes is {bound} {self.max_kl:g}; "
            f"{self.flips} answers flip; the KV differs by {self.kv_error.max():.2%} in its worst layer "
            f"({self.reference} reference)"
        )


def verify(
    vlm: Backbone,
    window: Window,
    probes: Sequence[str],
    *,
    reference: Reference = "present",
    history: Sequence[Chunk] | None = None,
    max_kl: float = MAX_KL,
) -> Fidelity:
    """Ask a window and a full prefill the same questions. Costs that prefill.

    What patches restore are answers that lead through several chunks; a question that one chunk answers alone is blind
    to their loss. So probe with multi-hop questions about the chunks that were patched.

    Args:
        vlm: the model.
        window: what to verify; its chunks still have their sources.
        probes: questions.
        reference: ``"present"`` prefills the window's chunks; ``"history"`` prefills ``history`` and hides from the
            probes what the window no longer holds.
        history: all chunks ever seen, in order, the window's own among them, in the order they stand in.
        max_kl: nats that the mean KL may reach.

    Raises:
        ValueError: no probes, an empty question, an empty window, an unknown reference, or a history that is missing,
            not asked for, or does not hold the window's chunks in order.
        ModelMismatchError: the window belongs to another model.
        MissingInputsError: a chunk lost its source.
    """
    check_model(vlm, window)
    check_list(probes, str, "probes", "questions; for one question [question]")
    max_kl = real_number(max_kl, "max_kl", 0.0)
    if history is not None:
        check_list(history, Chunk, "history", "all chunks ever seen, in order")
    if not probes:
        raise ValueError("give at least one probe: a question, best one whose answer leads through several chunks")
    if not window.entries:
        raise ValueError("the window holds no chunk, so there is nothing to verify; append one first")
    if reference not in get_args(Reference):
        raise ValueError(f"reference must be one of {get_args(Reference)}; got {reference!r}")
    if (history is None) != (reference == "present"):
        raise ValueError('history= goes with reference="history": all chunks ever seen, in order')
    chunks = [entry.chunk for entry in window.entries] if history is None else list(history)
    places = _places(window, chunks)
    full = prefill(vlm, chunks)
    probed = _seen(full, places)
    logits = [(query(vlm, probed, probe), query(vlm, window, probe)) for probe in probes]
    kls = np.array([float(kl(ours, theirs)) for ours, theirs in logits], np.float32)
    return Fidelity(
        kl=float(kls.mean()),
        probe_kl=kls,
        flips=sum(int(ours.argmax()) != int(theirs.argmax()) for ours, theirs in logits),
        kv_error=_kv_error([full.entries[place] for place in places], window.entries),
        max_kl=max_kl,
        reference=reference,
    )


def _places(window: Window, chunks: Sequence[Chunk]) -> list[int]:
    """Where in ``chunks`` each of the window's stands: the latest places, since what was evicted came earlier."""
    if not all(window.keys) or not all(chunk.key for chunk in chunks):
        raise MissingKeyError(
            "a chunk of the window or the history has no key, so it is not known which of them is which; use the "
            "chunks that went into the JAX transformation"
        )
    places: list[int] = []
    after = len(chunks)
    for entry in reversed(window.entries):
        key = entry.chunk.key
        after = next((i for i in range(after - 1, -1, -1) if chunks[i].key == key), -1)
        if after < 0:
            raise ValueError(
                f"history does not hold the window's chunk {key[:12]} where the window's order has it; give all chunks "
                "ever seen, in order, as the window has them"
            )
        places.append(after)
    return places[::-1]


def _seen(full: Window, places: Sequence[int]) -> Window:
    """The window with the entries at other places hidden from what is asked next."""
    hidden = np.zeros(full.state.valid.shape, bool)
    for place, entry in enumerate(full.entries):
        if place not in places:
            hidden[entry.slot : entry.slot + entry.chunk.length] = True
    return replace(full, state=replace(full.state, valid=full.state.valid & ~jnp.asarray(hidden)))


@jax.jit
def kl(reference: jax.Array, method: jax.Array) -> jax.Array:
    """KL(reference ‖ method) in nats between next-token distributions given as logits [..., V], f32."""
    log_p = jax.nn.log_softmax(reference)
    log_q = jax.nn.log_softmax(method)
    # Never negative, which the rounding of its sum can be.
    return jnp.maximum(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), 0.0)


def _kv_error(reference: Sequence[Entry], entries: Sequence[Entry]) -> np.ndarray:
    sums: Any = sum(
        np.stack(_squares(here.chunk.taken(there.chunk.kv), _patched(here), here.chunk.length))
        for there, here in zip(reference, entries, strict=True)
    )
    return np.sqrt(sums[0] / sums[1])


def _patched(entry: Entry) -> KV:
    return entry.chunk.kv if entry.patch is None else _apply(entry.chunk.kv, entry.patch.factors)


_apply = jax.jit(patches.apply)


@jax.jit
def _squares(reference: KV, ours: KV, length: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Squared difference, and squared reference, of every layer f32[L], over valid tokens."""
    valid = (jnp.arange(reference.rot.shape[1], dtype=jnp.int32) < length)[None, :, None]
    wide = [jnp.where(valid, kv.features.astype(jnp.float32), 0.0) for kv in (reference, ours)]
    return jnp.square(wide[0] - wide[1]).sum((1, 2)), jnp.square(wide[0]).sum((1, 2))
