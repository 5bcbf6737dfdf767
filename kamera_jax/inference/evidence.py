"""What a chunk says of its own rows, when no question is known: its KV, its queries, a replay of it behind itself."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.chunk import Chunk, source_of
from kamera_jax.compress import scores
from kamera_jax.compress.basis import queries_of_model
from kamera_jax.compress.rows import MEASURED, Select
from kamera_jax.errors import BackboneError
from kamera_jax.forward import preamble_chunk
from kamera_jax.inference.encode import run_chunk
from kamera_jax.transfer import to_device
from kamera_jax.window.changes import append
from kamera_jax.window.window import Window, aligned


def queries_of(vlm: Backbone, chunk: Chunk, where: Literal["own", "replay"]) -> Float[Array, "L T N D"]:
    """The queries of a chunk's tokens, un-rotated and times the scale of the scores, of one forward.

    Args:
        vlm: the model that encoded it.
        chunk: with its source and a row for every token.
        where: ``"own"``: behind the preamble, as it was encoded; ``"replay"``: once more right behind itself, which is
            what KVzip (arXiv 2505.23416) takes for all questions there could be. A chunk that was encoded without a
            preamble is asked behind the model's all the same.

    Raises:
        BackboneError: the model does not say that it collects queries. MissingInputsError: the chunk lost its source.
    """
    source_of(chunk)
    _check_collects(vlm)
    window = Window.of_preamble(vlm)
    if where == "replay":
        room = aligned(preamble_chunk(vlm).length) + aligned(chunk.length)
        window = append(Window.empty(vlm, room), chunk)
    _, output = run_chunk(vlm, window, chunk, ("queries",))
    return output.aux["queries"]


def queries_of_question(vlm: Backbone, chunk: Chunk, question: str) -> tuple[Float[Array, "L T N D"], int]:
    """The queries of a question behind a chunk, as `queries_of` has them, and how many are valid.

    Raises:
        BackboneError: the model does not say that it collects queries.
    """
    _check_collects(vlm)
    room = aligned(preamble_chunk(vlm).length) + aligned(chunk.length)
    tail = vlm.tail(question)
    _, output = run_chunk(vlm, append(Window.empty(vlm, room), chunk), tail, ("queries",))
    return output.aux["queries"], int(tail.length)


def _check_collects(vlm: Backbone) -> None:
    if "queries" not in with_defaults(vlm).collects:
        raise BackboneError(
            f"{type(vlm).__name__} collects {tuple(with_defaults(vlm).collects)}; choosing rows by what queries read "
            "takes queries: return them in aux where collect asks, and name them in the backbone's collects; or "
            "choose by keys alone, as keydiff and leverage do"
        )


def row_scores(vlm: Backbone, chunk: Chunk, chosen: Select) -> scores.Scores:
    """What each row of a chunk is worth by a selection, in every layer and KV head [L, H, T].

    Args:
        vlm: the model that encoded it.
        chunk: with its source and a row for every token.
        chosen: how.

    Raises:
        BackboneError, MissingInputsError: see `queries_of`. BasisError: nothing is known of the model's questions.
    """
    spec = vlm.spec
    length = np.int32(chunk.length)
    kv, positions, length = to_device((chunk.kv, chunk.positions, length))
    keys, _ = scores.heads_of(kv, spec.heads)
    if chosen.how == "keydiff":
        return _key_difference(keys, length)
    if chosen.how == "leverage":
        return _leverage(keys, length)
    if chosen.how == "knorm" and chosen.option:
        return _key_norm(keys, length, chosen.option == "large")
    if chosen.option == MEASURED:
        queries = jnp.asarray(queries_of_model(spec, vlm.fingerprint).drawn)
    else:
        queries = queries_of(vlm, chunk, "replay" if "replay" in chosen.needs else "own")
    own = (kv, positions, length)
    if chosen.how in ("kvzip", "knorm"):
        read = scores.received(queries, length, positions + jnp.float32(chunk.advance), *own, spec=spec)
        return read if chosen.how == "kvzip" else _key_norm(keys, length, scores.norms_read(keys, read, length) > 0)
    if chosen.how == "lookm":
        return scores.received(queries, length, positions, *own, spec=spec, causal=True, how="sum")
    steps = np.arange(scores.AHEAD, dtype=np.float32) + np.float32(chunk.advance)
    offsets = np.tile(steps, (spec.rope.axes, 1))
    asked = queries.shape[1] if chosen.option == MEASURED else length
    return scores.foreseen(queries, asked, *own, jnp.asarray(offsets), spec=spec, how=chosen.how)


_key_difference = jax.jit(scores.key_difference)
_leverage = jax.jit(scores.leverage)
_key_norm = jax.jit(lambda keys, length, large: scores.key_norm(keys, length, large=large))
