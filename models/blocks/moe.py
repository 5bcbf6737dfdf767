"""Mixture of experts: sigmoid or softmax routing, and a grouped matrix product over the experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.blocks.int8 import Int8Weight, Weight, product
from models.blocks.layers import swiglu
from models.blocks.params import ParamInfo, Params, swiglu_declaration


@dataclass(frozen=True)
class Experts:
    """A layer's experts and how tokens are sent to them.

    Attributes:
        count: X, the number of routed experts.
        per_token: k, the number of experts that a token is sent to.
        intermediate_size: inner width of a routed expert.
        shared_size: inner width of the shared experts, which every token passes, together; 0 for none.
        groups: number of groups of neighbouring experts.
        groups_per_token: number of groups that a token may use.
        normalise: whether a token's k weights are scaled to sum to 1.
        scale: factor on the weights.
        scoring: what becomes of the router's logits: the sigmoid of each, and a learned bias sways the choice
            (DeepSeek-V3), or a softmax over all experts (Qwen3).
    """

    count: int
    per_token: int
    intermediate_size: int
    shared_size: int = 0
    groups: int = 1
    groups_per_token: int = 1
    normalise: bool = True
    scale: float = 1.0
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"

    def declaration(self, width: int) -> Params:
        """Parameters of one layer; experts on the leading axis."""
        inner = self.intermediate_size
        router: Params = {"w": ParamInfo((width, self.count), axes=("embed", "router"))}
        if self.scoring == "sigmoid":
            # The bias stays in f32 in a bf16 model, as in transformers: rounded, it would send tokens elsewhere.
            router["bias"] = ParamInfo((self.count,), "zeros", "float32", axes=("router",))
        declared: Params = {
            "router": router,
            "experts": {
                "gate": ParamInfo((self.count, width, inner), axes=("experts", "embed", "mlp")),
                "up": ParamInfo((self.count, width, inner), axes=("experts", "embed", "mlp")),
                "down": ParamInfo((self.count, inner, width), axes=("experts", "mlp", "embed")),
            },
        }
        if self.shared_size:
            declared["shared"] = swiglu_declaration(width, self.shared_size)
        return declared


class Routing(NamedTuple):
    """Where T tokens are sent.

    Attributes:
        experts: i32[T, k], the best first.
        weights: f32[T, k], what each expert's output counts.
        margin: f32[T], by how much the last chosen expert's score exceeds the first one's left out (of the groups in
            use), or the last chosen group's the first one's left out, whichever is less: routing is discontinuous,
            and a change of the scores by half of this may change it (a quarter with groups, rated by the sum of two).
    """

    experts: Int[Array, "T k"]
    weights: Float[Array, "T k"]
    margin: Float[Array, " T"]


def route(config: Experts, router: Params, x: Float[Array, "T E"]) -> Routing:
    """Choose experts by their scores, plus a bias where there is one, within the best groups.

    HF ``DeepseekV3MoE`` and, of a softmax, ``Qwen3VLMoeTextTopKRouter``. Scores are f32 whatever the dtype of ``x``;
    the bias sways the choice, not the weights.
    """
    choice = scores = router_scores(config, router, x)
    if "bias" in router:
        choice = scores + router["bias"].astype(jnp.float32)[None, :]
    margin = jnp.full(choice.shape[0], jnp.inf, jnp.float32)
    if config.groups > 1:
        grouped = choice.reshape(choice.shape[0], config.groups, -1)
        best_two = jax.lax.top_k(grouped, 2)[0].sum(-1)
        kept, margin = _top(best_two, config.groups_per_token, margin)
        allowed = jax.nn.one_hot(kept, config.groups, dtype=jnp.bool_).any(axis=1)
        choice = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(choice.shape)
    experts, margin = _top(choice, config.per_token, margin)
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if config.normalise:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return Routing(experts, weights * config.scale, margin)


def router_scores(config: Experts, router: Params, x: Float[Array, "T E"]) -> Float[Array, "T X"]:
    """What the router makes of each token and expert, in f32, before any bias."""
    logits = jnp.matmul(x.astype(jnp.float32), router["w"].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return jax.nn.sigmoid(logits) if config.scoring == "sigmoid" else jax.nn.softmax(logits, axis=-1)


def _top(scores: jax.Array, count: int, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices of the best, and the smaller of ``margin`` and their lead over the rest."""
    if count == scores.shape[-1]:
        return jax.lax.top_k(scores, count)[1], margin
    best, indices = jax.lax.top_k(scores, count + 1)
    return indices[:, :count], jnp.minimum(margin, best[:, count - 1] - best[:, count])


def mixture(
    config: Experts, layer: Params, x: Float[Array, "T E"], *, spread: bool = False
) -> tuple[Float[Array, "T E"], Routing]:
    """Routed and shared experts of T tokens (HF ``DeepseekV3MoE``, ``Qwen3VLMoeTextSparseMoeBlock``).

    Args:
        config: of the experts.
        layer: as declared.
        x: activations.
        spread: whether the experts may lie on several devices: a single token's are then not read one by one, for a
            device would have to be sent what another has of them.
    """
    routing = route(config, layer["router"], x)
    routed = _routed_one if len(x) == 1 and not spread else _routed
    out = routed(layer["experts"], x, routing.experts, routing.weights)
    if config.shared_size:
        out = out + swiglu(layer["shared"], x)
    return out, routing


