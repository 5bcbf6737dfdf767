"""`kamera demo`: accuracy of full prefill, blind reuse and patches, and of patches after reorder, slide and recall."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from eval.run import metrics
from eval.tiny import pages
from eval.tiny.episodes import Chunk, Recipe, question_text
from eval.tiny.glyphs import COLOUR_NAMES
from eval.tiny.story import ASKED, Story, sample_story
from kamera_jax import patch
from kamera_jax.backbone import Backbone
from kamera_jax.batch.windows import BatchRunner, Stack, Windows, fit, fit_size
from kamera_jax.kv import Factors, Segment
from kamera_jax.patch.size import Size

RANKS = (2, 4, 8, 12)
"""Ranks of the patches that are compared with full, blind and patches of the default size."""

DEFAULT = Size()
"""The size of a patch of `kamera_jax.form_patch` that is asked for none: the window operations use it."""

HELD_OUT_SEED = 20_000_000
"""The first of the data seeds: no training has used them."""

EPISODES = 200
"""Held-out episodes, unless another number is asked for."""

PAGES = ("first", "second", "third", "other")

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how many of its items are done, and how many there are."""


@dataclass(frozen=True)
class Scene:
    """Encoded episodes and their questions.

    Attributes:
        chunks: the four pages of every story, by name.
        one_hop, two_hop: tails [E, Q, ·] and answers (token ids) [E, Q].
    """

    chunks: dict[str, Stack]
    one_hop: tuple[Segment, np.ndarray]
    two_hop: tuple[Segment, np.ndarray]

    def head(self, count: int) -> "Scene":
        """The first ``count`` episodes alone."""

        def cut(tree: Any) -> Any:
            return jax.tree.map(lambda x: x[:count], tree)

        chunks = {
            name: Stack(cut(chunk.kv), cut(chunk.segment), chunk.length, chunk.advance)
            for name, chunk in self.chunks.items()
        }
        return Scene(chunks, cut(self.one_hop), cut(self.two_hop))

    @property
    def trio(self) -> list[Stack]:
        """The three pages of the main experiment."""
        return [self.chunks[name] for name in PAGES[:3]]


def stage(vlm: Backbone, runner: BatchRunner, stories: Sequence[Story], progress: Progress) -> Scene:
    """The stories' pages, rendered, encoded alone and stacked, with the questions about them."""
    encoded: dict[str, list[kj.Chunk]] = {name: [] for name in PAGES}
    total = len(stories) * len(PAGES)
    for i, (story, name) in enumerate(itertools.product(stories, PAGES)):
        chunk: Chunk = getattr(story, name)
        assert chunk.cells is not None
        encoded[name].append(kj.encode(vlm, pages.shown(chunk.cells)))
        progress("encoding pages", i + 1, total)

    def questions(kind: str) -> tuple[Segment, np.ndarray]:
        asked = [getattr(story, kind) for story in stories]
        tails = runner.tails([[question_text(glyph) for glyph, _ in episode] for episode in asked])
        answers = [[answer_token(vlm, colour) for _, colour in episode] for episode in asked]
        return tails, np.array(answers)

    return Scene(
        {name: Stack.of(chunks) for name, chunks in encoded.items()}, questions("one_hop"), questions("two_hop")
    )


def answer_token(vlm: Backbone, colour: int) -> int:
    """The token id of a colour's name."""
    return int(vlm.prepare(COLOUR_NAMES[colour]).inputs["tokens"][0])


