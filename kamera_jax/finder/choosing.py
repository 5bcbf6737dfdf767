"""Which heads of a model find the chunk that answers a question: chosen one after another on known answers."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from kamera_jax.arguments import check_text, check_type, whole_number
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk
from kamera_jax.errors import ModelMismatchError, RetrievalError
from kamera_jax.finder.heads import RetrievalHeads
from kamera_jax.finder.scoring import Asked, Head, asked, is_absorbed, key_head, match, standardised
from kamera_jax.finder.slices import BLOCK_ROWS, block_of, keys_of
from kamera_jax.kv import KV


def choose(
    vlm: Backbone, pairs: Iterable[tuple[str, Chunk | Sequence[Chunk]]], others: Iterable[Chunk], most: int
) -> RetrievalHeads:
    """See `kamera_jax.Finder.calibrate`."""
    most = whole_number(most, "heads", 1)
    questions: list[str] = []
    right: list[set[int]] = []
    chunks: list[Chunk] = []
    places: dict[str, int] = {}
    for question, chosen in pairs:
        check_text(question, "a question")
        questions.append(question)
        right.append(
            {_place(vlm, each, chunks, places) for each in ([chosen] if isinstance(chosen, Chunk) else chosen)}
        )
    for each in others:
        _place(vlm, each, chunks, places)
    if not questions or not all(0 < len(each) < len(chunks) for each in right):
        raise RetrievalError(
            f"there are {len(questions)} questions and {len(chunks)} chunks; expected at least one question, each with "
            "a right chunk and wrong ones to tell it from: give others="
        )
    queries = [asked(vlm, question) for question in questions]
    matched = _scores(vlm, queries, chunks)
    wrong = [np.delete(np.arange(len(chunks)), sorted(good)) for good in right]
    scores = np.stack([standardised(each, among) for each, among in zip(matched, wrong, strict=True)])
    count = int(queries[0].queries.shape[2])
    chosen_heads = _greedy(scores, right, most)
    first = float(np.mean([rank == 0 for rank in _ranks(scores, right, chosen_heads)]))
    heads = tuple(divmod(head, count) for head in chosen_heads)
    return RetrievalHeads(vlm.spec.fingerprint, heads, (), len(questions), first, len(chunks))


def _place(vlm: Backbone, chunk: Chunk, chunks: list[Chunk], places: dict[str, int]) -> int:
    check_type(chunk, Chunk, "a chunk of the pairs", "what encode gave")
    if chunk.model != vlm.spec.fingerprint:
        raise ModelMismatchError(
            f"a chunk is of model {chunk.model[:12]}, and this is {vlm.spec.fingerprint[:12]}; encode it with this one"
        )
    name = chunk.key or f"{id(chunk)}"
    if name not in places:
        places[name] = len(chunks)
        chunks.append(chunk)
    return places[name]


def _scores(vlm: Backbone, queries: Sequence[Asked], chunks: Sequence[Chunk]) -> np.ndarray:
    """How well every head matches: [questions, chunks, L * N]."""
    spec = vlm.spec
    layers, _, count, _ = queries[0].queries.shape
    absorbed = is_absorbed(spec, queries[0].queries)
    found = np.zeros((len(queries), len(chunks), layers * count), np.float32)
    by_rows: dict[int, list[int]] = {}
    for place, chunk in enumerate(chunks):
        by_rows.setdefault(chunk.kv.rot.shape[1], []).append(place)
    for layer in range(layers):
        heads = tuple(Head(0, head, key_head(spec, queries[0].queries, head)) for head in range(count))
        for rows, places in by_rows.items():
            most = max(BLOCK_ROWS // rows, 1)
            for begin in range(0, len(places), most):
                batch = places[begin : begin + most]
                kvs = [chunks[place].kv for place in batch]
                slices = [_layer(kv, layer, spec.heads, absorbed)[0] for kv in kvs]
                block = block_of([str(place) for place in batch], slices, [chunks[place].length for place in batch])
                for number, each in enumerate(queries):
                    here = each.queries[layer : layer + 1]
                    scored = match(here, jnp.int32(each.length), block.arrays, block.lengths, heads=heads)
                    found[number, batch, layer * count : (layer + 1) * count] = np.asarray(scored)[: len(batch)]
    return found


def _layer(kv: KV, layer: int, heads: int, absorbed: bool) -> np.ndarray:
    """One layer's keys [1, G, T, D]."""
    if absorbed:
        return keys_of(KV(kv.rot[layer : layer + 1], kv.free[layer : layer + 1]), 1)
    return keys_of(np.asarray(kv.rot[layer : layer + 1]), heads)


def _greedy(scores: np.ndarray, right: Sequence[set[int]], most: int) -> list[int]:
    """Heads, of which each helps most beside those before it."""
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < most:
        rest = [head for head in range(scores.shape[2]) if head not in chosen]
        gained = {head: float(np.mean(1 / (1 + _ranks(scores, right, [*chosen, head])))) for head in rest}
        head = max(rest, key=lambda each: gained[each], default=None)
        if head is None or gained[head] <= best:
            break
        chosen.append(head)
        best = gained[head]
    return chosen


def _ranks(scores: np.ndarray, right: Sequence[set[int]], heads: Sequence[int]) -> np.ndarray:
    """Of each right chunk of each question, how many wrong ones match as well or better."""
    ranks = []
    for total, good in zip(scores[:, :, list(heads)].sum(axis=-1), right, strict=True):
        wrong = np.sort(np.delete(total, sorted(good)))
        ranks += [len(wrong) - np.searchsorted(wrong, total[place], side="left") for place in sorted(good)]
    return np.asarray(ranks, np.float64)
