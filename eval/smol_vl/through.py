"""The last part of the training: pages of real text, read through the frozen language model.

What a misread token costs is what the language model makes of it: its next tokens behind a page are to be those that it
says behind the same tokens as text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eval.smol_vl.learner import Learner
from eval.smol_vl.words import FACES, SIZES
from kamera_jax.kv import Segment
from models.blocks.decoder import DecoderConfig
from models.blocks.params import Params
from models.forward import forward
from models.media.typeset import Face, Piece, page
from models.ports.smol_vl.boxes import boxes
from models.ports.smol_vl.tower import BEST, Spelling, TowerConfig, codes, spelled

RATE = 2e-4
WARM_UP = 20
WIDTHS = (320, 480, 640)
"""Of a page, in pixels."""


class Lines:
    """Draws pages of running text, as documents have it."""

    def __init__(self, ids: Sequence[int], pieces: dict[int, Piece], tokens: int, seed: int) -> None:
        """Take the tokens of a text that can be drawn; every page has so many, and begins with a word."""
        order = sorted(pieces)
        self._ids = np.asarray([token for token in ids if token in pieces], np.int32)
        self._places = np.searchsorted(order, self._ids)
        self._pieces = pieces
        self._tokens = tokens
        self._rng = np.random.default_rng(seed)
        starts = [i for i, token in enumerate(self._ids.tolist()[: len(self._ids) - tokens]) if pieces[token].apart]
        if not starts:
            raise ValueError(f"the text has {len(self._ids)} tokens that can be drawn; a page needs {tokens}")
        self._starts = np.asarray(starts)

    def draw(self, faces: Sequence[str] = FACES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pictures of a page's tokens f32[n, P], the tokens, and their places in the spelling."""
        rng = self._rng
        start = int(rng.choice(self._starts))
        ids = self._ids[start : start + self._tokens]
        face = Face(str(rng.choice(faces)), int(rng.choice(SIZES)))
        image = page([self._pieces[token] for token in ids.tolist()], face, int(rng.choice(WIDTHS)))
        pictures = boxes(image) * np.float32(rng.uniform(0.7, 1.0))
        noise = rng.standard_normal(pictures.shape, np.float32) * np.float32(rng.uniform(0.0, 0.06))
        return pictures + noise, ids, self._places[start : start + self._tokens]


class ThroughModel(Learner):
    """The tower in training, with the language model behind it."""

    def __init__(
        self,
        config: TowerConfig,
        spelling: Spelling,
        params: Params,
        language: tuple[DecoderConfig, Params],
        preamble: Sequence[int] = (),
    ) -> None:
        """Start from a tower that reads; ``language`` is trained by nothing, and reads the preamble first."""
        super().__init__(config, spelling, params, rate=RATE, warm_up=WARM_UP)
        self._text, self._frozen = language
        self._ids = jnp.asarray(spelling.ids)
        self._preamble = jnp.asarray(preamble, jnp.int32)

    def read(self, page: tuple[np.ndarray, np.ndarray, np.ndarray], done: float) -> tuple[jax.Array, jax.Array]:
        """One step on a page of `Lines`; its loss, and the share of tokens read."""
        return self.step((*page, self._frozen), done)

    def loss(
        self,
        params: Params,
        boxes: Float[Array, "n P"],
        tokens: Int[Array, " n"],
        places: Int[Array, " n"],
        frozen: Params,
    ) -> tuple[jax.Array, jax.Array]:
        """Nats between what follows the page and what follows the text, and those by which its tokens are misread."""
        table = params["scale"] * spelled(params, *self.rows)
        scores = codes(params, self.config, boxes) @ table.T
        shares, best = jax.lax.top_k(scores, BEST)
        embeddings = frozen["embed"]["w"].astype(jnp.float32)[self._ids[best]]
        seen = jnp.einsum("pk,pke->pe", jax.nn.softmax(shares, axis=-1), embeddings)
        wanted = jax.nn.log_softmax(self._next(frozen, tokens, None))
        given = jax.nn.log_softmax(self._next(frozen, tokens, seen))
        apart = jnp.sum(jnp.exp(wanted) * (wanted - given), axis=-1).mean()
        misread = -jnp.take_along_axis(jax.nn.log_softmax(scores), places[:, None], axis=1).mean()
        return apart + misread, (best[:, 0] == places).mean()

    def _next(self, frozen: Params, tokens: Int[Array, " n"], seen: Float[Array, "n E"] | None) -> Float[Array, "n V"]:
        """Next-token logits behind every token of a page, or of the same text."""
        before = len(self._preamble)
        length = before + len(tokens)
        inputs: dict[str, Any] = {"tokens": jnp.concatenate([self._preamble, tokens])}
        if seen is not None:
            inputs["media"] = jnp.pad(seen, ((before, 0), (0, 0)))
            inputs["is_media"] = jnp.arange(length) >= before
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32), (self._text.rope.axes, length))
        segment = Segment(inputs, positions, jnp.int32(length))
        output = forward(self._text, {"text": frozen}, segment, None, logits_at=jnp.arange(before, length))
        assert output.logits is not None
        return output.logits.astype(jnp.float32)


def tune(
    learner: ThroughModel,
    lines: Lines,
    steps: int,
    log: Callable[[dict[str, Any]], None],
    keep: Callable[[Params], None],
) -> Params:
    """Train so many steps, a page each; see `eval.smol_vl.train.train` for ``log`` and ``keep``."""
    recent: list[tuple[jax.Array, jax.Array]] = []
    for number in range(1, steps + 1):
        recent.append(learner.read(lines.draw(), number / steps))
        if number % max(steps // 10, 1) == 0:
            loss, right = np.mean(np.asarray(recent), axis=0)
            log({"through the model": number, "loss": round(float(loss), 4), "read": round(float(right), 4)})
            keep(learner.kept())
            recent = []
    return learner.kept()
