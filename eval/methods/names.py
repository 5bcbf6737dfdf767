"""Methods by name, as the command line takes them."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches

from eval.methods.base import Method, Part
from eval.methods.reuse import (
    Blind,
    Full,
    Patched,
    bytes_budget,
    energy_budget,
    half_budget,
    rank_budget,
)
from eval.methods.tokens import LargestDeviation, LayerBudgets, Leading, OracleTokens, Recomputed


class UnknownMethodError(ValueError):
    """A method that there is not."""


def _whole(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} needs a whole number of at least 1, as in {EXAMPLES[name]}; got {text!r}")
    return int(text)


def _share(name: str, text: str, *, zero: bool = True) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value <= 1 and (zero or value)):
        bounds = "0 to 1" if zero else "above 0, up to 1"
        raise ValueError(f"{name} needs a share ({bounds}), as in {EXAMPLES[name]}; got {text!r}")
    return value


def _patch(text: str) -> Part:
    kind, given, value = text.partition("=")
    if kind == "energy":
        return Patched(energy_budget(_share("patch:energy", value, zero=False)))
    if kind == "bytes":
        return Patched(bytes_budget(_share("patch:bytes", value, zero=False)))
    if kind in ("deep", "shallow"):
        return Patched(half_budget(_whole(f"patch:{kind}", value) if given else None, deep=kind == "deep"))
    return Patched(rank_budget(_whole("patch", text)))


FILLS: dict[str, Callable[[str], Part]] = {
    "full": lambda _: Full(),
    "blind": lambda _: Blind(),
    "blind-norotate": lambda _: Blind(relocated=False),
    "patch": _patch,
}
"""What makes a window; may stand first."""

REPAIRS: dict[str, Callable[[str], Part]] = {
    "cacheblend": lambda text: Recomputed(LargestDeviation(_share("cacheblend", text))),
    "epic": lambda text: Recomputed(Leading(_whole("epic", text))),
    "mpic": lambda text: Recomputed(Leading(_whole("mpic", text), text_whole=True)),
    "vlcache": lambda text: Recomputed(LayerBudgets(_share("vlcache", text))),
    "oracle-tokens": lambda text: OracleTokens(_share("oracle-tokens", text)),
}
"""What repairs some tokens of a window; after blind reuse, or after another part and a +."""

EXAMPLES = {
    "full": "full",
    "blind": "blind",
    "blind-norotate": "blind-norotate",
    "patch": "patch:12",
    "patch:energy": "patch:energy=0.9",
    "patch:bytes": "patch:bytes=0.25",
    "patch:deep": "patch:deep=12",
    "patch:shallow": "patch:shallow=12",
    "cacheblend": "cacheblend:0.15",
    "epic": "epic:16",
    "mpic": "mpic:16",
    "vlcache": "vlcache:0.05",
    "oracle-tokens": "oracle-tokens:0.5",
}
"""A valid spelling of everything there is."""


def parse(name: str) -> Method:
    """A method by its name; parts are joined by +, as in ``patch:8+epic:16``.

    Raises:
        UnknownMethodError: there is no such method; the nearest name is suggested.
        ValueError: its number is missing, not wanted or out of bounds, or parts cannot stand together.
    """
    parts = []
    texts = name.split("+")
    for place, text in enumerate(texts):
        kind, given, number = text.partition(":")
        makers = FILLS | REPAIRS
        if kind not in makers:
            near = get_close_matches(kind, makers, n=1, cutoff=0.4)
            known = ", ".join(example for key, example in EXAMPLES.items() if key in makers)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UnknownMethodError(f"no method {text!r}{hint} There are {known}, and parts joined by +")
        if bool(given) != (kind not in ("full", "blind", "blind-norotate")):
            raise ValueError(f"{kind} is written {EXAMPLES[kind]}; got {text!r}")
        if (place and kind in FILLS) or (len(texts) > 1 and kind in ("full", "blind-norotate")):
            raise ValueError(
                f"{text!r} cannot stand in {name!r}: blind or a patch comes first, then what repairs tokens "
                f"({', '.join(REPAIRS)})"
            )
        parts.append(makers[kind](number))
    return Method(name, tuple(parts))


def parse_all(names: Sequence[str]) -> list[Method]:
    """Methods by their names, the reference ``full`` and the baseline ``blind`` first, whether asked for or not.

    Raises:
        ValueError: as `parse`, or a method is named twice.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"every method is run once; {', '.join(twice)} is named more than once")
    return [parse(name) for name in dict.fromkeys(["full", "blind", *names])]