@jax.custom_batching.custom_vmap
def _folding(experts: Params, x: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
    return _by_expert(experts, x, chosen, weights)


@_folding.def_vmap
def _fold(
    size: int, batched: Sequence[Any], experts: Params, x: jax.Array, chosen: jax.Array, weights: jax.Array
) -> tuple[jax.Array, bool]:
    """Sequences in a batch share the experts, so their tokens are sent together."""
    if any(jax.tree.leaves(batched[0])):
        axes = jax.tree.map(lambda mapped: 0 if mapped else None, tuple(batched))
        return jax.vmap(_by_expert, in_axes=axes)(experts, x, chosen, weights), True
    x, chosen, weights = (
        (leaf if mapped else jnp.broadcast_to(leaf, (size, *leaf.shape))).reshape(-1, leaf.shape[-1])
        for leaf, mapped in zip((x, chosen, weights), batched[1:], strict=True)
    )
    return _folding(experts, x, chosen, weights).reshape(size, -1, x.shape[-1]), True


@jax.custom_vjp
def _routed(experts: Params, x: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
    """`_by_expert`, under ``vmap`` too; differentiable outside of it."""
    return _folding(experts, x, chosen, weights)


def _routed_forward(
    experts: Params, x: jax.Array, chosen: jax.Array, weights: jax.Array
) -> tuple[jax.Array, Callable[..., Any]]:
    out, pullback = jax.vjp(lambda e, x, w: _by_expert(e, x, chosen, w), experts, x, weights)
    return out, pullback


def _routed_backward(pullback: Callable[..., Any], cotangent: jax.Array) -> tuple[Any, ...]:
    experts, x, weights = pullback(cotangent)
    return experts, x, None, weights


_routed.defvjp(_routed_forward, _routed_backward)


@jax.custom_jvp
def _routed_one(experts: Params, x: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
    """`_routed` of a single token, which reads no expert but its own; of several under ``vmap`` it is `_routed`."""
    return _folding_one(experts, x, chosen, weights)


@_routed_one.defjvp
def _tangent(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return _routed_one(*primals), jax.jvp(_by_expert, primals, tangents)[1]


@jax.custom_batching.custom_vmap
def _folding_one(experts: Params, x: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
    each = []
    # One by one, for a loop over them would copy all experts of the layer out of their stack.
    for place in range(chosen.shape[1]):
        own = jax.tree.map(partial(jax.lax.dynamic_index_in_dim, index=chosen[0, place], keepdims=False), experts)
        gate, up = (product(x, own[name]).astype(x.dtype) for name in ("gate", "up"))
        each.append(product(jax.nn.silu(gate) * up, own["down"]))
    return jnp.einsum("kte,tk->te", jnp.stack(each), weights).astype(x.dtype)


_folding_one.def_vmap(_fold)


def _by_expert(
    experts: Params, x: Float[Array, "T E"], chosen: Int[Array, "T k"], weights: Float[Array, "T k"]
) -> Float[Array, "T E"]:
    """Each token through its k experts: sorted by expert, three grouped matrix products, and back."""
    tokens, per_token = chosen.shape
    count = experts["gate"].shape[0]
    rows = chosen.reshape(-1)
    order = jnp.argsort(rows, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(rows, length=count).astype(jnp.int32)

    def mlp(product, x: jax.Array) -> jax.Array:
        gate, up = (product(x, experts[name]).astype(x.dtype) for name in ("gate", "up"))
        return product(jax.nn.silu(gate) * up, experts["down"])

    def ragged(x: jax.Array, order: jax.Array, sizes: jax.Array) -> jax.Array:
        def product(x: jax.Array, weight: Weight) -> jax.Array:
            if isinstance(weight, Int8Weight):
                return product(x, weight.codes.astype(x.dtype)) * weight.scale[rows[order], 0]
            return jax.lax.ragged_dot(x, weight, group_sizes=sizes, preferred_element_type=jnp.float32)

        out = mlp(product, x[order // per_token])
        return jnp.zeros_like(out).at[order].set(out)

    def blocks(x: jax.Array, order: jax.Array, sizes: jax.Array) -> jax.Array:
        size = _block(rows.shape[0], count)
        number = min(rows.shape[0], -(-rows.shape[0] // size) + count)
        padded = -(-sizes // size) * size
        first = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
        ends = jnp.cumsum(padded, dtype=jnp.int32)
        start = ends - padded
        index = jnp.arange(rows.shape[0], dtype=jnp.int32)
        place = jnp.zeros_like(order).at[order].set(index + (start - first)[rows[order]])
        source = jnp.zeros(number * size, order.dtype).at[place].set(index // per_token)
        owner = jnp.searchsorted(ends, jnp.arange(number, dtype=jnp.int32) * size, side="right")

        def product(x: jax.Array, weight: Weight) -> jax.Array:
            if isinstance(weight, Int8Weight):
                return product(x, weight.codes.astype(x.dtype)) * weight.scale[owner]
            return jnp.einsum("bti,bio->bto", x, weight[owner], preferred_element_type=jnp.float32)

        out = mlp(product, x[source].reshape(number, size, -1))
        return out.reshape(number * size, -1)[place]

    # XLA multiplies every row by every expert where it has no grouped product of its own.
    out = jax.lax.platform_dependent(x, order, sizes, cpu=blocks, default=ragged)
    return jnp.einsum("tke,tk->te", out.reshape(tokens, per_token, -1), weights).astype(x.dtype)


def _block(rows: int, count: int) -> int:
    """Rows of one matrix product: large for speed, small against what an expert gets, to waste little."""
    size = 8
    while size < 512 and size * 4 * count <= rows:
        size *= 2
    return size
