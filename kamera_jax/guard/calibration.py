"""From what changed before a chunk to nats, and to what may be accepted: the prior, sharpened by measured drifts.

The logarithm of the KL is regressed on that of the change of attention (`kamera_jax.staleness`) and on that of what the
prior expects (`kamera_jax.guard.prior`). The prior takes part as so many observations that agree with it: with few
drifts the estimate stays near it, with many it is theirs.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr

from kamera_jax.arguments import check_type
from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.guard import prior
from kamera_jax.guard.fidelity import verify
from kamera_jax.guard.staleness import staleness
from kamera_jax.handle import columns_of
from kamera_jax.kv import SketchSpec
from kamera_jax.window.changes import append
from kamera_jax.window.window import Window

Numbers = Sequence[float] | Float[np.ndarray, " n"]
"""One of each drift."""

SCATTER = 1.0
"""Standard deviation of the logarithm of a KL about what the prior expects."""

WEIGHT = 10.0
"""Observations that the prior counts as."""

LEAST_CHANGE = 1e-3
LEAST_KL = 1e-5
"""Below these, changes and KL are alike: rounding."""

CENTRES = (0.0, math.log(0.3), math.log(0.01))
"""Of the regressors: a constant, and logarithms of a change and of an expected KL as they often are."""

COUNTED = 300
"""From so many drifts on it is counted what was accepted wrongly; with fewer the regression may say it too."""

CAUTION = 0.5
"""By the regression a share of failures is accepted that is so much smaller: drifts of one text are alike, and so there
are fewer of them than there seem to be."""

MEASURED = ("changes", "kls", "lost", "added", "moved", "blind")
FIELDS = ("model", "sketch", *MEASURED)


@dataclass(frozen=True)
class Calibration:
    """Measured drifts of one model: what had changed before the chunk, and what reusing its patch then cost.

    Attributes:
        model: fingerprint of the model.
        sketch: what the sketches of its patches kept.
        changes: `kamera_jax.Staleness.change` of each drift.
        kls: what reuse cost there, in nats: mean KL(present reference ‖ reuse) over multi-hop probes.
        lost, added, moved: shares of attention of each drift; see `kamera_jax.guard.prior.Difference`.
        blind: what the chunk without its patch cost there, in nats.
    """

    model: str
    sketch: SketchSpec
    changes: tuple[float, ...]
    kls: tuple[float, ...]
    lost: tuple[float, ...]
    added: tuple[float, ...]
    moved: tuple[float, ...]
    blind: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = {name: len(getattr(self, name)) for name in MEASURED}
        if len(set(counts.values())) != 1 or not self.changes:
            given = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"a calibration is one value of each kind for each drift, and at least one; got {given}")
        if not all(math.isfinite(value) and value >= 0 for value in self.changes):
            raise ValueError("changes are finite and not negative; measure them with kamera_jax.staleness")
        if not all(math.isfinite(value) for value in (*self.kls, *self.blind)):
            raise ValueError("a KL of the calibration is not finite; leave such drifts out or find their cause")
        if not all(0 <= value <= 1 for value in (*self.lost, *self.added, *self.moved)):
            raise ValueError("shares of attention are from 0 to 1; kamera_jax.guard.prior.difference gives them")

    def __repr__(self) -> str:
        low = min(self.kls)
        high = max(self.kls)
        return (
            f"<Calibration of {len(self.changes)} drifts of model {self.model[:12]}: KL {low:.2g} to {high:.2g} nats, "
            f"sketches of layers {self.sketch.layers}>"
        )

    def estimate(self, change: float, lost: float = 0.0, added: float = 0.0, moved: float = 0.0) -> float:
        """The KL, in nats, that is expected of reusing a patch; it rises with the change unless the drifts deny that.

        Args:
            change: `kamera_jax.Staleness.change`.
            lost, added, moved: see `kamera_jax.guard.prior.Difference`.
        """
        return float(self.estimates([change], [lost], [added], [moved])[0])

    def estimates(self, changes: Numbers, lost: Numbers, added: Numbers, moved: Numbers) -> Float[np.ndarray, " n"]:
        """`estimate` of many."""
        return self._fit.expected(_regressors(changes, lost, added, moved))

    def threshold(self, max_kl: float, *, failures: float = 0.01) -> float:
        """The largest estimate, in nats, at which reuse may be accepted.

        Of drifts like the calibration's, up to a share ``failures`` of those accepted may be expected to cost more than
        ``max_kl``. So many of the calibration's own do, counting one failure and one drift more than there were; or,
        with fewer than `COUNTED` drifts in all, the regression expects fewer yet (`CAUTION`), and no more have failed
        where the prior's observations, which fail as often as the regression says, are counted with them.

        Returns:
            An estimate that a drift of the calibration has; negative if none is safe.
        """
        rows = self._rows
        estimates = self._fit.expected(rows)
        order = np.argsort(estimates, kind="stable")
        estimates = estimates[order]
        failed = np.cumsum(np.asarray(self.kls)[order] > max_kl)
        counts = np.arange(1, len(order) + 1)
        apart = np.append(estimates[1:] > estimates[:-1], True)  # drifts of one estimate are accepted together
        safe = failed + 1 <= failures * (counts + 1)
        if len(order) < COUNTED:
            risk = np.cumsum(self._fit.risk(rows, max_kl)[order]) / counts
            safe |= (risk <= CAUTION * failures) & (failed + WEIGHT * risk <= failures * (counts + WEIGHT))
        last = np.flatnonzero(apart & safe)
        return float(estimates[last[-1]]) if len(last) else -1.0

    @property
    def bare_estimate(self) -> float:
        """The KL, in nats, that is expected of a chunk without a patch behind chunks that it was not run behind."""
        return (WEIGHT * prior.BARE + math.fsum(self.blind)) / (WEIGHT + len(self.blind))

    def accepts_bare(self, max_kl: float, *, failures: float = 0.01) -> bool:
        """Whether such a chunk is safe: so few of the drifts cost more than the budget without their patch."""
        failed = sum(kl > max_kl for kl in self.blind)
        expected = prior.accepted(self.bare_estimate, max_kl)
        return expected and failed + 1 <= failures * (len(self.blind) + 1)

    def to_json(self) -> str:
        """As JSON text, to be read again by `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        read: Any = json.loads(text)
        if not isinstance(read, Mapping) or set(read) != set(FIELDS):
            found = sorted(read) if isinstance(read, Mapping) else type(read).__name__
            raise ValueError(f"a calibration has the fields {', '.join(FIELDS)}; got {found}")
        kept = read["sketch"]
        if not isinstance(kept, Mapping) or set(kept) != {"layers", "weights", "tokens"}:
            raise ValueError(f"the sketch of a calibration has layers, weights and tokens; got {kept}")
        return cls(
            model=str(read["model"]),
            sketch=SketchSpec(tuple(map(int, kept["layers"])), tuple(map(float, kept["weights"])), int(kept["tokens"])),
            **{name: tuple(map(float, read[name])) for name in MEASURED},
        )

    @cached_property
    def _rows(self) -> Float[np.ndarray, "n 3"]:
        return _regressors(self.changes, self.lost, self.added, self.moved)

    @cached_property
    def _fit(self) -> "Fit":
        return Fit.of(self._rows, np.asarray(self.kls))


@dataclass(frozen=True)
class Fit:
    """A regression of log KL with the prior as observations: conjugate, so that the next log KL is Student's t.

    Attributes:
        slopes: what the prior is corrected by, per unit of each regressor.
        covariance: of the slopes, in units of the variance of one observation.
        degrees: of freedom.
        scale: standard deviation of one observation.
        smear: the mean KL over the exponential of the mean log KL.
    """

    slopes: Float[np.ndarray, " 3"]
    covariance: Float[np.ndarray, "3 3"]
    degrees: float
    scale: float
    smear: float

    @staticmethod
    def of(rows: Float[np.ndarray, "n 3"], kls: Float[np.ndarray, " n"]) -> "Fit":
        """The fit to drifts; to none it is the prior."""
        off = np.log(np.maximum(kls, LEAST_KL)) - _prior_mean(rows)
        x = rows - CENTRES
        precision = WEIGHT * np.eye(3) + x.T @ x
        covariance = np.linalg.inv(precision)
        slopes = covariance @ x.T @ off
        degrees = WEIGHT + len(rows)
        squares = WEIGHT * SCATTER**2 + off @ off - slopes @ precision @ slopes
        smear = (WEIGHT * math.exp(SCATTER**2 / 2) + np.exp(off - x @ slopes).sum()) / degrees
        return Fit(slopes, covariance, degrees, math.sqrt(squares / degrees), float(smear))

    def expected(self, rows: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """The KL that is expected, in nats."""
        return np.exp(self._mean(rows)) * self.smear

    def risk(self, rows: Float[np.ndarray, "n 3"], max_kl: float) -> Float[np.ndarray, " n"]:
        """The probability that it is more than a budget."""
        x = rows - CENTRES
        scale = self.scale * np.sqrt(1 + np.einsum("ni,ij,nj->n", x, self.covariance, x))
        return stdtr(self.degrees, (self._mean(rows) - math.log(max_kl)) / scale)

    def _mean(self, rows: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        return _prior_mean(rows) + (rows - CENTRES) @ self.slopes


def _prior_mean(rows: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """The mean log KL by the prior, whose estimate is the mean KL: that of a log-normal distribution is above it."""
    return rows[:, 2] - SCATTER**2 / 2


def _regressors(changes: Numbers, lost: Numbers, added: Numbers, moved: Numbers) -> Float[np.ndarray, "n 3"]:
    """A constant, the logarithm of the change, and that of what the prior expects."""
    shares = [np.asarray(each, np.float64) for each in (lost, added, moved)]
    expected = prior.expected_of(*shares)
    change = np.maximum(np.asarray(changes, np.float64), LEAST_CHANGE)
    return np.stack([np.ones_like(change), np.log(change), np.log(expected)], axis=-1)


@dataclass(frozen=True)
class Drift:
    """One reuse to calibrate on.

    Attributes:
        window: the context as it stands; its chunks have their inputs.
        chunk: what comes to its end, with its inputs.
        patch: formed elsewhere, with a sketch.
        probes: multi-hop questions about the chunk.
    """

    window: Window
    chunk: Chunk
    patch: Patch
    probes: Sequence[str]


def calibrate(vlm: Backbone, drifts: Iterable[Drift]) -> Calibration:
    """Measure drifts of one's own model and media, and what reuse costs there. Every drift is prefilled in full.

    Let the drifts be of the kinds that serving will meet, a good part of them harmful: what is accepted is as safe as
    they are typical. Ten already shift the prior, a few dozen let a part of what is safe be accepted, a few hundred
    most of it; see `Calibration.threshold`. Where nothing has changed there is nothing to learn. Which layer to sketch
    is found by calibrating with several and keeping the one that accepts most.

    Raises:
        ValueError: no drifts, or patches with different sketches; else as `staleness` and `verify`.
    """
    with_defaults(vlm)
    check_type(drifts, Iterable, "drifts", "a list of kamera_jax.guard.calibration.Drift")
    rows: list[tuple[float, ...]] = []
    sketches = set()
    for drift in drifts:
        change = staleness(drift.window, drift.chunk, drift.patch).change
        assert drift.patch.sketch is not None  # staleness has refused others
        sketches.add(drift.patch.sketch.spec)
        if len(sketches) > 1:
            raise ValueError(f"the patches keep different sketches, {sorted(map(str, sketches))}; form them alike")
        found = difference_of(drift.patch, drift.window.keys)
        kl, blind = (
            max(verify(vlm, append(drift.window, drift.chunk, patch), drift.probes).kl, 0.0)
            for patch in (drift.patch, None)
        )
        rows.append((change, kl, found.lost, found.added, found.moved, blind))
    if not sketches:
        raise ValueError("there are no drifts to calibrate on; give a few dozen, better a few hundred")
    measured = dict(zip(MEASURED, zip(*rows, strict=True), strict=True))
    return Calibration(vlm.spec.fingerprint, sketches.pop(), **measured)


def difference_of(patch: Patch, present: Sequence[str]) -> prior.Difference:
    """How the chunks of these keys differ from a patch's antecedents."""
    shares = prior.shares_of(columns_of(patch, "mass")[:, : len(patch.antecedents)])
    return prior.difference(patch.antecedents, shares, present)
