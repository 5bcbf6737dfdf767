"""Handles: pytrees of arrays that carry names. JAX sees the arrays, and no transformation keeps a name.

What comes out of ``jit``, ``vmap``, ``jax.tree.map`` or ``jax.device_put`` may hold other bits than what went in, so
it has no keys: they would say what is not so. Shapes and meaning stay, as a part of the tree's structure.
"""

from collections.abc import Iterable
from copy import copy
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.layout import Format

T = TypeVar("T")


def traced(*values: Any) -> bool:
    """Whether any value is that of a JAX transformation under way, and so not known."""
    return any(isinstance(value, Tracer) for value in values)


def deleted(tree: Any) -> bool:
    """Whether arrays of a tree were donated, so that nothing can be read from them."""
    return any(isinstance(leaf, jax.Array) and not traced(leaf) and leaf.is_deleted() for leaf in jax.tree.leaves(tree))


class Field:
    """A field of a `Handle` that JAX sees as something else than what is read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def leaf(self, instance: Any) -> Any:
        """What JAX sees."""
        return instance.__dict__[self._name]


class HostScalar(Field):
    """A number that the host reads, and that is data to JAX.

    What leaves a compiled function is an array, and to wait for it there would make every call a synchronous one: it
    becomes a Python number when it is first read. Inside a transformation it stays what it is there.
    """

    def __init__(self, kind: type[int] | type[float]) -> None:
        """Read as ``bool``, ``int`` or ``float``."""
        self._kind = kind
        self._dtype = {bool: np.bool_, int: np.int32, float: np.float32}[kind]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name]
        if isinstance(value, jax.Array | np.ndarray | np.generic) and not traced(value) and value.ndim == 0:
            value = instance.__dict__[self._name] = self._kind(value)
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value

    def leaf(self, instance: Any) -> Any:
        """What JAX sees: always of one dtype, so that a function is compiled once."""
        value = instance.__dict__[self._name]
        return self._dtype(value) if type(value) in (bool, int, float) else value


class Columns(NamedTuple):
    """The first ``count`` columns of an array [rows, ·] that has more, so that there are few shapes."""

    array: jax.Array
    count: int


class HostColumns(Field):
    """An array that may be given as `Columns`, and is cut when it is first read: on the host, which compiles nothing.

    Inside a transformation it is cut there.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name]
        if isinstance(value, Columns):
            value = instance.__dict__[self._name] = _cut(value)
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value

    def leaf(self, instance: Any) -> Any:
        """What JAX sees."""
        return self.__get__(instance)


def host_columns() -> Any:
    """A field of a `Handle`; see `HostColumns`."""
    return HostColumns()


def columns_of(instance: Any, name: str) -> np.ndarray:
    """A copy on the host of a field that may be given as `Columns`; nothing goes to the device for it."""
    value = instance.__dict__[f"_{name}"]
    return np.array(np.asarray(value.array)[:, : value.count]) if isinstance(value, Columns) else np.array(value)


def _cut(columns: Columns) -> jax.Array:
    array, count = columns
    if traced(array):
        return array[:, :count]
    rows = np.asarray(array)[:, :count]
    return jax.device_put(rows, array.sharding) if array.sharding.is_fully_replicated else jax.device_put(rows)


def host_scalar(kind: type[int] | type[float]) -> Any:
    """A field of a `Handle`; see `HostScalar`."""
    return HostScalar(kind)


