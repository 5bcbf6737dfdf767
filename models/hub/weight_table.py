"""Weight tables: which tensor of a Hugging Face folder fills which parameter, one by one, fused or stacked.

A port writes one `Row` a kind of tensor:

- ``Row("layers.{}.mlp.up_proj.weight", "layers/mlp/up/w", TRANSPOSED)``: a tensor for each layer of a stacked leaf.
- ``Row("layers.{}.mlp.experts.{}.up_proj.weight", "layers/experts/up", TRANSPOSED)``: for each layer and expert.
- ``Row("layers.{}.mlp.experts.down_proj", "layers/experts/down")``: a tensor that stacks a layer's experts.
- ``Row("layers.{}.attn.qkv_proj.weight", ("…/q/w", "…/k/w", "…/v/w"), TRANSPOSED)``: a fused tensor, several parameters
  one after the other along ``axis``.
- ``Either(…)``: the same parameters in one of several layouts.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from models.errors import MissingTensorError, TensorShapeError, UnexpectedTensorError, WeightsError, few


@dataclass(frozen=True)
class Transform:
    """How one hub tensor becomes one layer's parameter, and back; views where numpy can."""

    from_hub: Callable[[np.ndarray], np.ndarray]
    to_hub: Callable[[np.ndarray], np.ndarray]


def _swapped(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)


AS_IS = Transform(lambda x: x, lambda x: x)
TRANSPOSED = Transform(_swapped, _swapped)
"""A dense weight, or a stack of them: [out, in] on the hub, [in, out] here."""


def flattened_kernel(kernel: tuple[int, ...]) -> Transform:
    """A convolution whose stride is its kernel: [out, *kernel] on the hub, a dense [prod(kernel), out] here."""
    return Transform(lambda x: x.reshape(x.shape[0], -1).T, lambda x: x.T.reshape(-1, *kernel))


def convolution(*taps: int) -> Transform:
    """A convolution: [out, in, *taps] on the hub, a dense [prod(taps) * in, out] here, tap by tap."""
    kernel = range(2, 2 + len(taps))

    def from_hub(x: np.ndarray) -> np.ndarray:
        return x.transpose(*kernel, 1, 0).reshape(-1, x.shape[0])

    def to_hub(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x.reshape(*taps, -1, x.shape[-1]), (-1, -2), (0, 1))

    return Transform(from_hub, to_hub)


@dataclass(frozen=True)
class Row:
    """One line of a weight table.

    Attributes:
        name: the hub name; each ``{}`` stands for the index on one leading axis of a stacked leaf: layer, then expert.
        path: where it goes in the parameters, keys joined by ``/``. Of a fused tensor the paths of all its parameters,
            in the order in which they lie in it.
        transform: how; of a fused tensor, how each of its parameters.
        first: the layer that stands first in the leaf.
        axis: of a fused tensor, the axis on the hub along which its parameters lie one after the other.
    """

    name: str
    path: str | tuple[str, ...]
    transform: Transform = AS_IS
    first: int = 0
    axis: int = 0

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all parameters that it fills."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, "HubTensor"]]:
        """Every tensor that leaves of these shapes are made of, by its hub name.

        Raises:
            WeightsError: the parameters of a fused tensor do not fit each other.
        """
        stacked = self.name.count("{}")
        leading = {shapes[path][:stacked] for path in self.paths}
        each = [self.transform.to_hub(np.broadcast_to(np.float32(0), shapes[path][stacked:])) for path in self.paths]
        if len(leading) != 1 or len({_beside(part.shape, self.axis) for part in each}) != 1:
            raise WeightsError(
                f"{self.name} combines {few(self.paths)}, one after the other along axis {self.axis}, and they are "
                f"{[list(shapes[path]) for path in self.paths]}; they may differ in the length of that axis alone"
            )
        shape = list(each[0].shape)
        pieces: list[tuple[slice, ...]] = [()]
        if len(each) > 1:
            axis = self.axis % len(shape)
            ends = np.cumsum([part.shape[axis] for part in each]).tolist()
            starts = [0, *ends[:-1]]
            pieces = [(slice(None),) * axis + (slice(a, b),) for a, b in zip(starts, ends, strict=True)]
            shape[axis] = ends[-1]
        for index in np.ndindex(*leading.pop()):
            name = self.name.format(*(i + self.first * (axis == 0) for axis, i in enumerate(index)))
            parts = (Part(path, index, self.transform, piece) for path, piece in zip(self.paths, pieces, strict=True))
            yield name, HubTensor(tuple(shape), self.axis, tuple(parts))


