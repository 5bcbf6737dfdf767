"""Which pages of a library a question is about: recall, time and bytes of finding them, and answers from them.

python -m benchmarks.retrieval --json docs/results/retrieval.json --page docs/retrieval.md
python -m benchmarks.retrieval --calibrate        writes retrieval.json beside the weights of the embedded models
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks.retrieval_page import COUNTS, page
from eval.commands.main import ATTENTIONS, EMBEDDED
from eval.tasks.binding import CONDITIONS, _drawn
from eval.tiny import pages
from eval.tiny.episodes import question_text
from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from kamera_jax.finder.scoring import asked, key_head, standardised
from models import load
from models.registry import CHECKPOINTS
from models.vlm import VisionLanguageModel

SEED = 95_000_000
"""Far from every seed of training and of the other measurements."""

CALIBRATED = tuple(range(0, len(NAMES), 2))
"""Glyphs that heads are chosen on; tested are the others, on other pages."""

TESTED = tuple(range(1, len(NAMES), 2))
CALIBRATION_CONTEXTS = 32
RANK = 12
LATER = 20
"""Questions of a library whose keys are in memory, for the time."""


@dataclass(frozen=True)
class Page:
    """A page of a context: three pages, of which the one of references is about glyphs of the other two."""

    context: int
    role: str
    entries: dict[int, tuple[str, int]]
    chunk: kj.Chunk


@dataclass(frozen=True)
class Asked:
    """A question, the page that shows its glyph, and the glyphs that lead to the answer."""

    text: str
    right: int
    chain: tuple[int, ...]
    answer: str


def drawn(vlm: VisionLanguageModel, contexts: int, seed: int) -> list[Page]:
    """Pages of contexts as the task `binding` draws them, encoded each alone."""
    made = []
    for context in range(contexts):
        for role, chunk in _drawn(np.random.default_rng((SEED, seed, context)), CONDITIONS[0]):
            assert chunk.cells is not None
            made.append(Page(context, role, chunk.entries, kj.encode(vlm, pages.render(chunk.cells))))
    return made


def chosen_heads(vlm: VisionLanguageModel) -> kj.RetrievalHeads:
    """Heads chosen on half of the glyphs, among pages of their own."""
    pool = drawn(vlm, CALIBRATION_CONTEXTS, seed=1)
    pairs = [(question_text(g), [each.chunk for each in pool if g in each.entries]) for g in CALIBRATED]
    return kj.Finder.calibrate(vlm, pairs, [each.chunk for each in pool])


def questions(pool: Sequence[Page], count: int, rng: np.random.Generator) -> list[Asked]:
    """Questions about the tested glyphs, as many of facts as of references; each about one page of one context."""
    kinds: dict[str, list[Asked]] = {"fact": [], "reference": []}
    contexts: dict[int, dict[int, tuple[str, int]]] = {}
    for each in pool:
        contexts.setdefault(each.context, {}).update(each.entries)
    for place in rng.permutation(len(pool)):
        known = contexts[pool[place].context]
        glyphs = [g for g in pool[place].entries if g in TESTED]
        for glyph in rng.permutation(glyphs)[:1] if glyphs else ():
            chain = [int(glyph)]
            while known[chain[-1]][0] == "reference":
                chain.append(known[chain[-1]][1])
            text = question_text(chain[0], int(rng.integers(1, 4)))
            answer = COLOUR_NAMES[known[chain[-1]][1]]
            kinds[known[chain[0]][0]].append(Asked(text, int(place), tuple(chain), answer))
    half = count // 2
    return [*kinds["fact"][:half], *kinds["reference"][: count - half]]


def candidates(pool: Sequence[Page], ask: Asked, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places of the right page, first, and of others that show its glyph nowhere as what they explain."""
    others = [place for place, each in enumerate(pool) if ask.chain[0] not in each.entries]
    return np.asarray([ask.right, *rng.choice(others, count - 1, replace=False)])


def by_means(pool: Sequence[Page], vlm: VisionLanguageModel, asks: Sequence[Asked]) -> np.ndarray:
    """ReKV's scores: the mean key of a page times the mean query of the question, all heads of a layer: [Q, P, L]."""
    spec = vlm.spec
    keys = np.stack([np.asarray(each.chunk.kv.rot, np.float32)[:, : each.chunk.length].mean(1) for each in pool])
    keys = keys.reshape(len(pool), spec.layers, spec.heads, -1)
    found = []
    for ask in asks:
        queries, length = asked(vlm, ask.text)
        mean = np.asarray(queries[:, :length], np.float32).mean(1)
        groups = [key_head(spec, queries, head) for head in range(mean.shape[1])]
        found.append(np.einsum("lnd,plnd->pl", mean, keys[:, :, groups]))
    return np.stack(found)


