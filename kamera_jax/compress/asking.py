"""How the questions of a model ask, measured once: the mean and the covariance of the queries of each head."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from kamera_jax.errors import BasisError

REMEDY = "measure it, kamera_jax.calibrate_codec(vlm, chunks, questions=[…]), and keep it, models.hub.basis.keep"


@dataclass(frozen=True, eq=False, repr=False)
class QueryStatistics:
    """Of the queries of questions, un-rotated and times the scale of the scores.

    Attributes:
        model: of which model it is; see `kamera_jax.compress.basis.subject`.
        mean: of each layer and query head f32[L, N, D].
        root: of their covariance, which is root rootᵀ, f32[L, N, D, D].
    """

    model: str
    mean: Float[np.ndarray, "L N D"]
    root: Float[np.ndarray, "L N D E"]

    def __post_init__(self) -> None:
        if self.root.shape != (*self.mean.shape, self.mean.shape[-1]):
            raise BasisError(f"queries have a mean [L, N, D] and a root [L, N, D, D]; got {self.root.shape}; {REMEDY}")
        if not all(each.dtype == np.float32 and np.isfinite(each).all() for each in (self.mean, self.root)):
            raise BasisError(f"statistics of queries are not of finite float32; {REMEDY}")

    def __repr__(self) -> str:
        layers, heads, width = self.mean.shape
        return f"<QueryStatistics of {layers} layers, {heads} heads of {width} features>"

    @cached_property
    def digest(self) -> str:
        """What names it in the codec of a chunk whose rows it chose."""
        made = hashlib.sha256(self.model.encode())
        for each in (self.mean, self.root):
            made.update(np.ascontiguousarray(each, "<f4").tobytes())
        return made.hexdigest()[:12]

    @cached_property
    def drawn(self) -> Float[np.ndarray, "L Q N D"]:
        """2 D queries that have this mean and covariance: the mean, and from it √D of each column of the root away."""
        apart = np.moveaxis(np.sqrt(np.float32(self.mean.shape[-1])) * self.root, 3, 1)
        return np.concatenate([self.mean[:, None] + apart, self.mean[:, None] - apart], axis=1)


class QuerySums:
    """What `QueryStatistics` are made of, taken up one question at a time, in float64."""

    def __init__(self) -> None:
        """Nothing so far."""
        self._count = 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def add(self, queries: Any, length: int) -> None:
        """Queries [L, T, N, D] of a question, of which so many are valid."""
        x = np.asarray(queries, np.float64)[:, :length]
        self._count += x.shape[1]
        self._sum = self._sum + x.sum(1)
        self._squares = self._squares + np.einsum("ltnd,ltne->lnde", x, x)

    def of(self, model: str) -> QueryStatistics:
        """Of all that was added.

        Raises:
            BasisError: that was nothing.
        """
        if self._count < 1:
            raise BasisError(f"statistics of queries take at least one question; {REMEDY}")
        mean = self._sum / self._count
        covariance = self._squares / self._count - np.einsum("lnd,lne->lnde", mean, mean)
        variance, basis = np.linalg.eigh(covariance)
        root = basis * np.sqrt(np.maximum(variance, 0))[:, :, None, :]
        return QueryStatistics(model, mean.astype(np.float32), root.astype(np.float32))
