"""The four programs that a session of a model runs, as shapes alone: no array is ever made.

Prefill runs a chunk behind a window; forming runs it, collects whom it attended to and fits the patch; reuse rotates
and patches the canonical chunk and writes it into the window; decoding runs one token of an answer.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kamera_jax.forward import owners_of
from kamera_jax.inference.forming import OWNERS, fit_and_share
from kamera_jax.inference.turn import LEAST_ROWS
from kamera_jax.kv import KV, Factors, KVSpec, Segment, WindowState
from kamera_jax.placement import Placement, constrained
from kamera_jax.window.reuse import write
from models.architecture import Architecture, Config
from models.blocks.params import Params, is_info
from models.blocks.sharding import param_shardings, placement_of
from models.forward import forward_of
from models.registry import ARCHITECTURES

PROGRAMS = ("prefill", "forming", "reuse", "decoding")


@dataclass(frozen=True)
class Program:
    """A function of shapes, ready to be compiled.

    Attributes:
        name: of `PROGRAMS`.
        function: of the arguments.
        arguments: trees of `jax.ShapeDtypeStruct` that have shardings.
        donate: which arguments are donated.
        flops: of one device, counted from shapes (`Shapes.flops`) and, of the fit, from the traced program: loops that
            end where the data does have no count in the compiled one.
        ideal: bytes that one device must move: the weights, the KV and the chunk read once, and what comes out written.
        reads_weights: whether the weights are among the arguments.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donate: tuple[int, ...]
    flops: float
    ideal: float
    reads_weights: bool


