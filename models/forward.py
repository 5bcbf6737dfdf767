"""The forward of every port: embeddings with media in their rows, the decoder behind a window, collected extras.

DeepStack features of media, a segment's ``inputs["deep"]`` f32[T, d, E], are added behind the first d layers.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax import rope
from kamera_jax.backbone import Output
from kamera_jax.kv import KV, ChunkPool, Segment, WindowState
from kamera_jax.placement import Placement, constrained
from kamera_jax.rope import RopeSpec
from kamera_jax.window.reuse import attend_in_place
from models.blocks import decoder
from models.blocks.decoder import DecoderConfig
from models.blocks.params import Params
from models.blocks.softmax import Keys, attention

COLLECTS = ("attention_mass", "owner_mass", "queries")
COLLECTS_OF_EXPERTS = (*COLLECTS, "experts", "router_margin")


@cache
def forward_of(text: DecoderConfig, placement: Placement | None = None) -> Callable[..., Output]:
    """One object a language model: loaded again, in another dtype or by another name, it shares what is compiled."""
    return partial(forward, text) if placement is None else partial(forward, text, placement=placement)


def forward(
    config: DecoderConfig,
    params: Params,
    segment: Segment,
    state: WindowState | None,
    *,
    logits_at: jax.Array | None = None,
    collect: Sequence[str] = (),
    placement: Placement | None = None,
) -> Output:
    """`kamera_jax.backbone.Backbone.forward` of every port; on a mesh its KV lies as the placement says.

    Collects ``attention_mass`` or ``owner_mass``, ``queries`` (of an MLA absorbed, which is then how it attends), and
    of layers with experts ``experts`` i32[layers, T, k] (-1 in padding) and ``router_margin`` f32[layers, T] (infinite
    in padding; see `models.blocks.moe.Routing`).

    Raises:
        ValueError: ``collect`` names something else, or experts of a model that has none, or attention_mass and
            owner_mass at once, or one of them where chunks lie in pools, or tokens come with slots there.
    """
    pools = () if state is None else state.pools
    by = _mass_by(collect)
    _check(config, segment, pools, collect)
    tokens = segment.positions.shape[-1]
    valid = segment.valid
    embeds = decoder.embed(params["text"], segment.inputs["tokens"])
    if "media" in segment.inputs:
        embeds = jnp.where(segment.inputs["is_media"][:, None], segment.inputs["media"].astype(embeds.dtype), embeds)
    visible: list[tuple[jax.Array, Any]] = [(valid, np.arange(1, tokens + 1, dtype=np.int32))]
    behind = [] if state is None else [each for each in (state.context, state) if each is not None]
    visible = [(each.valid, segment.inputs.get("slots")) for each in behind] + visible
    biases = [*(each.bias for each in behind), None]  # the segment's own tokens each stand for one
    past = [KV(each.rot, each.free) for each in behind]
    devices = placement.parts if placement is not None and placement.split else 1
    weights = None if by is None else valid.astype(jnp.float32) / config.attention.heads
    owners: list[jax.Array | None] = [None] * len(visible)
    if by == "owner_mass":
        sizes = np.cumsum([len(seen) for seen, _ in visible])
        owners = list(jnp.split(segment.inputs["owners"], sizes[:-1].tolist()))

    def attend(
        q: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array]], layer: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        keys = [
            Keys(k, v, seen, before, owner, bias)
            for (k, v), (seen, before), owner, bias in zip(parts, visible, owners, biases, strict=True)
        ]
        out, lse, mass = attention(q, keys, config.attention.scale, weights, devices=devices)
        if layer is not None:
            here = out.reshape(*q.shape[:2], -1)
            joined = attend_in_place(
                q, here, lse, pools, layer, config.attention.scale, config.rope, placement=placement
            )
            out = joined.reshape(out.shape)
        collected = {}
        if mass is not None and by is not None:
            collected[by] = mass / segment.length.astype(jnp.float32)
        if "queries" in collect:
            collected["queries"] = q
            collected["attended"] = out.reshape(*q.shape[:2], -1)
        return out, collected

    decoded = decoder.decoder(
        params["text"],
        config,
        embeds,
        segment.positions,
        attend,
        past,
        bool(pools),
        absorb=True if "queries" in collect else None,
        deep=segment.inputs.get("deep"),
        # Heads split over all of a mesh leave no axis for experts.
        spread=placement is not None and placement.mesh.size > placement.parts,
    )
    logits = None if logits_at is None else decoder.logits(params["text"], decoded.hidden[logits_at])
    kv = jax.tree.map(lambda rows: jnp.where(valid[None, :, None], rows, jnp.zeros((), rows.dtype)), decoded.kv)
    aux = dict(decoded.collected)
    if "queries" in aux:
        aux["queries"] = config.attention.scale * _unrotated(aux["queries"], segment.positions, config.rope)
    if decoded.routing is not None:
        routing = {
            "experts": jnp.where(valid[None, :, None], decoded.routing.experts, -1),
            "router_margin": jnp.where(valid[None, :], decoded.routing.margin, jnp.inf),
        }
        aux |= {name: value for name, value in routing.items() if name in collect}
    return constrained(Output(logits, kv, aux), placement)


def _mass_by(collect: Sequence[str]) -> str | None:
    """The name by which attention mass is collected, if it is."""
    return next((name for name in ("attention_mass", "owner_mass") if name in collect), None)


def _check(config: DecoderConfig, segment: Segment, pools: Sequence[ChunkPool], collect: Sequence[str]) -> None:
    """Raise ValueError for what `forward` does not serve."""
    offered = COLLECTS_OF_EXPERTS if config.experts else COLLECTS
    if unknown := set(collect) - set(offered):
        raise ValueError(f"this model collects {offered}; got {sorted(unknown)}")
    by = _mass_by(collect)
    if {"attention_mass", "owner_mass"} <= set(collect):
        raise ValueError("attention is collected by slot or by owner, attention_mass or owner_mass; got both")
    if pools and by is not None:
        raise ValueError(
            f'{by} is not collected from chunks that are attended to in place; run on a window of mode="materialise"'
        )
    if pools and "slots" in segment.inputs:
        raise ValueError(
            "tokens that come with slots stand among what is written, and this window keeps its chunks in place; run "
            'them on a window of mode="materialise"'
        )


def _unrotated(q: jax.Array, positions: jax.Array, spec: RopeSpec) -> jax.Array:
    """Queries [L, T, N, ·] as before their last ``head_dim`` dims were rotated, f32."""

    def of_layer(q: jax.Array, layer: jax.Array) -> jax.Array:
        free, rotated = jnp.split(q.astype(jnp.float32), [q.shape[-1] - spec.head_dim], axis=-1)
        scale = jnp.where(spec.turned(layer), spec.scale**2, 1.0)
        return jnp.concatenate([free, rope.rotate(rotated, -positions, spec, layer) / scale], axis=-1)

    return jax.vmap(of_layer)(q, jnp.arange(q.shape[0], dtype=jnp.int32))