def run(
    vlm: Backbone,
    *,
    episodes: int = EPISODES,
    ranks: Sequence[int] = RANKS,
    recipe: Recipe | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run the demo.

    Args:
        vlm: a model that reads the tiny pages.
        episodes: held-out episodes.
        ranks: of the patches to show beside those of the default size.
        recipe: of the chunks: pages by default; `eval.tiny.episodes.SEGMENTS` for segments of a video.
        progress: called after every step.

    Returns:
        What ``--json`` writes, except for the model; see the README.
    """
    runner = BatchRunner(vlm)
    stories = [sample_story(np.random.default_rng((HELD_OUT_SEED, i)), recipe) for i in range(episodes)]
    scene = stage(vlm, runner, stories, progress)
    steps = iter(range(1, 5))

    def next_part(name: str) -> None:
        progress(name, next(steps), 4)

    next_part("full, blind and patched")
    methods = compare(runner, scene, ranks)
    moved = scene.head(-(-episodes // 2))  # the operations are many windows each
    next_part("reorder")
    reorder = reordered(runner, moved)
    next_part("slide")
    slide = slid(runner, moved)
    next_part("recall")
    recall = recalled(runner, moved)
    return {
        "methods": methods,
        "reorder": reorder,
        "slide": slide,
        "recall": recall,
        "episodes": episodes,
        "operation_episodes": len(moved.two_hop[1]),
        "versions": {"kamera-jax": kj.__version__} | {name: version(name) for name in ("jax", "numpy")},
    }


def compare(runner: BatchRunner, scene: Scene, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """Accuracy, KL, η, bytes and time of full prefill, blind reuse and patches, in the order first, second, third."""
    trio = scene.trio
    kinds = {"one_hop": scene.one_hop, "two_hop": scene.two_hop}
    full, seconds = timed(lambda: runner.prefill(trio))
    built: dict[str, tuple[Windows, float, float]] = {"full": (full, seconds, 0.0)}
    built["blind"] = (*timed(lambda: runner.reuse(trio, [None] * 3)), 0.0)
    patched = [(full.conditioned[i], trio[i].kv, trio[i].length) for i in (1, 2)]
    sizes: dict[str, list[Factors]] = {"patch": [fit_size(*each, DEFAULT) for each in patched]}
    widest = [fit(*each, rank=max(ranks)) for each in patched]
    sizes |= {f"patch:{rank}": [patch.truncate(factors, rank) for factors in widest] for rank in ranks}
    for name, formed in sizes.items():
        factors = [None, *formed]
        windows, seconds = timed(lambda factors=factors: runner.reuse(trio, factors))
        built[name] = (windows, seconds, mean_bytes(factors, trio))

    logits = {
        name: {kind: runner.ask(windows, tails) for kind, (tails, _) in kinds.items()}
        for name, (windows, _, _) in built.items()
    }
    reference = logits["full"]["two_hop"]
    blind = logits["blind"]["two_hop"]
    token_bytes = runner.vlm.spec.token_bytes
    patched_bytes = sum(chunk.length for chunk in trio[1:]) * token_bytes
    rows = [
        {
            "name": name,
            **{kind: metrics.accuracy(logits[name][kind], answers) for kind, (_, answers) in kinds.items()},
            "kl": float(metrics.kl(reference, logits[name]["two_hop"]).mean()),
            "eta": metrics.eta(reference, logits[name]["two_hop"], blind),
            "kv_bytes": patched_bytes + trio[0].length * token_bytes,
            "patch_bytes": patch_bytes,
            "patch_share": patch_bytes / patched_bytes,
            "milliseconds": 1e3 * seconds / len(reference),
        }
        for name, (_, seconds, patch_bytes) in built.items()
    ]
    return rows


def mean_bytes(factors: Sequence[Factors | None], chunks: Sequence[Stack]) -> float:
    """Stored bytes of one window's patches, averaged over episodes."""
    total = 0.0
    for factor, chunk in zip(factors, chunks, strict=True):
        if factor is not None:
            episodes = factor.ranks.shape[0]
            total += patch.nbytes(factor, chunk.length) / episodes
    return total


def timed(build: Callable[[], Windows]) -> tuple[Windows, float]:
    """The windows, and the seconds that building them takes once everything is compiled."""
    jax.block_until_ready(build().state)
    start = time.perf_counter()
    windows = build()
    jax.block_until_ready(windows.state)
    return windows, time.perf_counter() - start


def orbit_factors(runner: BatchRunner, chunks: Sequence[Stack]) -> list[Factors]:
    """A patch for every chunk, formed once after all the others in a fixed order, for use in every order."""
    factors = []
    for i, chunk in enumerate(chunks):
        others = [other for j, other in enumerate(chunks) if j != i]
        conditioned = runner.prefill([*others, chunk]).conditioned[-1]
        factors.append(fit_size(conditioned, chunk.kv, chunk.length, DEFAULT))
    return factors


def reordered(runner: BatchRunner, scene: Scene) -> list[dict[str, Any]]:
    """Every order of the three pages with orbit patches, against full prefill in that order."""
    trio = scene.trio
    (tails, answers) = scene.two_hop
    factors = orbit_factors(runner, trio)
    rows = []
    for order in itertools.permutations(range(3)):
        chunks = [trio[i] for i in order]
        full = runner.ask(runner.prefill(chunks), tails)
        blind = runner.ask(runner.reuse(chunks, [None] * 3), tails)
        orbit = runner.ask(runner.reuse(chunks, [factors[i] for i in order]), tails)
        rows.append(
            {
                "order": [PAGES[i] for i in order],
                "antecedents_first": order[-1] == 2,
                "two_hop": metrics.accuracy(orbit, answers),
                "two_hop_full": metrics.accuracy(full, answers),
                "eta": metrics.eta(full, orbit, blind),
            }
        )
    return sorted(rows, key=lambda row: not row["antecedents_first"])


def slid(runner: BatchRunner, scene: Scene) -> dict[str, Any]:
    """Accuracy after the first page is dropped, of questions about references to it, which the third page absorbed."""
    trio = scene.trio
    full = runner.prefill(trio)
    tails, answers = scene.two_hop
    tails = jax.tree.map(lambda x: x[:, :ASKED], tails)
    answers = answers[:, :ASKED]
    survivors = [
        Stack(kv, chunk.segment, chunk.length, chunk.advance) for kv, chunk in zip(full.conditioned, trio, strict=True)
    ][1:]
    kept = runner.ask(runner.reuse(survivors, [None] * 2), tails)
    history = runner.ask(runner.hide(full, 0, trio[0].length), tails)
    present = runner.ask(runner.prefill(trio[1:]), tails)
    return {
        "survivors": metrics.accuracy(kept, answers),
        "history": metrics.accuracy(history, answers),
        "present": metrics.accuracy(present, answers),
        "kl_history": float(metrics.kl(history, kept).mean()),
    }


def recalled(runner: BatchRunner, scene: Scene) -> dict[str, Any]:
    """Accuracy after the third page is recalled behind a page that its patch was not formed with.

    The patch was formed with the first and second page before it.
    """
    first, second, third = scene.trio
    tails, answers = scene.two_hop
    conditioned = runner.prefill([first, second, third]).conditioned[-1]
    stored = fit_size(conditioned, third.kv, third.length, DEFAULT)
    window = [first, second, scene.chunks["other"], third]

    def accuracy(windows: Windows) -> float:
        return metrics.accuracy(runner.ask(windows, tails), answers)

    return {
        "blind": accuracy(runner.reuse(window, [None] * 4)),
        "patch": accuracy(runner.reuse(window, [None, None, None, stored])),
        "full": accuracy(runner.prefill(window)),
    }


def write_pages(folder: Path) -> None:
    """Write the first held-out episode's pages as PNG files, and the questions about them."""
    folder.mkdir(parents=True, exist_ok=True)
    story = sample_story(np.random.default_rng((HELD_OUT_SEED, 0)))
    for name in PAGES:
        cells = getattr(story, name).cells
        assert cells is not None
        pages.render(cells).save(folder / f"{name}.png")
    lines = ["One hop: a page shows the answer.", ""]
    lines += [f"- {question_text(glyph)} {COLOUR_NAMES[colour]}" for glyph, colour in story.one_hop]
    lines += ["", "Two hops: third.png refers to a glyph on first.png or second.png.", ""]
    lines += [f"- {question_text(glyph)} {COLOUR_NAMES[colour]}" for glyph, colour in story.two_hop]
    (folder / "questions.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
