"""The first stages of a codec, as in ``"kvzip:0.5+merge:pivot"``: which tokens' rows are kept, and what they take in.

They go over a chunk with its model (`kamera_jax.inference.selection`); what stands behind them packs the rows that are
left.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from kamera_jax.compress.stage import MERGE, SELECT, RowStage
from kamera_jax.errors import BasisError, CodecError
from kamera_jax.identity import LOOKM
from kamera_jax.merging import MERGES

MEASURED = "measured"
"""Statistics of questions of the model, and not of the chunk's own queries."""

OPTIONS = {"knorm": ("small", "large"), "expected": (MEASURED,)}
"""What may stand behind the share of a selection."""

DIGEST = re.compile(r"[0-9a-f]{12}", re.ASCII)
"""What names statistics of questions in a codec, behind `MEASURED`."""

NEEDS = {
    "kvzip": "replay",
    "knorm": "replay",
    "expected": "queries",
    "tri": "queries",
    LOOKM: "queries",
    "keydiff": "",
    "leverage": "",
}
"""What the scores of each selection take beside keys: the chunk's own queries, or those of a replay of it."""


@dataclass(frozen=True)
class Select:
    """Keeps the rows that are worth most.

    Attributes:
        how: such as ``"kvzip"``; see `NEEDS`.
        share: of a chunk's rows; of ``"lookm"`` of those of its media tokens, as it keeps all of the text.
        name: as it is written.
        option: of ``"knorm"`` whether ``"small"`` or ``"large"`` keys are kept, nothing to ask a replay; of
            ``"expected"`` whether queries are those that were measured of the model's questions.
        measured: digest of these, the beginning of it, where it is written; chunks that were chosen by them say it.
    """

    how: str
    share: float
    name: str
    option: str = ""
    measured: str = ""

    def named(self, digest: str) -> "Select":
        """The same selection, whose name says what was measured of the model.

        Raises:
            BasisError: it was written with the digest of something else.
        """
        if self.measured not in ("", digest):
            raise BasisError(
                f"{self.name} takes what was measured under the digest {self.measured}, and of this model {digest} is "
                "known; give that basis, kamera_jax.compress.basis.hold(basis), or leave the digest out"
            )
        return self if self.measured else replace(self, name=f"{self.name}:{digest}", measured=digest)

    @property
    def kind(self) -> str:
        """Its place in a codec."""
        return SELECT

    @property
    def needs(self) -> frozenset[str]:
        """What it is to be given beside the chunk's KV."""
        return frozenset({NEEDS[self.how]} - {""}) if not self.option else frozenset()


@dataclass(frozen=True)
class Merge:
    """Has the kept rows take in the others.

    Attributes:
        how: one of `kamera_jax.merging.MERGES`.
    """

    how: str

    @property
    def kind(self) -> str:
        """Its place in a codec."""
        return MERGE

    @property
    def name(self) -> str:
        """As it is written."""
        return f"merge:{self.how}"

    @property
    def needs(self) -> frozenset[str]:
        """What it is to be given beside the chunk's KV: nothing."""
        return frozenset()


def select(how: str, *given: str) -> Select:
    """A selection of what is written behind its name.

    Raises:
        CodecError: the share is missing or none, or the option is not known.
    """
    text = ":".join((how, *given))
    share, *options = given or ("",)
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise CodecError(f"{how} needs a share of rows above 0 and of 1 at most, as in {how}:0.5; got {text!r:.80}")
    known = OPTIONS.get(how, ())
    digest = options.pop() if MEASURED in known and options[:1] == [MEASURED] and DIGEST.fullmatch(options[-1]) else ""
    if len(options) > 1 or any(option not in known for option in options):
        there = f"there are {', '.join(known)}" if known else "it has none"
        raise CodecError(f"{text!r:.80} has options that {how} does not know; {there}")
    return Select(how, value, text, options[0] if options else "", digest)


def merge(*given: str) -> Merge:
    """A merge of what is written behind its name.

    Raises:
        CodecError: there is no such way of merging.
    """
    text = ":".join(given)
    if text not in MERGES:
        near = get_close_matches(text, MERGES, n=1)
        hint = f"; did you mean merge:{near[0]}?" if near else "."
        raise CodecError(f"no way of merging {f'merge:{text}'!r:.80}{hint} There are {', '.join(MERGES)}")
    return Merge(text)


def check_rows(name: str, rows: Sequence[RowStage]) -> None:
    """Raise CodecError for a merge without a selection before it, or behind one that merges itself.

    Args:
        name: the codec's.
        rows: its stages that say which rows there are.
    """
    if not any(isinstance(stage, Merge) for stage in rows):
        return
    chosen = next((stage for stage in rows if isinstance(stage, Select)), None)
    if chosen is None:
        raise CodecError(
            f"{name!r:.80} has nothing to merge: it takes in the rows that a selection before it leaves out, as in "
            "kvzip:0.5+merge:pivot"
        )
    if chosen.how == LOOKM:
        raise CodecError(f"lookm merges by pivot itself; leave the merge out of {name!r:.80}")
