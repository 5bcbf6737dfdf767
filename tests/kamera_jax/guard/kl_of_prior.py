"""The prior's formula once more, plainly: what it is held against."""

import itertools

from kamera_jax.guard.prior import ADDED, BARE, KEPT, LOST, MOVED


def expected(antecedents, shares, present):
    """KL in nats: the squares of what is gone and of what is new, and what changed places; more than bare if all is."""
    pairs = []  # (place among the antecedents, place among the present), the last of each key first
    for key in set(antecedents) & set(present):
        mine, theirs = ([i for i, each in enumerate(keys) if each == key][::-1] for keys in (antecedents, present))
        pairs += zip(mine, theirs, strict=False)
    kept = {i for i, _ in pairs}
    lost = sum(share for i, share in enumerate(shares) if i not in kept)
    profile = list(shares) or [1 / max(len(present), 1)]
    new = 0.0
    for j in set(range(len(present))) - {j for _, j in pairs}:
        distance = len(present) - j
        new += profile[-distance] if distance <= len(profile) else profile[0]
    remaining = 1 - lost if antecedents else 0.0
    added = new / (new + remaining) if new else 0.0

    heaviest = 0.0
    for some in itertools.chain.from_iterable(itertools.combinations(pairs, n) for n in range(len(pairs) + 1)):
        row = sorted(some)
        if all(a[1] < b[1] for a, b in itertools.pairwise(row)):
            heaviest = max(heaviest, sum(shares[i] for i, _ in row))
    moved = sum(shares[i] for i in kept) - heaviest
    kl = KEPT + LOST * lost**2 + ADDED * added**2 + MOVED * moved
    return max(kl, KEPT + BARE) if not kept and (antecedents or present) else kl