def recall(totals: Sequence[np.ndarray]) -> dict[str, float]:
    """Shares of questions whose right page, the first of each, comes first, or among four."""
    ranks = np.asarray([np.sum(total[1:] >= total[0]) for total in totals])
    return {"recall_1": float((ranks < 1).mean()), "recall_4": float((ranks < 4).mean())}


def times(vlm: VisionLanguageModel, heads: kj.RetrievalHeads, pool: Sequence[Page], count: int, folder: Path) -> Any:
    """Seconds and bytes of a library of so many pages: the first question, which reads the keys, and later ones."""
    with kj.ChunkLibrary.open(folder / f"of-{count}", mode="a") as lib:
        lib.put_many([each.chunk for each in pool[:count]])
        kj.Finder(vlm, lib, heads).find(question_text(0))  # compiles
        finder = kj.Finder(vlm, lib, heads)
        begun = time.perf_counter()
        finder.find(question_text(0))
        first = time.perf_counter() - begun
        later = []
        for number in range(LATER):
            begun = time.perf_counter()
            finder.find(question_text(number))
            later.append(time.perf_counter() - begun)
        whole = sum(each.chunk.nbytes for each in pool[:count])
        return {
            "first_s": first,
            "later_s": {"least": min(later), "median": statistics.median(later)},
            "kept_bytes": finder.nbytes,
            "read_bytes": finder.read_bytes,
            "kv_bytes": whole,
        }


def found_and_not(
    vlm: VisionLanguageModel, finder: kj.Finder, pool: Sequence[Page], count: int, some: int
) -> dict[str, Any]:
    """Recall of the heads and of the means, of a library of so many pages of which one is right."""
    rng = np.random.default_rng((SEED, 3, count))
    asks = questions(pool, some, rng)
    means = by_means(pool, vlm, asks)
    place_of = {each.chunk.key: place for place, each in enumerate(pool)}
    ours = []
    theirs = []
    for number, ask in enumerate(asks):
        here = candidates(pool, ask, count, rng)
        keys, scores = finder.scores(ask.text)
        order = np.argsort([place_of[key] for key in keys])
        ours.append(standardised(scores[order][here]) @ np.asarray(finder.heads.weights))
        theirs.append(means[number][here])
    layers = [recall([each[:, layer] for each in theirs]) for layer in range(vlm.spec.layers)]
    facts = [len(ask.chain) == 1 for ask in asks]
    return {
        "pages": count,
        "questions": len(asks),
        "chance_1": 1 / count,
        "chance_4": 4 / count,
        "heads": recall(ours),
        "facts": recall([each for each, fact in zip(ours, facts, strict=True) if fact]),
        "references": recall([each for each, fact in zip(ours, facts, strict=True) if not fact]),
        "means": max(layers, key=lambda each: each["recall_4"]),
    }


class Among:
    """A finder that searches some chunks of its library."""

    def __init__(self, finder: kj.Finder, keys: Sequence[str]) -> None:
        self.finder = finder
        self.keys = keys
        self.library = finder.library

    def find(self, question: str, top: int = 4) -> Sequence[kj.Hit]:
        return self.finder.find(question, top, among=self.keys)


