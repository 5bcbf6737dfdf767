"""From a change of attention to nats, and to what may be accepted: fitted on drifts whose KL was measured."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.guard.fidelity import verify
from kamera_jax.guard.staleness import staleness
from kamera_jax.kv import SketchSpec
from kamera_jax.window.changes import append
from kamera_jax.window.window import Window

FIELDS = ("model", "sketch", "changes", "kls")


@dataclass(frozen=True)
class Calibration:
    """Measured drifts of one model: how much attention had changed, and what reusing the patch then cost.

    Attributes:
        model: fingerprint of the model.
        sketch: what the sketches of its patches kept.
        changes: `kamera_jax.Staleness.change` of each drift.
        kls: what reuse cost there, in nats: mean KL(present reference ‖ reuse) over multi-hop probes.
    """

    model: str
    sketch: SketchSpec
    changes: tuple[float, ...]
    kls: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.changes) != len(self.kls) or not self.changes:
            raise ValueError(
                f"a calibration is one KL for each change, and at least one; got {len(self.changes)} changes and "
                f"{len(self.kls)} KL"
            )
        if not all(math.isfinite(value) and value >= 0 for value in self.changes):
            raise ValueError("changes are finite and not negative; measure them with kamera_jax.staleness")
        if not all(math.isfinite(value) for value in self.kls):
            raise ValueError("a KL of the calibration is not finite; leave such drifts out or find their cause")

    @cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Isotonic regression of KL on change, pool adjacent violators: ascending changes and their fitted KL."""
        order = np.argsort(self.changes, kind="stable")
        blocks: list[tuple[float, int]] = []
        for kl in np.asarray(self.kls)[order]:
            mean = float(kl)
            count = 1
            while blocks and blocks[-1][0] >= mean:
                before, n = blocks.pop()
                mean, count = (before * n + mean * count) / (n + count), n + count
            blocks.append((mean, count))
        return np.asarray(self.changes)[order], np.repeat([mean for mean, _ in blocks], [n for _, n in blocks])

    def estimate(self, change: float) -> float:
        """The KL, in nats, that goes with a change: never falling with it, infinite beyond all that was measured."""
        changes, fitted = self._steps
        place = int(np.searchsorted(changes, change, side="left"))
        return math.inf if place == len(changes) else float(fitted[place])

    def threshold(self, max_kl: float, *, failures: float = 0.01) -> float:
        """The largest change at which reuse may be accepted.

        Of drifts like the calibration's, up to a share ``failures`` of those accepted may be expected to cost more than
        ``max_kl``: so many of the calibration's own do, counting one failure and one drift more than there were.

        Returns:
            A change; negative if there are too few drifts to say so: 99 without a failure are needed by default.
        """
        order = np.argsort(self.changes, kind="stable")
        changes = np.asarray(self.changes)[order]
        failed = np.cumsum(np.asarray(self.kls)[order] > max_kl)
        counts = np.arange(1, len(changes) + 1)
        apart = np.append(changes[1:] > changes[:-1], True)  # drifts of one change are accepted together
        safe = np.flatnonzero(apart & (failed + 1 <= failures * (counts + 1)))
        return float(changes[safe[-1]]) if len(safe) else -1.0

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
            changes=tuple(map(float, read["changes"])),
            kls=tuple(map(float, read["kls"])),
        )


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
    they are typical. A few hundred harmless ones are needed before anything is accepted; see `Calibration.threshold`.
    Which layer to sketch is found by calibrating with several and keeping the one that accepts most.

    Raises:
        ValueError: no drifts, or patches with different sketches; else as `staleness` and `verify`.
    """
    changes = []
    kls = []
    sketches = set()
    for drift in drifts:
        changes.append(staleness(drift.window, drift.chunk, drift.patch).change)
        assert drift.patch.sketch is not None  # staleness has refused others
        sketches.add(drift.patch.sketch.spec)
        if len(sketches) > 1:
            raise ValueError(f"the patches keep different sketches, {sorted(map(str, sketches))}; form them alike")
        kls.append(max(verify(vlm, append(drift.window, drift.chunk, drift.patch), drift.probes).kl, 0.0))
    if not sketches:
        raise ValueError("there are no drifts to calibrate on; give a few hundred")
    return Calibration(vlm.spec.fingerprint, sketches.pop(), tuple(changes), tuple(kls))
