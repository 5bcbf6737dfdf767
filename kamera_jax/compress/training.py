"""What the codec ``capsule`` takes of a model, measured and trained on KV of chunks."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kamera_jax.compress import capsule
from kamera_jax.compress.capsule import Capsule, CapsuleBasis
from kamera_jax.compress.stage import Layout
from kamera_jax.errors import BasisError
from kamera_jax.kv import KV

SHARES = (0.25, 0.4, 0.6)
"""Of which capsules the rows come that the network is trained on; each chunk is packed in one of them."""

LONGEST = 1024
"""Tokens of chunks whose own components along the sequence are measured, at most."""

STEPS = 1500
BATCH = 512
"""Rows of each layer that a step looks at."""

RATE = 2e-3
"""Of learning, at first."""

MOST = 2**30
"""Bytes of the rows that the network is trained on, at most."""


def hidden_width(rot: int) -> int:
    """Units between the network's layers, for Fr features of keys."""
    return max(32, rot // 2)


def trained(model: str, kvs: Sequence[tuple[KV, int]], *, steps: int = STEPS) -> CapsuleBasis:
    """What ``capsule`` takes of a model, of KV [L, T, ·] with so many valid rows each; the same KV give the same.

    Channels' means and deviations, components of the values of the length that most chunks have, and of single rows'
    values, in float64. The network is then trained to give back, of capsules of several shares, the keys that are not
    stored: by AdamW, the error squared in the units of the keys, from nothing, so that at first a key lies between its
    neighbours.

    Raises:
        BasisError: there are no rows that a key could lie between.
    """
    if sum(length > 2 for _, length in kvs) < 1:
        raise BasisError("capsule is trained on chunks of at least three tokens; got none")
    arrays = _measured(kvs)
    network = _fitted(*_examples(kvs, arrays), arrays["rot_scale"], steps)
    return CapsuleBasis(model, **{**arrays, **network})


def _measured(kvs: Sequence[tuple[KV, int]]) -> dict[str, np.ndarray]:
    """All but the network, which is there with zeros: a key then lies between its neighbours."""
    arrays: dict[str, np.ndarray] = {}
    rows: dict[str, list[np.ndarray]] = {}
    for part in ("rot", "free"):
        own = [np.asarray(getattr(kv, part)[:, :length], np.float64) for kv, length in kvs]
        every = np.concatenate(own, axis=1)
        deviation = every.std(1)
        # A channel that hardly varies is not blown up, for its deviation divides what a quantiser is given.
        least = 1e-2 * np.sqrt((deviation**2).mean(1, keepdims=True)) + 1e-6
        mean = arrays[f"{part}_mean"] = every.mean(1)
        scale = arrays[f"{part}_scale"] = np.maximum(deviation, least)
        rows[part] = [(x - mean[:, None]) / scale[:, None] for x in own]
    values = rows["free"]
    layers, _, free = values[0].shape
    squares = sum(np.einsum("ltf,ltg->lfg", x, x) for x in values)
    arrays["read"] = np.linalg.eigh(squares)[1][:, :, ::-1][:, :, : capsule.READ]
    arrays["sequence"] = _along_sequence(values)
    rot = arrays["rot_mean"].shape[1]
    hidden = hidden_width(rot)
    shapes = capsule.network_shapes(layers, rot, free, arrays["sequence"].shape[1], hidden)
    arrays |= {name: np.zeros(shapes[name]) for name in capsule.NETWORK}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _along_sequence(values: Sequence[np.ndarray]) -> np.ndarray:
    """Components of the values of the length that most chunks have, as columns [L, T, T]; of T 0 where none will do."""
    layers, _, width = values[0].shape
    lengths = Counter(x.shape[1] for x in values)
    tokens, number = max(lengths.items(), key=lambda item: (item[1], item[0]))
    if tokens > LONGEST or number * width < 2 * tokens or number < 2:
        return np.zeros((layers, 0, 0))
    squares = sum(np.einsum("ltf,lsf->lts", x, x) for x in values if x.shape[1] == tokens)
    return np.linalg.eigh(squares)[1][:, :, ::-1]


@partial(jax.jit, static_argnames="share")
def _rows(kv: KV, length: jax.Array, basis: dict[str, Any], share: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a capsule of this share: what the network is told of each row, what it is to add, and which rows need it."""
    stage = Capsule(share)
    layers, rows, width = kv.rot.shape
    given = {
        "rot": Layout(rows, width, 1, keys=True, latent=False, layers=layers),
        "free": Layout(rows, kv.free.shape[2], 1, keys=False, latent=False, layers=layers),
    }
    left, leaves = stage.encode({"rot": kv.rot, "free": kv.free}, length, given, basis)
    told = stage.told(left, leaves, length, given, basis)
    there = ~told.chosen & (jnp.arange(rows, dtype=jnp.int32)[None] < length)
    return told.inputs, capsule.normalised("rot", kv.rot, length, basis) - told.between, there


def _examples(kvs: Sequence[tuple[KV, int]], arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the network is told [L, N, I] and is to add [L, N, Fr]: of each layer as many rows, drawn at random."""
    layers, inputs, _ = arrays["first"].shape
    outputs = arrays["second"].shape[2]
    told = [[np.zeros((0, inputs), np.float32)] for _ in range(layers)]
    wanted = [[np.zeros((0, outputs), np.float32)] for _ in range(layers)]
    for number, (kv, length) in enumerate(kvs):
        share = SHARES[number % len(SHARES)]
        rows, add, there = map(np.asarray, _rows(kv, jnp.asarray(length, jnp.int32), arrays, share))
        for layer in range(layers):
            told[layer].append(rows[layer][there[layer]])
            wanted[layer].append(add[layer][there[layer]])
    there = [sum(map(len, own)) for own in told]
    number = max(1, min(max(there), MOST // (4 * layers * (inputs + outputs))))
    rng = np.random.default_rng(0)
    # A layer with fewer rows has some of them several times; one without any has nothing to learn.
    drawn = [np.resize(rng.permutation(count), number) if count else None for count in there]

    def of(every: list[list[np.ndarray]], width: int) -> np.ndarray:
        none = np.zeros((number, width), np.float32)
        return np.stack(
            [none if rows is None else np.concatenate(own)[rows] for own, rows in zip(every, drawn, strict=True)]
        )

    return of(told, inputs), of(wanted, outputs)


def _fitted(told: np.ndarray, wanted: np.ndarray, scale: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """The network, of all layers at once: each has a loss, of its own keys' deviations."""
    layers, _, inputs = told.shape
    outputs = wanted.shape[2]
    hidden = hidden_width(outputs)
    weight = jnp.asarray(scale / np.sqrt((scale**2).mean(1, keepdims=True)))[:, None, :]
    size = jnp.maximum(jnp.square(wanted * weight).mean((1, 2)), 1e-12)
    start = {
        "first": jax.random.normal(jax.random.key(0), (layers, inputs, hidden)) / np.float32(np.sqrt(inputs)),
        "first_bias": jnp.zeros((layers, hidden)),
        "second": jnp.zeros((layers, hidden, outputs)),
        "second_bias": jnp.zeros((layers, outputs)),
    }
    keys = jax.random.split(jax.random.key(1), steps)
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in whole numbers
        fitted = _run(start, jnp.asarray(told), jnp.asarray(wanted), weight, size, keys)
    return {name: np.asarray(array) for name, array in fitted.items()}


@jax.jit
def _run(
    network: dict[str, jax.Array],
    told: jax.Array,
    wanted: jax.Array,
    weight: jax.Array,
    size: jax.Array,
    keys: jax.Array,
) -> dict[str, jax.Array]:
    """The network after a step for each key, of an error that is weighed by channel, over what it is of nothing."""
    optimiser = optax.adamw(optax.cosine_decay_schedule(RATE, len(keys)), weight_decay=1e-2)

    def loss(network: dict[str, jax.Array], told: jax.Array, wanted: jax.Array) -> jax.Array:
        left = jnp.square((capsule.network(network, told) - wanted) * weight)
        return (left.mean((1, 2)) / size).sum()

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        network, state = carry
        rows = jax.random.randint(key, (min(BATCH, told.shape[1]),), 0, told.shape[1])
        grads = jax.grad(loss)(network, told[:, rows], wanted[:, rows])
        updates, state = optimiser.update(grads, state, network)
        return (optax.apply_updates(network, updates), state), None

    (network, _), _ = jax.lax.scan(step, (network, optimiser.init(network)), keys)
    return network