@no_type_check  # its subclasses are
class Handle:
    """Base of the frozen dataclasses that are pytrees; see the module.

    Attributes:
        DATA: fields that are leaves, or trees of them.
        STATIC: fields that are part of the tree's structure: a function is compiled for each of their values.
        NAMES: fields that no transformation keeps, and what they then are.
        SHOWN: what ``repr`` shows beside shapes: plain numbers and texts, and of tuples how long they are.
    """

    DATA: ClassVar[tuple[str, ...]]
    STATIC: ClassVar[tuple[str, ...]] = ()
    NAMES: ClassVar[dict[str, Any]] = {}
    SHOWN: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(cls, cls._flatten_with_keys, cls._unflatten, cls._flatten)

    def _flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        fields = [(name, getattr(type(self), name, None)) for name in self.DATA]
        data = [field.leaf(self) if isinstance(field, Field) else getattr(self, name) for name, field in fields]
        return tuple(data), tuple(getattr(self, name) for name in self.STATIC)

    def _flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        data, static = self._flatten()
        return tuple((jax.tree_util.GetAttrKey(name), leaf) for name, leaf in zip(self.DATA, data, strict=True)), static

    @classmethod
    def _unflatten(cls, static: tuple[Any, ...], data: Iterable[Any]) -> Self:
        new = object.__new__(cls)
        new._set(**dict(zip(cls.DATA, data, strict=True)), **dict(zip(cls.STATIC, static, strict=True)), **cls.NAMES)
        return new

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def keeping(self, **changes: Any) -> Self:
        """A copy with other values of some fields that keeps its names: for who knows that they still hold."""
        new = copy(self)
        new._set(**changes)
        return new

    def _named_like(self, other: Self) -> Self:
        """A copy with the names of a handle that holds the same bits."""
        new = copy(self)
        new._set(**{name: getattr(other, name) for name in self.NAMES})
        for name in self.DATA:
            mine = getattr(self, name)
            theirs = getattr(other, name)
            if isinstance(mine, Handle):
                new._set(**{name: mine._named_like(theirs)})
            elif isinstance(mine, tuple) and mine and isinstance(mine[0], Handle):
                new._set(**{name: tuple(a._named_like(b) for a, b in zip(mine, theirs, strict=True))})
        return new

    def __eq__(self, other: object) -> bool:
        """Whether both are one object, or of one type and one key that both have, stored in one codec: one value.

        What has no key is equal to itself alone: its arrays are not compared, which would wait for the device.
        """
        if self is other:
            return True
        if not isinstance(other, Handle) or type(self) is not type(other):
            return NotImplemented
        mine = self._named_value()
        return mine is not None and mine == other._named_value()

    def __hash__(self) -> int:
        mine = self._named_value()
        return object.__hash__(self) if mine is None else hash(mine)

    def _named_value(self) -> tuple[Any, ...] | None:
        """What names the bits of a handle; None where nothing does."""
        key = getattr(self, "key", "")
        return (key, getattr(self, "codec", "")) if key else None

    def __repr__(self) -> str:
        """Sizes and shapes, and not the arrays: a window holds thousands of numbers."""
        values = {name: getattr(self, name, None) for name in self.SHOWN}
        values = {name: len(each) if isinstance(each, tuple) else each for name, each in values.items()}
        shown = ", ".join(f"{name}={each!r}" for name, each in values.items() if isinstance(each, str | int | float))
        arrays = [leaf for leaf in jax.tree.leaves(self) if getattr(leaf, "ndim", 0)]
        leaves = ", ".join(f"{leaf.dtype.name}{list(leaf.shape)}" for leaf in arrays[:4])
        return f"<{type(self).__name__} {shown}: {leaves}{', …' if len(arrays) > 4 else ''}>"

    def to(self, where: Any) -> Self:
        """The same bits on another device, or laid out by a sharding; unlike ``jax.device_put`` it keeps the keys.

        What lies there already is shared with the old handle: do not donate the one and go on with the other.

        Args:
            where: a ``jax.Device`` or ``jax.sharding.Sharding``, for every array, or a
                `kamera_jax.placement.Placement`, as a model on a mesh has one.
        """
        if hasattr(where, "shardings"):
            layout = where.shardings(self)
            moved = jax.tree.map(lambda leaf, at: jax.device_put(leaf, at) if np.ndim(leaf) else leaf, self, layout)
            return moved._named_like(self)
        if where is not None and not isinstance(where, jax.Device | jax.sharding.Sharding | Format):
            raise ValueError(f"where is a {type(where).__name__}; expected a jax.Device or a jax.sharding.Sharding")
        moved = jax.tree.map(lambda leaf: jax.device_put(leaf, where) if np.ndim(leaf) else leaf, self)
        return moved._named_like(self)

    def copied(self) -> Self:
        """The same bits in arrays of its own, under the same names."""
        leaves, structure = jax.tree.flatten(self)
        copies = iter(copied([leaf for leaf in leaves if np.ndim(leaf)]))
        return jax.tree.unflatten(structure, [next(copies) if np.ndim(leaf) else leaf for leaf in leaves])._named_like(
            self
        )


def in_bytes(count: int) -> str:
    """A number of bytes for people, as in 4.7 MiB."""
    if count < 1024:
        return f"{count} B"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min((count.bit_length() - 1) // 10, len(units))
    return f"{count / 1024**power:.1f} {units[power - 1]}"


def shapes(self: Any) -> str:
    """``__repr__`` of a dataclass of arrays: their dtypes and shapes."""
    values = {each.name: getattr(self, each.name, None) for each in fields(self)}
    return f"{type(self).__name__}({', '.join(f'{name}={_shape(value)}' for name, value in values.items())})"


def _shape(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shape, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {_shape(each)}' for name, each in value.items())}}}"
    return f"{value.dtype.name}{list(value.shape)}" if getattr(value, "ndim", 0) else repr(value)


@jax.jit
def copied(tree: Any) -> Any:
    """The same arrays in buffers of their own."""
    return jax.tree.map(jnp.copy, tree)