class Answering:
    """Answers about 32 pages: from what was found, with patches, and from all pages run together."""

    def __init__(self, vlm: VisionLanguageModel, finder: kj.Finder, pool: Sequence[Page]) -> None:
        self.vlm = vlm
        self.finder = finder
        self.pool = pool
        self.places = {each.chunk.key: place for place, each in enumerate(pool)}
        self._patches: dict[int, kj.Patch] = {}

    def antecedents(self, place: int) -> list[int]:
        """The other pages of a page of references."""
        mine = self.pool[place]
        if mine.role != "references":
            return []
        return [
            p for p in range(place - 2, place + 3) if 0 <= p < len(self.pool) and p != place and self._same(p, mine)
        ]

    def _same(self, place: int, mine: Page) -> bool:
        return self.pool[place].context == mine.context

    def patch(self, place: int) -> kj.Patch | None:
        """A page's patch as it would be stored: behind the pages that it refers to."""
        behind = self.antecedents(place)
        if not behind:
            return None
        if place not in self._patches:
            before = [self.pool[each].chunk for each in behind]
            self._patches[place] = kj.form_patch(self.vlm, self.pool[place].chunk, antecedents=before, rank=RANK)
        return self._patches[place]

    def right(self, window: kj.Window, ask: Asked) -> bool:
        """Whether the answer's first token is the colour."""
        said = self.vlm.decode([int(jnp.argmax(kj.query(self.vlm, window, ask.text)))])
        return said.strip().lower() == ask.answer

    def window(self, places: Sequence[int], *, patched: bool) -> kj.Window:
        """Pages in a window, in this order."""
        built = kj.Window.empty(self.vlm, 4096 if len(places) > 12 else 1024)
        for place in places:
            built = kj.append(built, self.pool[place].chunk, self.patch(place) if patched else None)
        return built

    def session_right(self, ask: Asked, here: Sequence[int], *, linked: bool) -> bool:
        """Whether a session answers, which finds pages and their patches itself."""
        for place in here:
            patch = self.patch(place)
            if patch is not None and not self.finder.library.has(patch.key):
                self.finder.library.put(patch)
        among = Among(self.finder, [self.pool[place].chunk.key for place in here])
        session = kj.Session(self.vlm, 2048)
        said = session.ask(ask.text, library=among, top=4, linked=linked, max_new_tokens=1, keep=False)
        return said.text.strip().lower() == ask.answer

    def measure(self, count: int, some: int) -> dict[str, Any]:
        rng = np.random.default_rng((SEED, 4))
        asks = questions(self.pool, some, rng)
        scores: dict[str, list[bool]] = {}
        for ask in asks:
            own = [p for p, each in enumerate(self.pool) if each.context == self.pool[ask.right].context]
            clear = [
                p for p, each in enumerate(self.pool) if p not in own and not any(g in each.entries for g in ask.chain)
            ]
            here = [*own, *(int(p) for p in rng.choice(clear, count - len(own), replace=False))]
            hits = self.finder.find(ask.text, 4, among=[self.pool[p].chunk.key for p in here])
            best = [self.places[hit.key] for hit in reversed(hits)]
            behind = list(dict.fromkeys(p for place in best for p in (*self.antecedents(place), place)))
            # In the order of the pages, in which references stand behind what they refer to.
            every = kj.prefill(self.vlm, [self.pool[p].chunk for p in sorted(here)], capacity=4096)
            windows = {
                "found_patched": self.window(best, patched=True),
                "found_patched_linked": self.window(behind, patched=True),
                "found_blind": self.window(best, patched=False),
                "right_patched": self.window([ask.right], patched=True),
                "all_full": every,
                "all_blind": self.window(sorted(here), patched=False),
                "all_patched": self.window(sorted(here), patched=True),
            }
            for name, window in windows.items():
                scores.setdefault(name, []).append(self.right(window, ask))
            for name, linked in (("session", False), ("session_linked", True)):
                scores.setdefault(name, []).append(self.session_right(ask, here, linked=linked))
        facts = np.asarray([len(ask.chain) == 1 for ask in asks])
        return {
            "pages": count,
            "questions": len(asks),
            "chance": 1 / len(COLOUR_NAMES),
            "accuracy": {
                name: {
                    "one_hop": float(np.mean(np.asarray(each)[facts])),
                    "two_hops": float(np.mean(np.asarray(each)[~facts])),
                }
                for name, each in scores.items()
            },
        }


def measure(model: str, counts: Sequence[int], some: int, answered: int, folder: Path) -> dict[str, Any]:
    vlm = load(model)
    # A quarter of the pages shows a glyph that is asked about, and nearly half one of two: enough are left.
    pool = drawn(vlm, max(max(counts) // 2, min(counts)), seed=2)
    heads = vlm.retrieval or chosen_heads(vlm)
    with kj.ChunkLibrary.open(folder / "pool", mode="a") as lib:
        lib.put_many([each.chunk for each in pool])
        finder = kj.Finder(vlm, lib, heads)
        found = [found_and_not(vlm, finder, pool, count, some) for count in counts]
        answers = Answering(vlm, finder, pool).measure(min(counts), answered)
    return {
        "model": model,
        "heads": json.loads(heads.to_json()),
        "pool": len(pool),
        "tokens": pool[0].chunk.length,
        "libraries": [row | times(vlm, heads, pool, count, folder) for row, count in zip(found, counts, strict=True)],
        "answers": answers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED + "gqa")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="pages of the libraries")
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--answered", type=int, default=40, help="questions that are answered too")
    parser.add_argument("--folder", type=Path, help="a disk to measure on; the system's temporary one by default")
    parser.add_argument("--calibrate", action="store_true", help="choose the embedded models' heads instead")
    parser.add_argument("--json", type=Path, default=Path("docs/results/retrieval.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/retrieval.md"))
    arguments = parser.parse_args()
    if arguments.calibrate:
        for attention in ATTENTIONS:
            heads = chosen_heads(load(EMBEDDED + attention))
            (CHECKPOINTS / (EMBEDDED + attention) / "retrieval.json").write_text(heads.to_json(), encoding="utf-8")
            print(EMBEDDED + attention, heads)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(arguments.model, arguments.counts, arguments.questions, arguments.answered, Path(folder))
    result |= {"cpus": os.cpu_count(), "load": os.getloadavg()[2]}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    arguments.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