@dataclass(frozen=True)
class Either:
    """The same parameters in one of several layouts; what a folder has is recognised by names and shapes.

    Attributes:
        options: rows of each layout; weights are written in the first.
    """

    options: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class Part:
    """One parameter, or one layer's or expert's slice of it, within a hub tensor.

    Attributes:
        path: of the leaf.
        index: on the leaf's leading axes.
        transform: how it becomes that.
        piece: where in the hub tensor it is; all of it if empty.
    """

    path: str
    index: tuple[int, ...]
    transform: Transform
    piece: tuple[slice, ...]

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.path + "".join(f"[{i}]" for i in self.index)


@dataclass(frozen=True)
class HubTensor:
    """A tensor that the table expects.

    Attributes:
        shape: on the hub.
        axis: along which its parts lie one after the other.
        parts: what it is made of; one, unless it is fused.
    """

    shape: tuple[int, ...]
    axis: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class WeightTable:
    """Every tensor of a checkpoint format.

    Attributes:
        rows: what goes where.
        renames: (regex, replacement) pairs that turn other spellings of a name into the rows'.
        copies: names that may be there and must then have the same bytes as another (tied weights saved twice).
        ignored: regexes of whole names that may be there and are not parameters (buffers).
    """

    rows: tuple[Row | Either, ...]
    renames: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def canonical(self, name: str) -> str:
        """A name in the rows' spelling."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def skips(self, name: str) -> bool:
        """Whether a tensor of this name is not a parameter."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    def least(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """How many tensors there are at least, of leaves of these shapes; they are not counted up."""
        counts = []
        for row in self.rows:
            options = row.options if isinstance(row, Either) else ((row,),)
            counts.append(min(sum(_count(each, shapes) for each in rows) for rows in options))
        return sum(counts)

    def tensors(
        self, shapes: Mapping[str, tuple[int, ...]], present: Mapping[str, tuple[int, ...]] | None = None
    ) -> dict[str, HubTensor]:
        """Every tensor that leaves of these shapes are made of, by its hub name.

        Args:
            shapes: of the leaves, by path.
            present: shapes of the tensors in a folder, by name, which decide between layouts; the first layout of each
                `Either` by default.

        Raises:
            MissingTensorError, UnexpectedTensorError: the table and the leaves do not have the same paths.
            TensorShapeError: two layouts fit the folder.
        """
        options = [row.options if isinstance(row, Either) else ((row,),) for row in self.rows]
        for option in range(max(map(len, options), default=1)):
            self._agree([each[min(option, len(each) - 1)] for each in options], shapes)
        tensors: dict[str, HubTensor] = {}
        for layouts in options:
            expanded = [dict(pair for row in rows for pair in row.tensors(shapes)) for rows in layouts]
            tensors |= expanded[0] if present is None or len(expanded) == 1 else _fitting(expanded, present)
        return tensors

    def _agree(self, layouts: list[tuple[Row, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse rows that do not fill every leaf once."""
        paths = [path for rows in layouts for row in rows for path in row.paths]
        unfilled = sorted(shapes.keys() - {*paths})
        unknown = sorted({*paths} - shapes.keys())
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if unfilled or unknown or twice:
            raise (MissingTensorError if unfilled else UnexpectedTensorError)(
                f"weight table and parameters do not agree: no row for {few(unfilled)}, no parameter for "
                f"{few(unknown)}, several rows for {few(twice)}"
            )


def _count(row: Row, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many tensors a row is, if its leaves are there."""
    return math.prod(shapes.get(row.paths[0], ())[: row.name.count("{}")])


def _beside(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape without the axis."""
    axis %= len(shape)
    return (len(shape), *shape[:axis], *shape[axis + 1 :])


def _fitting(layouts: list[dict[str, HubTensor]], present: Mapping[str, tuple[int, ...]]) -> dict[str, HubTensor]:
    """The layout that a folder has; the nearest one if it has none, to say what that lacks."""
    fitting = [each for each in layouts if all(present.get(name) == each[name].shape for name in each)]
    for one, other in combinations(fitting, 2):
        if one.keys() == other.keys():
            name = next(iter(one))
            raise TensorShapeError(
                f"{name} is {list(one[name].shape)}, which fits two layouts of the same parameters, "
                f"{few(part.path for part in one[name].parts)}; a size that is equal on both axes cannot be served"
            )
    return fitting[0] if fitting else max(layouts, key=lambda each: sum(name in present for name in each) / len(each))