@dataclass(frozen=True)
class Shapes:
    """A model's parameters and KV on a mesh, as shapes.

    Attributes:
        config: the model's configuration.
        spec: of its KV.
        params: ``{"text": …}`` of shapes with shardings.
        towers: bytes of the other parameters on one device.
        placement: of KV; None on one device.
        mesh: the devices.
        window: slots of the window.
        chunk: tokens of the chunk.
        rank: components of its patch.
    """

    config: Config
    spec: KVSpec
    params: Params
    towers: int
    placement: Placement | None
    mesh: Mesh
    window: int
    chunk: int
    rank: int

    @staticmethod
    def of(mapping: Mapping[str, Any], mesh: Mesh, *, dtype: str, window: int, chunk: int, rank: int) -> "Shapes":
        """The shapes of a model.

        Args:
            mapping: its config.json.
            mesh: the devices.
            dtype: of parameters and KV.
            window, chunk, rank: see the class.

        Raises:
            ValueError: the configuration is not served, or has a field that is not.
        """
        architecture: Architecture = ARCHITECTURES[mapping["model_type"]]
        config = architecture.config_from_hf(mapping)
        declared = architecture.declaration(config)
        shardings = param_shardings(declared, mesh)

        def shaped(info: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(info.shape, info.dtype or dtype, sharding=where)

        params = jax.tree.map(shaped, declared, shardings, is_leaf=is_info)
        towers = sum(device_bytes(tree) for name, tree in params.items() if name != "text")
        text = config.text
        rot, free, heads = text.attention.kv_widths
        layers = text.num_hidden_layers
        spec = KVSpec(layers, rot, free, heads, text.rope, dtype, "shapes", max_positions=text.max_positions)
        placement = placement_of(spec, params["text"])
        return Shapes(config, spec, {"text": params["text"]}, towers, placement, mesh, window, chunk, rank)

    def placed(self, tree: Any) -> Any:
        """Shapes with their shardings."""
        if self.placement is None:
            shardings = jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree)
        else:
            shardings = self.placement.shardings(tree)
        return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)

    def kv(self, tokens: int) -> KV:
        """KV of so many tokens."""
        widths = (self.spec.rot_dim, self.spec.free_dim)
        return self.placed(KV(*(_array((self.spec.layers, tokens, width), self.spec.dtype) for width in widths)))

    def state(self, slots: int) -> WindowState:
        """The state of a window of so many slots."""
        cache = self.kv(slots)
        positions = _array((self.spec.rope.axes, slots), jnp.float32)
        return self.placed(WindowState(cache.rot, cache.free, positions, _array((slots,), jnp.bool_)))

    def segment(self, tokens: int) -> Segment:
        """So many tokens of text."""
        positions = _array((self.spec.rope.axes, tokens), jnp.float32)
        inputs = {"tokens": _array((tokens,), jnp.int32)}
        return self.placed(Segment(inputs, positions, _array((), jnp.int32)))

    def factors(self) -> Factors:
        """A patch of the chunk."""
        layers = self.spec.layers
        width = self.spec.rot_dim + self.spec.free_dim
        return self.placed(
            Factors(
                _array((layers, self.rank, self.chunk), self.spec.dtype),
                _array((layers, self.rank, width), self.spec.dtype),
                _array((layers,), jnp.int32),
            )
        )

    def numbers(self, *shape: int) -> jax.ShapeDtypeStruct:
        """Integers that every device has."""
        return self.placed(_array(shape, jnp.int32))

    @property
    def parts(self) -> int:
        """How many devices share the features of KV."""
        return self.placement.parts if self.placement is not None and self.placement.split else 1

    def _used(self, tokens: int) -> dict[str, float]:
        """Parameters of one device that so many tokens pass, by part; experts as far as the tokens reach them."""
        experts = self.config.text.experts
        text = self.params["text"]
        counts: dict[str, float] = {"products": 0.0, "read": 0.0}
        for name in self.config.text.stacks:
            layer = text[name]
            parts = {"attn": layer["attn"], **layer["mlp"]}
            for part, tree in parts.items():
                size = sum(_shard(leaf) for leaf in jax.tree.leaves(tree))
                routed = part == "experts" and experts is not None
                passed = experts.per_token / experts.count if routed and experts is not None else 1.0
                counts["products"] += size * passed
                counts["read"] += device_bytes(tree) * min(1.0, passed * tokens)
        return counts

    def flops(self, tokens: int, slots: int, *, logits: int) -> float:
        """FLOPs on one device of a forward of ``tokens`` that see ``slots`` more, as `models.vlm` counts them.

        Products with the parameters that lie there, the scores and weighted sums of its heads, and so many rows of
        logits.
        """
        text = self.config.text
        heads = text.attention.heads
        shared = self.placement is not None and self.placement.of_queries(heads)
        split = self.placement.parts if self.placement is not None and shared else 1
        attended = 2.0 * tokens * (slots + tokens) * text.attention.score_width * text.num_hidden_layers / split
        return 2.0 * tokens * self._used(tokens)["products"] + attended + 2.0 * logits * _shard(self._head())

    def _head(self) -> Any:
        text = self.params["text"]
        return text["head"]["w"] if "head" in text else text["embed"]["w"]

    def weights_read(self, tokens: int, logits: bool) -> float:
        """Bytes of parameters that one device must read for so many tokens."""
        rows = tokens * self.config.text.hidden_size * jnp.dtype(self.spec.dtype).itemsize
        return self._used(tokens)["read"] + rows + (device_bytes(self._head()) if logits else 0)

    @property
    def programs(self) -> dict[str, Callable[[], Program]]:
        """What makes each program, by its name."""
        return {"prefill": self.prefill, "forming": self.forming, "reuse": self.reuse, "decoding": self.decoding}

    def prefill(self) -> Program:
        """A chunk behind the window, and the logits of its last token."""
        forward = forward_of(self.config.text, self.placement)

        def prefill(params: Any, segment: Any, state: Any) -> Any:
            output = forward(params, segment, state, logits_at=segment.length[None] - 1)
            return output.logits, output.kv

        arguments = (self.params, self.segment(self.chunk), self.state(self.window))
        chunk = device_bytes(self.kv(self.chunk))
        ideal = self.weights_read(self.chunk, True) + device_bytes(self.kv(self.window)) + chunk
        flops = self.flops(self.chunk, self.window, logits=1)
        return Program("prefill", prefill, arguments, (), flops, ideal, True)

    def forming(self) -> Program:
        """A chunk behind the window, whom it attended to, and the patch that its canonical KV lacks."""
        forward = forward_of(self.config.text, self.placement)
        slots = self.window

        def fit(conditioned: Any, canonical: Any, mass: Any, numbers: Any) -> Any:
            return fit_and_share(
                conditioned, canonical, mass, numbers, slots=None, width=self.rank, int8=False, by_bytes=False
            )

        def forming(params: Any, segment: Any, state: Any, canonical: Any, numbers: Any) -> Any:
            owners = owners_of(numbers, slots, slots + segment.positions.shape[1])
            segment = replace(segment, inputs={**segment.inputs, "owners": owners})
            output = forward(params, segment, state, collect=("owner_mass",))
            return constrained(fit(output.kv, canonical, output.aux["owner_mass"], numbers), self.placement)

        kv = self.kv(self.chunk)
        numbers = self.numbers(4 + 2 * OWNERS)
        arguments = (self.params, self.segment(self.chunk), self.state(self.window), kv, numbers)
        mass = _array((self.spec.layers, OWNERS), jnp.float32)
        fitted = traced_flops(jax.make_jaxpr(fit)(kv, kv, mass, numbers).jaxpr) / self.parts
        # What the forward gives is read again by the fit only where it does not stay on the chip: not counted.
        ideal = self.weights_read(self.chunk, False) + device_bytes(self.kv(self.window))
        ideal += device_bytes(kv) + device_bytes(self.factors())
        flops = self.flops(self.chunk, self.window, logits=0) + fitted
        return Program("forming", forming, arguments, (), flops, ideal, True)

    def reuse(self) -> Program:
        """The canonical chunk, rotated and patched, written into the window."""
        rope = self.spec.rope

        def reuse(state: Any, kv: Any, factors: Any, positions: Any, numbers: Any) -> Any:
            # Slots are multiples of 16, as windows give them.
            slot = 16 * numbers[0]
            return write(state, slot, kv, factors, positions, numbers[1], rope, placement=self.placement)

        kv = self.kv(self.chunk)
        positions = self.placed(_array((rope.axes, self.chunk), jnp.float32))
        arguments = (self.state(self.window), kv, self.factors(), positions, self.numbers(2))
        width = self.spec.rot_dim + self.spec.free_dim
        tokens = self.spec.layers * self.chunk / self.parts
        flops = tokens * (2.0 * self.rank * width + 3.0 * self.spec.rot_dim)
        ideal = 2.0 * device_bytes(kv) + device_bytes(self.factors())
        return Program("reuse", reuse, arguments, (0,), flops, ideal, False)

    def decoding(self) -> Program:
        """One token of an answer behind the window, written beside it, and the next token."""
        forward = forward_of(self.config.text, self.placement)
        rope = self.spec.rope

        def decoding(params: Any, segment: Any, turn: Any, window: Any, slot: Any) -> Any:
            behind = replace(turn, context=window)
            output = forward(params, segment, behind, logits_at=jnp.zeros(1, jnp.int32))
            assert output.logits is not None
            one = (output.kv, None, segment.positions, 1)
            written = write(turn, slot, *one, rope, implementation="xla", placement=self.placement)
            return jnp.argmax(output.logits[0]), written

        arguments = (self.params, self.segment(1), self.state(LEAST_ROWS), self.state(self.window), self.numbers())
        ideal = self.weights_read(1, True) + device_bytes(self.kv(self.window + LEAST_ROWS))
        flops = self.flops(1, self.window + LEAST_ROWS, logits=1)
        return Program("decoding", decoding, arguments, (2,), flops, ideal, True)


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    """The shape of an array, in the place of one."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _shard(leaf: Any) -> int:
    """Values of an array on one device."""
    where = leaf.sharding
    return math.prod(leaf.shape if where is None else where.shard_shape(leaf.shape))


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes on one device."""
    return sum(_shard(leaf) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def traced_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products of a traced program; loops over arrays as often as they run, others once.

    Of what differs by platform, those of its definition, which comes last.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
            continue
        inner = [
            getattr(each, "jaxpr", each)
            for value in equation.params.values()
            for each in (value if isinstance(value, list | tuple) else [value])
            if hasattr(getattr(each, "jaxpr", each), "eqns")
        ]
        found = [traced_flops(each) for each in inner]
        if name == "cond" and equation.params.get("branches_platforms") is not None:
            total += found[-1]
        elif name == "cond":
            total += max(found, default=0.0)
        else:
            total += equation.params.get("length", 1) * sum(found) if name == "scan" else sum(found)
    return total
