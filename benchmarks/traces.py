"""Traces of look-backs over a library: which chunk is asked for at each, and what a workflow knows of it beforehand."""

from dataclasses import dataclass

import numpy as np

AGENTS = 12
"""Agents that take turns."""

SHARED = 0.15
"""Of an agent's look-backs: those to what all agents use, by Zipf's law."""

STEPS = (
    ("return", 0.4),
    ("burst", 0.25),
    ("slide", 0.35),
)
"""What an agent does, and how often: goes round its working set, asks one chunk several times, slides over a book."""


@dataclass(frozen=True)
class Library:
    """What may be looked back to.

    Attributes:
        nbytes: i64[N], of each chunk.
        seconds: f64[N], that each takes to be encoded again.
    """

    nbytes: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Trace:
    """Look-backs in order.

    Attributes:
        name: of its kind.
        keys: i64[n], numbers of chunks.
        told: at each look-back, what is said of the next uses: steps by chunk; empty without a workflow.
    """

    name: str
    keys: np.ndarray
    told: tuple[dict[int, int | None], ...]


def library(chunks: int, seed: int, token_bytes: int, token_seconds: float) -> Library:
    """Texts, images and video segments of 32 to 1,024 tokens.

    A forward takes as long for each token, and more the longer a chunk is (attention); an image has its tower beside
    it, at 2 to 5 times a token's forward, as resolutions and towers differ, and a video half of that.

    Args:
        chunks: N.
        seed: of the draw.
        token_bytes: of KV.
        token_seconds: of a token's forward.
    """
    rng = np.random.default_rng((seed, 0))
    tokens = np.exp(rng.uniform(np.log(32), np.log(1025), chunks)).astype(np.int64)
    kind = rng.choice(3, chunks, p=(0.4, 0.4, 0.2))
    tower = np.where(kind == 1, rng.uniform(2.0, 5.0, chunks), np.where(kind == 2, rng.uniform(1.0, 2.5, chunks), 0.0))
    seconds = tokens * token_seconds * (1.0 + tokens / 4096 + tower)
    return Library(-(-tokens // 16) * 16 * token_bytes, seconds)


def zipf(chunks: int, looks: int, seed: int, exponent: float = 1.0) -> Trace:
    """Each look-back is drawn alone, the chunk of rank r with a probability ∝ r^-exponent."""
    rng = np.random.default_rng((seed, 1))
    shares = np.arange(1, chunks + 1) ** -exponent
    keys = rng.permutation(chunks)[rng.choice(chunks, looks, p=shares / shares.sum())]
    return Trace("zipf", keys, ({},) * looks)


def agents(chunks: int, looks: int, seed: int) -> Trace:
    """Agents take turns at random; each plans a task at its beginning, and its workflow says when what is used next.

    A task has a working set of pages. Its look-backs go round that set (returns), ask one chunk several times
    (bursts), or slide over neighbouring chunks with looks back (sliding); some are to what all agents use, which no
    plan says. When a chunk is used is said in look-backs of all agents, as if they took turns evenly: about right.
    """
    rng = np.random.default_rng((seed, 2))
    shares = np.arange(1, chunks + 1) ** -1.0
    popular = rng.permutation(chunks)
    keys: list[int] = []
    told: list[dict[int, int | None]] = []
    plans: list[list[int]] = [[] for _ in range(AGENTS)]
    due: list[dict[int, int]] = [{} for _ in range(AGENTS)]  # of each agent's plan, when a chunk is used next
    for step, agent in enumerate(rng.integers(AGENTS, size=looks)):
        if rng.random() < SHARED:
            keys.append(int(popular[rng.choice(chunks, p=shares / shares.sum())]))
            touched = {keys[-1]}
        else:
            plans[agent] = plans[agent] or _task(rng, chunks)
            keys.append(plans[agent].pop(0))
            before = due[agent]
            due[agent] = {}
            for ahead, key in enumerate(plans[agent], start=1):
                due[agent].setdefault(key, step + round(ahead * AGENTS / (1 - SHARED)))
            touched = before.keys() | due[agent].keys()
        soonest = {key: min((each[key] for each in due if key in each), default=None) for key in touched}
        told.append({key: None if at is None else max(at - step, 1) for key, at in soonest.items()})
    return Trace("agents", np.asarray(keys), tuple(told))


def _task(rng: np.random.Generator, chunks: int) -> list[int]:
    """The look-backs of one task."""
    pages = rng.choice(chunks, int(rng.integers(4, 12)), replace=False).tolist()
    plan: list[int] = []
    for _ in range(int(rng.integers(6, 17))):
        kind = rng.choice([name for name, _ in STEPS], p=[share for _, share in STEPS])
        if kind == "return":
            plan += pages
        elif kind == "burst":
            plan += [pages[int(rng.integers(len(pages)))]] * int(rng.integers(2, 7))
        else:
            first = int(rng.integers(chunks - 16))
            for place in range(int(rng.integers(4, 12))):
                plan.append(first + place)
                if place % 3 == 2:
                    plan.append(first + place - int(rng.integers(1, 3)))
    return plan
