"""Contexts as they come, one after another, filled by one method and asked; chunks are kept from one to the next."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import kamera_jax as kj
from eval.methods import Batch, parse
from eval.methods.questions import ByQuestion
from eval.methods.reuse import Blind
from eval.run.answering import window_of
from eval.run.encoder import KEPT_BYTES, Encoder
from eval.run.runner import Runners
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.batch.windows import Stack, Windows
from kamera_jax.forward import run
from kamera_jax.kv import bucket, check_length
from kamera_jax.transfer import as_f32
from kamera_jax.window.window import aligned
from models.items import Preprocessed
from models.vlm import VisionLanguageModel


class Server:
    """A model that answers by one method, from windows that are filled as in an evaluation.

    The context that was asked about last stays filled, so that further questions about it run nothing of it again.
    """

    def __init__(self, vlm: VisionLanguageModel, method: str, kept: int = KEPT_BYTES) -> None:
        """Run nothing yet.

        Args:
            vlm: the model.
            method: its name; see `eval.methods.parse`.
            kept: bytes of chunks that are kept from one context to the next.

        Raises:
            ValueError: there is no such method, or it waits for the question.
        """
        self.vlm = vlm
        self.method = parse(method)
        if any(isinstance(part, ByQuestion) for part in self.method.parts):
            raise ValueError(
                f"the method {method!r} waits for the question, and a context is filled before one is asked; leave "
                "select and prophet out"
            )
        self._encode = Encoder(vlm, kept)
        self._runners = Runners(vlm, None, None)
        self._last: tuple[tuple[str, ...], tuple[Batch, Windows]] | None = None

    def read(self, items: Sequence[Any]) -> list[Preprocessed]:
        """Items with their contents' digests, which are taken in the items' place.

        Raises:
            ValueError: one cannot be read.
        """
        return [self.vlm.preprocess(item) for item in items]

    def answers(
        self,
        items: Sequence[Any],
        questions: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: Sequence[str] = (),
        key: jax.Array | None = None,
    ) -> list[str]:
        """The answers to questions about one context, each asked of the window as it was filled.

        Args:
            items: of the context, in order, each a chunk; none is the preamble alone.
            questions: one at least; they are generated together.
            max_new_tokens: the longest answer; no longer than the model's length leaves room for.
            temperature, top_k, top_p, stop, key: see `kamera_jax.generate_many`.

        Raises:
            ValueError: an item cannot be read, a question is empty, or items and question are longer than the model.
        """
        tails = [self.vlm.tail(question) for question in questions]
        chunks = self._encode(items)
        most = max_new_tokens
        if self.vlm.spec.max_positions is not None:
            left = self.vlm.spec.max_positions - self._end(chunks) - max(float(tail.advance) for tail in tails)
            most = max(1, min(most, int(left)))
        window = self._window(chunks, bucket(max(int(tail.length) for tail in tails) + most))
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": tuple(stop), "key": key}
        windows = [window] * len(questions)
        together = kj.generate_many(self.vlm, windows, list(questions), max_new_tokens=most, **drawn)
        return [answer.text for answer in together]

    def log_likelihoods(self, items: Sequence[Any], question: str, answers: Sequence[str]) -> list[tuple[float, bool]]:
        """Of each answer to a question the sum of its tokens' log-probabilities, nats, and whether all are the greedy.

        An answer begins right behind the assistant header; what ends a turn is not counted. An empty question is the
        assistant header alone.

        Raises:
            ValueError: an answer has no tokens, nothing stands before it, or it is longer than the model has room for.
        """
        window = self._window(self._encode(items), 0)
        return [self._scored(window, question, answer) for answer in answers]

    def _scored(self, window: kj.Window, question: str, answer: str) -> tuple[float, bool]:
        asked, said = self.vlm.preprocess.answered(question, answer)
        if not asked or not said:
            what = "the question and what a template writes behind it" if said else f"the answer {answer!r}"
            raise ValueError(f"{what} has no tokens; expected one at least, so that there is something to predict")
        tail = segment_of(self.vlm, Tokens((*asked, *said)))
        check_length(self.vlm.spec, window.next_position, float(tail.advance))
        padded = bucket(len(said))
        at = np.minimum(len(asked) - 1 + np.arange(padded, dtype=np.int32), len(asked) + len(said) - 2)
        tokens = np.zeros(padded, np.int32)
        tokens[: len(said)] = said
        base = as_f32(window.next_position)
        logits = run(self.vlm.params, tail, window.state, at, base, forward=self.vlm.forward).logits
        chances, greedy = jax.device_get(_chances(logits, jnp.asarray(tokens)))
        total = chances[: len(said)].astype(np.float64).sum()
        return float(total), bool((greedy[: len(said)] == tokens[: len(said)]).all())

    def _end(self, chunks: Sequence[kj.Chunk]) -> float:
        """The position behind these chunks."""
        return float(self.vlm.preamble.advance or 0) + sum(float(chunk.advance) for chunk in chunks)

    def _window(self, chunks: Sequence[kj.Chunk], room: int) -> kj.Window:
        """The context filled by the method, with so many free slots behind it."""
        slots = aligned(int(self.vlm.preamble.length))
        if not chunks:
            return kj.Window.empty(self.vlm, slots + room)
        check_length(self.vlm.spec, 0.0, self._end(chunks))
        key = tuple(chunk.key for chunk in chunks)
        if self._last is None or self._last[0] != key:
            self._last = None  # its arrays are given back before others are made
            self._last = (key, self._filled(chunks))
        batch, windows = self._last[1]
        return window_of(self.vlm, batch, chunks, jax.tree.map(lambda leaf: leaf[0], windows.state), room)

    def _filled(self, chunks: Sequence[kj.Chunk]) -> tuple[Batch, Windows]:
        """A context of its own, and its window; full prefill is left out where the method reads nothing of it."""
        stacks = tuple(Stack.of([chunk]) for chunk in chunks)
        needed = aligned(int(self.vlm.preamble.length)) + sum(aligned(chunk.length) for chunk in chunks)
        runner, shallow, _ = self._runners.of(needed)
        blind = runner.reuse(stacks, [None] * len(stacks))
        reads_full = not all(isinstance(part, Blind) for part in self.method.parts)
        batch = Batch(runner, shallow, stacks, runner.prefill(stacks) if reads_full else blind, blind)
        return batch, self.method.fill(batch, self.method.prepare(batch))


@jax.jit
def _chances(logits: Float[Array, "n V"], tokens: Int[Array, " n"]) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """Log-probabilities of tokens, and the most likely ones."""
    chances = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(chances, tokens[:, None], 1)[:, 0], logits.argmax(-1).astype(jnp.int32)
