"""How an answer is generated: what callers ask for, checked, and how tokens are drawn from logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kamera_jax.arguments import check_random_key, check_texts, real_number, short, whole_number
from kamera_jax.errors import ArgumentError
from kamera_jax.types import Stream

BLOCK = 32
"""Tokens that one call of the device runs at most."""

SOONER = 8
"""The same where the host looks at the text: to hand it on, or to see where it ends."""


@flax.struct.dataclass
class Sampling:
    """How tokens are drawn; None in its place is greedy.

    Attributes:
        key: randomness.
        temperature: above 0, f32.
        top_k: how many of the most likely tokens are drawn from, i32; None: of all.
        top_p: the least total probability of the most likely tokens that are drawn from, f32; None: of all.
    """

    key: jax.Array
    temperature: jax.Array | np.float32
    top_k: jax.Array | np.int32 | None = None
    top_p: jax.Array | np.float32 | None = None


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated, checked; the attributes are what `kamera_jax.generate` takes."""

    max_new_tokens: int = 16
    temperature: float = 0.0
    key: jax.Array | None = None
    stop: tuple[str, ...] = ()
    stream: Stream | None = None
    keep: bool = True
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        most = whole_number(self.max_new_tokens, "max_new_tokens", 1)
        temperature = real_number(self.temperature, "temperature", 0.0)
        if self.key is not None:
            check_random_key(self.key)
        if temperature > 0 and self.key is None:
            raise ValueError(
                "sampling needs randomness: pass key=jax.random.key(seed), or temperature=0 for the greedy answer"
            )
        top_k = None if self.top_k is None else whole_number(self.top_k, "top_k", 1)
        top_p = None if self.top_p is None else real_number(self.top_p, "top_p", 0.0)
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p:g}; expected a probability above 0 and up to 1")
        for name, value in (("top_k", top_k), ("top_p", top_p)):
            if value is not None and temperature == 0:
                raise ValueError(
                    f"{name} is {value:g}, and the answer is greedy; give a temperature above 0 and a key too"
                )
        check_texts(self.stop, "stop")
        if self.stream is not None and not callable(self.stream):
            raise ArgumentError(f"stream is {short(self.stream)}; expected a function of each new piece of text")
        checked = {"max_new_tokens": most, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        for name, value in (checked | {"stop": tuple(self.stop)}).items():
            object.__setattr__(self, name, value)

    @property
    def sampling(self) -> Sampling | None:
        """How tokens are drawn; None is greedy."""
        if self.temperature == 0 or self.key is None:
            return None
        top_k = None if self.top_k is None else np.int32(min(self.top_k, np.iinfo(np.int32).max))
        top_p = None if self.top_p is None else np.float32(self.top_p)
        return Sampling(self.key, np.float32(self.temperature), top_k, top_p)

    @property
    def blocks(self) -> Iterator[int]:
        """How many tokens are run at once, block after block."""
        if self.stop or self.stream is not None:
            return chain((1, 2, 4), repeat(SOONER))
        return repeat(BLOCK)


def filtered(logits: Float[Array, " V"], sampling: Sampling) -> Float[Array, " V"]:
    """Logits as tokens are drawn from them, -inf for those that are not.

    In the order and with the ties of HF ``TemperatureLogitsWarper``, ``TopKLogitsWarper`` and ``TopPLogitsWarper``: as
    likely as the k-th stays, and so does the most likely token always.
    """
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None:
        ordered = jnp.sort(logits, descending=True)
        least = jax.lax.dynamic_index_in_dim(ordered, jnp.clip(sampling.top_k, 1, len(logits)) - 1, keepdims=False)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None:
        order = jnp.argsort(logits)
        below = jnp.cumsum(jax.nn.softmax(logits[order]))  # of each token and all less likely ones
        gone = (below <= 1 - sampling.top_p) & (jnp.arange(len(logits), dtype=jnp.int32) < len(logits) - 1)
        logits = logits.at[order].set(jnp.where(gone, -jnp.inf, logits[order]))
    return logits


def drawn(logits: Float[Array, " V"], sampling: Sampling, place: jax.Array) -> Int[Array, ""]:
    """The token that is drawn at a place of the turn, i32: the same wherever blocks begin."""
    key = jax.random.fold_in(sampling.key, place)
    return jax.random.categorical(key, filtered(logits, sampling)).astype(jnp.int32)
