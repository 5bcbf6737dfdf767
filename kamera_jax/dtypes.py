"""Dtypes by the names that people and files give them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

FLOATS = ("float32", "bfloat16", "float16")
"""What parameters and KV may be: what JAX keeps as it is, with enough bits to add a patch to."""

NAMES = {
    **dict.fromkeys(("f32", "fp32", "float", "single"), "float32"),
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
    **dict.fromkeys(("f16", "fp16", "half"), "float16"),
    **dict.fromkeys(("f64", "fp64", "double"), "float64"),
}
"""Short names, in torch's sense: a ``"float"`` there has 32 bits."""


class DtypeError(ValueError):
    """No dtype, or one that parameters and KV do not have."""


def named(given: Any, what: str = "dtype") -> np.dtype:
    """The dtype of a name (``"bf16"``, ``"half"``, ``"torch.float16"``), of a scalar type of numpy, JAX or torch.

    Args:
        given: the name, the type, or a dtype.
        what: it is of, for the message.

    Raises:
        DtypeError: it names none; None, which numpy takes for float64, does not either.
    """
    name = str(given) if type(given).__module__.partition(".")[0] == "torch" else given
    if isinstance(name, str):
        last = name.strip().rpartition(".")[2]
        name = NAMES.get(last.lower(), last)
    try:
        if name is None:
            raise TypeError("None is no dtype")
        return jnp.dtype(name).newbyteorder("=")
    except (TypeError, ValueError) as error:
        raise DtypeError(f"{what} is {given!r}, which is no dtype; {_expected()}") from error


def floating(given: Any, what: str = "dtype") -> np.dtype:
    """The dtype of a name, if parameters and KV may have it; see `named`.

    Raises:
        DtypeError: it is another one, named, or none.
    """
    dtype = named(given, what)
    if dtype.name in FLOATS:
        return dtype
    why = ""
    if np.issubdtype(dtype, np.floating) and dtype.itemsize > 4:
        why = " would be narrowed to float32, for JAX keeps no wider ones;"
    elif dtype.name.startswith("float8"):
        why = " keeps too few bits for KV;"
    elif not jnp.issubdtype(dtype, jnp.floating):
        why = " is no floating point of real numbers;"
    raise DtypeError(f"{what} is {dtype.name}, which{why or ' is not served;'} {_expected()}")


def _expected() -> str:
    return f"expected one of {', '.join(FLOATS)}, or a short name such as f32, bf16, fp16 or half"
