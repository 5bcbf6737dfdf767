"""What a storage dtype keeps: windows of chunks as they come back from the library, beside the same windows exact."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from eval.commands.demo import Scene, stage
from eval.run import metrics
from eval.tiny.story import sample_story
from kamera_jax import KV
from kamera_jax.batch.windows import BatchRunner, Stack, Windows, fit
from kamera_jax.guard.fidelity import kl
from kamera_jax.library import int8
from kamera_jax.record import Arrays
from models import load

SEED = 90_000_000
"""Far from every seed of training and of the other measurements."""

RANK = 12


def fidelity(model: str, episodes: int) -> dict[str, Any]:
    """KL and accuracy of windows whose chunks were stored in eight bits, blind and with patches fitted to exact KV."""
    vlm = load(model)
    runner = BatchRunner(vlm)
    stories = [sample_story(np.random.default_rng((SEED, i))) for i in range(episodes)]
    scene = stage(vlm, runner, stories, lambda *_: None)
    exact = scene.trio
    prefilled = runner.prefill(exact)
    patches = [None, *(fit(prefilled.conditioned[i], exact[i].kv, exact[i].length, rank=RANK) for i in (1, 2))]
    stored = [_stored(chunk) for chunk in exact]
    kept = [chunk for chunk, _ in stored]
    result: dict[str, Any] = {"model": model, "episodes": episodes, "rank": RANK}
    result["bytes_share"] = sum(size for _, size in stored) / sum(_size(chunk.kv) for chunk in exact)
    for kind, factors in (("one_hop", [None] * 3), ("two_hop", patches)):
        windows = {name: runner.reuse(chunks, factors) for name, chunks in (("exact", exact), ("int8", kept))}
        result |= _asked(runner, scene, kind, windows)
    return result


def _asked(runner: BatchRunner, scene: Scene, kind: str, windows: dict[str, Windows]) -> dict[str, float]:
    tails, answers = getattr(scene, kind)
    logits = {name: runner.ask(built, tails) for name, built in windows.items()}
    found = {f"{kind}_{name}": metrics.accuracy(each, answers) for name, each in logits.items()}
    return found | {f"{kind}_kl": float(kl(logits["exact"], logits["int8"]).mean())}


def _stored(chunk: Stack) -> tuple[Stack, int]:
    """The chunks after they were stored, and their bytes."""
    rots = []
    frees = []
    size = 0
    for rot, free in zip(np.asarray(chunk.kv.rot), np.asarray(chunk.kv.free), strict=True):
        leaves = int8.quantised(rot, free, chunk.length)
        size += sum(leaf.nbytes for leaf in leaves.values())
        back: Arrays = int8.restored(leaves, rot.dtype)
        rots.append(back["kv.rot"])
        frees.append(back["kv.free"])
    return Stack(KV(_joined(rots), _joined(frees)), chunk.segment, chunk.length, chunk.advance), size


def _joined(parts: Sequence[np.ndarray]) -> Any:
    return jnp.asarray(np.stack(parts))


def _size(kv: KV) -> int:
    return kv.rot.nbytes + kv.free.nbytes
