"""What users hand in, checked: each message says what was given, what was expected and what makes one."""

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.errors import ArgumentError
from kamera_jax.handle import traced


def check_type(value: Any, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Raise ArgumentError unless an argument is of a type.

    Args:
        value: the argument.
        kind: the type, or several.
        what: its name.
        remedy: what makes one, for the message.
    """
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        named = " or ".join("None" if each is type(None) else f"a {each.__name__}" for each in kinds)
        raise ArgumentError(f"{what} is {short(value)}; expected {named}: {remedy}")


def check_list(values: Any, kind: type, what: str, remedy: str) -> None:
    """Raise ArgumentError unless an argument is a list, or another sequence, of values of a type.

    Args:
        values: the argument; a text is none, though Python has it as a sequence of letters.
        kind: the type of each value.
        what: its name.
        remedy: see `check_type`.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ArgumentError(f"{what} is {short(values)}; expected a list: {remedy}")
    for place, value in enumerate(values):
        check_type(value, kind, f"{what}[{place}]", remedy)


def check_array(value: Any, what: str) -> None:
    """Raise ArgumentError unless an argument is an array, of JAX or numpy, of at least one dimension."""
    if not isinstance(value, jax.Array | np.ndarray) or not value.ndim:
        raise ArgumentError(f"{what} is {short(value)}; expected an array")


def check_choice(value: Any, choices: Collection[Any], what: str) -> None:
    """Raise ArgumentError unless an argument is one of a few names."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ArgumentError(f"{what} is {short(value)}; expected one of {tuple(choices)}")


def whole_number(value: Any, what: str, least: int | None = None) -> int:
    """An argument that is a whole number, of Python, numpy or JAX.

    Raises:
        ArgumentError: it is something else, or its value is not known yet.
        ValueError: it is below ``least``.
    """
    try:
        if isinstance(value, bool) or traced(value):
            raise TypeError("no number that is known")
        number = operator.index(value)
    except TypeError as error:
        raise ArgumentError(
            f"{what} is {short(value)}; expected a whole number, such as {max(least or 0, 1)}"
        ) from error
    if least is not None and number < least:
        raise ValueError(f"{what} is {number}; expected at least {least}")
    return number


def real_number(value: Any, what: str, least: float = -math.inf) -> float:
    """An argument that is a number, of Python, numpy or JAX.

    Raises:
        ArgumentError: it is something else, or its value is not known yet.
        ValueError: it is below ``least``, where there is one, or not finite.
    """
    if isinstance(value, jax.Array | np.ndarray) and not traced(value) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{what} is {short(value)}; expected a number")
    number = float(value)
    if least > -math.inf and not least <= number < math.inf:
        raise ValueError(f"{what} is {number:g}; expected a finite number of at least {least:g}")
    return number


def check_texts(value: Any, what: str) -> None:
    """Raise ArgumentError unless an argument is a tuple or list of texts that are not empty."""
    if not isinstance(value, tuple | list) or not all(isinstance(each, str) and each for each in value):
        raise ArgumentError(f"{what} is {short(value)}; expected a tuple of texts that are not empty, such as ('END',)")


def check_text(value: Any, what: str) -> None:
    """Raise ArgumentError unless an argument is a text."""
    check_type(value, str, what, "a text, such as a question")


def check_keys(keys: Iterable[str]) -> Iterable[str]:
    """The keys as given; raises ArgumentError unless they are several: a text is one."""
    check_type(keys, Iterable, "keys", "what put returned for each; for one chunk [key]")
    if isinstance(keys, str):
        raise ArgumentError(f"keys is {keys!r:.80}; expected several, what put returned for each; for one chunk [key]")
    return keys


def check_random_key(key: Any) -> None:
    """Raise ArgumentError unless it is one key of `jax.random`, typed or of an older kind."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and np.shape(key) == ()
    if not typed and not (dtype == np.uint32 and np.ndim(key) == 1):
        raise ArgumentError(f"key is {short(key)}; expected one random key: jax.random.key(seed)")


def short(value: Any) -> str:
    """A value in an error message: arrays by their shapes."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
