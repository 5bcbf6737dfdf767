"""Methods by name, as the command line takes them: built in, from an entry point, or as ``module:name``."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

from eval.descriptions import METHODS
from eval.methods.base import Method, Part
from eval.methods.compressed import Copied
from eval.methods.questions import ByQuestion
from eval.methods.reuse import (
    Blind,
    CachedEncoder,
    CachedPrefix,
    Full,
    Patched,
    bytes_budget,
    energy_budget,
    formed_budget,
    half_budget,
    most_budget,
    rank_budget,
)
from eval.methods.shift import MeanShift
from eval.methods.sizes import patch_size
from eval.methods.tokens import LargestDeviation, LayerBudgets, Leading, OracleTokens, Recomputed
from eval.tasks.base import lacks
from eval.tasks.plugins import FILE, Group, constructed
from kamera_jax.compress.codec import CODECS, Codec, codec
from kamera_jax.patch import SHARE


class UnknownMethodError(ValueError):
    """A name that no method has."""


class InvalidMethodError(ValueError):
    """An object of another package that is no method."""


def _whole(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} needs a whole number of at least 1, as in {EXAMPLES[name]}; got {text!r}")
    return int(text)


def _share(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{name} needs a share (0 to 1), as in {EXAMPLES[name]}; got {text!r}")
    return value


def _patch(text: str) -> Part:
    kind, given, value = text.partition("=")
    if kind in ("deep", "shallow"):
        return Patched(half_budget(_whole(f"patch:{kind}", value) if given else None, deep=kind == "deep"))
    size = patch_size(text)
    if size.rank is not None:
        return Patched(rank_budget(size.rank))
    if size.energy is not None:
        return Patched(energy_budget(size.energy))
    if size.even_share is not None:
        return Patched(bytes_budget(size.even_share))
    if size.max_bytes is not None:
        return Patched(most_budget(size.max_bytes))
    return Patched(formed_budget(SHARE if size.share is None else size.share))


FILLS: dict[str, Callable[[str], Part]] = {
    "full": lambda _: Full(),
    "blind": lambda _: Blind(),
    "blind-norotate": lambda _: Blind(relocated=False),
    "patch": _patch,
    "encoder-cache": lambda _: CachedEncoder(),
    "prefix-cache": lambda _: CachedPrefix(),
    "copy": lambda text: Copied(codec(f"kivi:{text}")),
}
"""Parts that fill a window; they stand first, or behind what the chunks are stored in."""

REPAIRS: dict[str, Callable[[str], Part]] = {
    "cacheblend": lambda text: Recomputed(LargestDeviation(_share("cacheblend", text))),
    "epic": lambda text: Recomputed(Leading(_whole("epic", text))),
    "mpic": lambda text: Recomputed(Leading(_whole("mpic", text), text_whole=True)),
    "vlcache": lambda text: Recomputed(LayerBudgets(_share("vlcache", text))),
    "shift": lambda text: MeanShift(_whole("shift", text)),
    "select": lambda text: ByQuestion(_share("select", text), again=False),
    "prophet": lambda text: ByQuestion(_share("prophet", text), again=True),
    "oracle-tokens": lambda text: OracleTokens(_share("oracle-tokens", text)),
}
"""Parts that repair some tokens of a window: behind another part and a +, or, standing first, of blind reuse."""

BARE = ("full", "blind", "blind-norotate", "encoder-cache", "prefix-cache")
"""Parts without a number."""

ALONE = ("full", "blind-norotate", "encoder-cache", "prefix-cache", "copy")
"""Parts that stand with no other."""

LAST = ("select", "prophet")
"""Parts behind which nothing stands: they wait for the question."""

EXAMPLES = {name: text.example for name, text in METHODS.items()}
"""An example of every built-in method as it is written; `eval.descriptions.METHODS` says what each is."""

GROUP = Group("method", "kamera_jax.methods", {*FILLS, *REPAIRS, *CODECS})
"""Methods of installed packages."""

OUTSIDE = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::(.+))?")
"""A method of another package: ``module:name``, or ``module:name:number``."""


def parse(name: str) -> Method:
    """A method by its name; parts are joined by +, as in ``patch:8+epic:16``.

    Raises:
        UnknownMethodError: there is no such method; the nearest name is suggested.
        PluginError: it comes from another package, and cannot be found or imported; or two packages use its name.
        InvalidMethodError: what another package has under that name is no method; the missing members are named.
        ValueError: its number is missing, not wanted or out of bounds, or parts cannot stand together.
    """
    parts: list[Part] = []
    texts = name.split("+")
    stored: Codec | None = None
    stages = list(takewhile(lambda text: text.partition(":")[0] in CODECS, texts))
    if stages:
        stored = codec("+".join(stages))
        texts = texts[len(stages) :]
        texts = texts if texts and texts[0].partition(":")[0] in FILLS else ["blind", *texts]
    for place, text in enumerate(texts):
        kind, given, number = text.partition(":")
        makers = FILLS | REPAIRS
        if GROUP.declared().get(kind) or (kind not in makers and (OUTSIDE.fullmatch(text) or FILE.fullmatch(text))):
            parts += _outside(text)
            continue
        if kind in CODECS:
            raise ValueError(f"{text!r} cannot stand in {name!r}: what chunks are stored in comes first, and once")
        if kind not in makers:
            raise UnknownMethodError(_unknown(text))
        if text != "patch" and (text == "patch:" or bool(given) != (kind not in BARE)):
            raise ValueError(f"{kind} is written {EXAMPLES[kind]}; got {text!r}")
        alone = (len(texts) > 1 and kind in ALONE) or (
            stored is not None and kind in ALONE and kind != "blind-norotate"
        )
        if (place and kind in FILLS) or alone or (kind in LAST and place < len(texts) - 1):
            raise ValueError(
                f"{text!r} cannot stand in {name!r}: what chunks are stored in comes first ({', '.join(CODECS)}), then "
                f"blind or a patch, then what repairs tokens ({', '.join(REPAIRS)}), {' and '.join(LAST)} last; "
                f"{', '.join(ALONE)} stand alone"
            )
        if stored is not None and stored.rows and kind in REPAIRS:
            raise ValueError(
                f"{text!r} cannot stand in {name!r}: it runs or hides tokens at their slots, and chunks that keep a "
                "share of their rows have no slot for each; leave the selection or the repair out"
            )
        parts.append(makers[kind](number))
    return Method(name, tuple(parts), stored)


def _unknown(text: str) -> str:
    kind = text.partition(":")[0]
    near = get_close_matches(kind, [*FILLS, *REPAIRS, *CODECS, *GROUP.declared()], n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "."
    examples = [EXAMPLES[each] for each in EXAMPLES if each in {*FILLS, *REPAIRS, *CODECS}]
    known = ", ".join([*examples, *GROUP.declared()])
    return f"no method {text!r}{hint} There are {known}, those of your own, as module:Name, and parts joined by +"


def _outside(text: str) -> tuple[Part, ...]:
    """The parts of another package's method: a part, or a `Method` with some; classes and functions are called."""
    reference, _, number = text.partition(":")
    if reference not in GROUP.declared():
        module, attribute, number = (*text.split(":", 2), "")[:3]
        reference = f"{module}:{attribute}"
    what = f"the method {reference!r}"
    value: Any = constructed(GROUP.find(reference), what, *([number] if number else []))
    if isinstance(value, Method):
        return value.parts
    if missing := [member for member in ("prepare", "apply", "cost") if lacks(value, member, Part)]:
        raise InvalidMethodError(
            f"{what} is of type {type(value).__name__}, and no method: it lacks {', '.join(missing)}; see "
            "eval.methods.base.Part and docs/howto/method.md"
        )
    return (value,)


def parse_all(names: Sequence[str]) -> list[Method]:
    """Methods by their names, the reference ``full`` and the baseline ``blind`` first, whether they are named or not.

    Raises:
        ValueError: see `parse`, or a method is named twice.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"every method is run once; {', '.join(twice)} is named more than once")
    return [parse(name) for name in dict.fromkeys(["full", "blind", *names])]
