"""Drifts of a patch on real text: what it was formed behind, what stands there later, and what reusing it then costs.

A text is eight passages in a row and the tokens behind them. The last passage is judged; its patch is formed behind the
three passages before it, or behind all seven. All other chunks stand as a prefill gives them, so that what is measured
is the one patch: KL(full prefill ‖ reuse) over the tokens behind it, with that of blind reuse beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from eval.run import metrics
from eval.tasks.text import corpus
from eval.tasks.text.reader import Reader
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.forward import run
from kamera_jax.guard.staleness import layers_before
from kamera_jax.handle import columns_of
from kamera_jax.inference.encode import encode_segment, run_chunk
from kamera_jax.kv import Segment
from kamera_jax.patch.sketch import changes, reread_jit
from kamera_jax.window.window import Window

TOKENS = 128
"""Of each passage."""

PASSAGES = 8
BEHIND = 32
"""Tokens behind the judged passage over which the KL is averaged."""

SHORT = 3
"""Antecedents of the short windows."""

SEED = 40_000_000

SHORT_KINDS = (
    *("same", "order", "edit", "first gone", "insertion", "only the last left", "one stranger", "last gone"),
    *("all strangers", "to the front"),
)
LONG_KINDS = (
    "long, same",
    "long, slid",
    "long, back at the end",
    "long, edit",
    "long, two strangers",
    "long, half gone",
)
BLIND = "neighbours blind"
KINDS = (*SHORT_KINDS, *LONG_KINDS, BLIND)
"""What happens to the antecedents: nothing; another order; a quarter of one's tokens become others; the first goes; a
stranger (a passage of another text) comes in; all but the last go; a stranger takes the place of one; the last goes;
strangers take all places; the chunk comes to stand first. Of seven antecedents: nothing; the first two go; these go and
two strangers come in behind the others, so that the chunk is recalled to the window's end; one is edited; strangers
take the places of two; three of them go. Last, of three: they stand there as encoded, each without a patch, and what
is compared with is a forward of the chunk behind these."""


@dataclass(frozen=True)
class Case:
    """One reuse of a patch, measured.

    Attributes:
        corpus: what the text is from.
        text: its number.
        kind: of `KINDS`.
        formed: names of the antecedents, in order.
        before: names of what stands before the chunk now.
        mass: attention to each antecedent, the preamble and the chunk itself while the patch was formed, [L, n + 2].
        changes: how far attention outputs have moved in every layer; see `kamera_jax.Staleness.change`.
        reuse: mean KL of reusing the patch, in nats.
        blind: of the chunk without a patch.
    """

    corpus: str
    text: int
    kind: str
    formed: tuple[str, ...]
    before: tuple[str, ...]
    mass: list[list[float]]
    changes: list[float]
    reuse: float
    blind: float

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Case":
        """What `plain` gave."""
        return cls(**{**plain, "formed": tuple(plain["formed"]), "before": tuple(plain["before"])})


@dataclass(frozen=True)
class Text:
    """The passages of a text by name, ``p0`` to ``p7``, strangers, ``s0`` to ``s6``, and the tokens behind the last."""

    passages: dict[str, np.ndarray]
    behind: np.ndarray


@lru_cache
def texts(vlm: Any, name: str) -> list[Text]:
    """All texts of a corpus, in an order drawn once; the strangers of each are passages of the next two."""
    reader = Reader(vlm, corpus.read(name))
    rows = reader.chosen(SEED, PASSAGES * TOKENS + BEHIND)
    found = []
    for number, row in enumerate(rows):
        passages = {f"p{i}": row[i * TOKENS : (i + 1) * TOKENS] for i in range(PASSAGES)}
        others = [rows[(number + 1) % len(rows)], rows[(number + 2) % len(rows)]]
        for i in range(PASSAGES - 1):
            passages[f"s{i}"] = others[i % 2][i * TOKENS : (i + 1) * TOKENS]
        found.append(Text(passages, row[PASSAGES * TOKENS :]))
    return found


def drifted(rng: np.random.Generator, kind: str, formed: Sequence[str]) -> list[str]:
    """What stands before the chunk after a drift of its antecedents; an edited passage has an ``e`` behind its name.

    A passage as it is encoded alone has a ``b`` there.
    """
    kind = kind.removeprefix("long, ")
    before = list(formed)
    place = int(rng.integers(len(before)))
    strangers = [f"s{i}" for i in range(PASSAGES - 1)]
    if kind == "order":
        while before == list(formed):
            before = [str(name) for name in rng.permutation(before)]
    elif kind == "edit":
        before[place] += "e"
    elif kind == "first gone":
        del before[0]
    elif kind == "insertion":
        before.insert(int(rng.integers(len(before) + 1)), strangers[0])
    elif kind == "only the last left":
        del before[:-1]
    elif kind == "one stranger":
        before[place] = strangers[0]
    elif kind == "last gone":
        del before[-1]
    elif kind == "all strangers":
        before = strangers[: len(before)]
    elif kind == "to the front":
        before = []
    elif kind == BLIND:
        before = [f"{name}b" for name in before]
    elif kind == "slid":
        del before[:2]
    elif kind == "back at the end":
        before = [*before[2:], *strangers[:2]]
    elif kind == "two strangers":
        for new, at in zip(strangers, rng.choice(len(before), 2, replace=False), strict=False):
            before[int(at)] = new
    elif kind == "half gone":
        gone = set(rng.choice(len(before), 3, replace=False).tolist())
        before = [name for i, name in enumerate(before) if i not in gone]
    return before


class Judged:
    """The judged passage of one text with its patch behind some antecedents, and windows of what stands before it."""

    def __init__(self, vlm: Any, text: Text, formed: Sequence[str]) -> None:
        """Encode it and form its patch."""
        self.vlm = vlm
        self.text = text
        self.formed = tuple(formed)
        self.chunk = encode_segment(vlm, self._segment(f"p{PASSAGES - 1}"))
        self._empty = Window.empty(vlm, (len(formed) + 2) * TOKENS + 2 * BEHIND)
        self._chain = [self._empty]
        for name in formed:
            self._chain.append(self._run(self._chain[-1], name))
        spec = kj.SketchSpec(tuple(range(vlm.spec.layers)))
        self.patch = kj.form_patch(vlm, self.chunk, context=self._chain[-1], sketch=spec)
        self._then = self._reread(self._chain[-1])

    def case(self, corpus_name: str, number: int, kind: str) -> Case:
        """A drift of a kind, always the same for the same text."""
        rng = np.random.default_rng((SEED, number, KINDS.index(kind)))
        before = drifted(rng, kind, self.formed)
        window = self.window(before)
        conditioned, _ = run_chunk(self.vlm, window, self.chunk)
        full = self._logits(kj.append(window, conditioned))
        reuse = self._logits(kj.append(window, self.chunk, self.patch))
        blind = self._logits(kj.append(window, self.chunk))
        moved = np.asarray(changes(self._then, self._reread(window)))
        return Case(
            corpus=corpus_name,
            text=number,
            kind=kind,
            formed=self.formed,
            before=tuple(before),
            mass=[[rounded(value) for value in row] for row in columns_of(self.patch, "mass")],
            changes=[rounded(value) for value in moved],
            reuse=rounded(metrics.kl(full, reuse).mean()),
            blind=rounded(metrics.kl(full, blind).mean()),
        )

    def window(self, before: Sequence[str]) -> Window:
        """A prefilled window of these passages; as much of it as was prefilled already is not run again."""
        same = 0
        while same < min(len(before), len(self.formed)) and before[same] == self.formed[same]:
            same += 1
        window = self._chain[same]
        for name in before[same:]:
            window = self._run(window, name)
        return window

    def _run(self, window: Window, name: str) -> Window:
        segment = self._segment(name)
        chunk = encode_segment(self.vlm, segment) if name[-1] == "b" else run_chunk(self.vlm, window, segment)[0]
        return kj.append(window, chunk)

    def _segment(self, name: str) -> Segment:
        ids = self.text.passages[name.rstrip("eb")].copy()
        if name.endswith("e"):
            part = slice(TOKENS // 2 - TOKENS // 8, TOKENS // 2 + TOKENS // 8)
            ids[part] = self.text.passages[f"s{PASSAGES - 2}"][part]
        return segment_of(self.vlm, Tokens.of(tuple(int(each) for each in ids)))

    def _reread(self, window: Window) -> jax.Array:
        sketch = self.patch.sketch
        assert sketch is not None
        there = layers_before(window, len(window.entries), sketch.spec.layers)
        base = jnp.float32(window.next_position)
        own = (self.chunk.kv, self.patch.factors, self.chunk.positions)
        return reread_jit(sketch, *own, *there, base, spec=window.spec)[0]

    def _logits(self, window: Window) -> jax.Array:
        behind = segment_of(self.vlm, Tokens.of(tuple(int(each) for each in self.text.behind)))
        at = np.arange(BEHIND, dtype=np.int32)
        base = np.float32(window.next_position)
        logits = run(self.vlm.params, behind, window.state, at, base, forward=self.vlm.forward).logits
        assert logits is not None
        return logits


def rounded(value: Any, digits: int = 4) -> float:
    """A few digits of a number, for files."""
    return float(f"{float(value):.{digits}g}")


def measure(
    vlm: Any, name: str, count: int, known: set[tuple[str, int, str]], kinds: Sequence[str] = KINDS
) -> Iterator[Case]:
    """Cases of the first ``count`` texts of a corpus, but those that are known: (corpus, text, kind)."""
    names = [f"p{i}" for i in range(PASSAGES - 1)]
    for number, text in enumerate(texts(vlm, name)[:count]):
        for formed, group in ((names[-SHORT:], (*SHORT_KINDS, BLIND)), (names, LONG_KINDS)):
            missing = [kind for kind in group if kind in kinds and (name, number, kind) not in known]
            if missing:
                judged = Judged(vlm, text, formed)
                for kind in missing:
                    yield judged.case(name, number, kind)
