"""What a patch keeps of its bytes on real text and real weights: η against bytes for choices of components.

Two passages A and B of a text stand in a window, then the text goes on. B's patch is formed behind A; what is compared
is the next-token distribution over the tokens behind B, with B patched and with B prefilled behind A. The text is what
Python's ``help()`` says of its language, which every machine has.
"""

import importlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from eval.report import style
from eval.run import metrics
from kamera_jax import patch
from kamera_jax.forward import run
from kamera_jax.inference.encode import encode_segment, run_chunk
from kamera_jax.kv import KV, Factors, Segment
from kamera_jax.patch.size import Size
from kamera_jax.patch.subspace import all_components

SHARES = (0.0125, 0.025, 0.05, 0.1, 0.2)
"""Of the chunk's KV bytes, for int8 factors."""

LENGTHS = (128, 256, 512)
"""Tokens of A, and of B."""

BEHIND = 32
"""Tokens behind B over which the KL is averaged."""

OLD_CAP = 32
"""Components a layer that a default patch was bounded by before."""

CHOICES = {
    "most energy, as formed": (style.BLUE, "o"),
    "most energy, no bound": (style.SKY, "s"),
    "most energy, at most 32 a layer": (style.VERMILION, "v"),
    "uniform rank": (style.GREY, "^"),
}
"""Choices of components at equal bytes, and their colours and markers."""


def passages(vlm: Any, tokens: int) -> list[np.ndarray]:
    """Token ids of stretches of A, B and what follows, without overlap, in an order drawn once."""
    topics = importlib.import_module("pydoc_data.topics").topics
    most = 2 * tokens + BEHIND
    found = []
    for name in sorted(topics):
        segment = vlm.prepare(topics[name])
        ids = np.asarray(segment.inputs["tokens"])[: int(segment.length)]
        found += [ids[start : start + most] for start in range(0, len(ids) - most + 1, most)]
    order = np.random.default_rng(tokens).permutation(len(found))
    return [found[i] for i in order]


def segment_of(ids: np.ndarray) -> Segment:
    """Token ids as what a model runs, at positions from 0."""
    positions = np.arange(len(ids), dtype=np.float32)[None]
    return Segment({"tokens": np.asarray(ids, np.int32)}, jnp.asarray(positions), np.int32(len(ids)), float(len(ids)))


def _most_energy(energy: np.ndarray, count: int, width: int) -> np.ndarray:
    """Ranks of the ``count`` components of most energy, at most ``width`` of a layer."""
    kept = energy[:, :width]
    least = np.sort(kept.ravel())[::-1][min(count, kept.size) - 1]
    return (kept >= max(least, np.finfo(np.float32).tiny)).sum(-1)


def _uniform(energy: np.ndarray, count: int) -> np.ndarray:
    """As many in every layer that changes at all; what is over goes to the last ones."""
    changed = np.flatnonzero(energy.sum(-1) > 0)
    ranks = np.zeros(len(energy), int)
    ranks[changed] = count // len(changed)
    ranks[changed[len(changed) - count % len(changed) :]] += 1
    return np.minimum(ranks, energy.shape[1])


def ranks_of(choice: str, energy: np.ndarray, count: int, tokens: int, features: int) -> np.ndarray:
    """Components of each layer, i[L], of ``count`` in all."""
    if choice == "uniform rank":
        return _uniform(energy, count)
    bounds = {
        "most energy, as formed": patch.width_for(count, len(energy), tokens, features),
        "most energy, no bound": min(tokens, features),
        "most energy, at most 32 a layer": OLD_CAP,
    }
    return _most_energy(energy, count, bounds[choice])


@jax.jit
def _components(conditioned: KV, canonical: KV) -> Any:
    return all_components(conditioned.features - canonical.features)


@jax.jit
def _patched(kv: KV, factors: Factors, ranks: jax.Array) -> KV:
    return patch.apply(kv, patch.quantised(patch.limit(replace(factors, ranks=ranks), factors.u.shape[1])))


def one_case(vlm: Any, ids: np.ndarray, tokens: int) -> list[dict[str, Any]]:
    """The KL of every choice at every share for one text, blind reuse first."""
    window = kj.Window.empty(vlm, capacity=2 * tokens + 64)
    window = kj.append(window, encode_segment(vlm, segment_of(ids[:tokens])))
    middle = segment_of(ids[tokens : 2 * tokens])
    behind = segment_of(ids[2 * tokens :])
    canonical = encode_segment(vlm, middle)
    conditioned, _ = run_chunk(vlm, window, middle)
    at = np.arange(BEHIND, dtype=np.int32)

    def logits(chunk: kj.Chunk) -> jax.Array:
        there = kj.append(window, chunk)
        base = np.float32(there.next_position)
        found = run(vlm.params, behind, there.state, at, base, forward=vlm.forward).logits
        assert found is not None
        return found

    full = logits(conditioned)

    def kl(kv: KV) -> float:
        return float(metrics.kl(full, logits(replace(canonical, kv=kv))).mean())

    parts = _components(conditioned.kv, canonical.kv)
    factors = Factors(parts.u, parts.v, jnp.zeros(len(parts.u), jnp.int32))
    energy = np.array(parts.energy)
    energy[energy.sum(-1) <= 1e-9 * energy.sum(-1).max()] = 0  # the first layer: rounding alone
    features = canonical.kv.features.shape[-1]
    one = patch.component_bytes(tokens, features, 1)
    rows = [{"choice": "blind", "share": 0.0, "kl": kl(canonical.kv)}]
    known: dict[bytes, float] = {}
    for share in SHARES:
        count = int(share * canonical.nbytes) // one
        for choice in CHOICES:
            ranks = ranks_of(choice, energy, count, tokens, features)
            key = ranks.astype(np.int32).tobytes()
            if key not in known:
                known[key] = kl(_patched(canonical.kv, factors, jnp.asarray(ranks, jnp.int32)))
            about = {"bytes": float(ranks.sum() * one / canonical.nbytes), "largest": int(ranks.max())}
            rows.append({"choice": choice, "share": share, "kl": known[key], "mean": float(ranks.mean()), **about})
    formed = Size().fit(conditioned.kv, canonical.kv, tokens).factors
    share = patch.nbytes(formed, tokens) / canonical.nbytes
    rows.append({"choice": "form_patch", "share": 0.1, "kl": kl(patch.apply(canonical.kv, formed)), "bytes": share})
    return rows


def eta(method: np.ndarray, blind: np.ndarray) -> tuple[float, float]:
    """η = 1 − mean KL / mean KL of blind reuse, over cases, and its standard error by the jackknife."""
    count = len(blind)
    value = 1 - method.mean() / blind.mean()
    if count < 2:
        return float(value), float("nan")
    left = 1 - (method.sum() - method) / (blind.sum() - blind)
    return float(value), float(np.sqrt((count - 1) / count * np.sum((left - left.mean()) ** 2)))


def summary(cases: Sequence[list[dict[str, Any]]], tokens: int) -> dict[str, Any]:
    """η of every choice at every share."""
    blind = np.array([case[0]["kl"] for case in cases])
    rows = []
    for each in zip(*(case[1:] for case in cases), strict=True):
        value, error = eta(np.array([row["kl"] for row in each]), blind)
        means = {
            name: float(np.mean([row[name] for row in each])) for name in ("kl", "bytes", "mean") if name in each[0]
        }
        largest = {"largest": max(row["largest"] for row in each)} if "largest" in each[0] else {}
        rows.append(
            {name: each[0][name] for name in ("choice", "share")} | means | largest | {"eta": value, "se": error}
        )
    return {
        "tokens": tokens,
        "cases": len(cases),
        "blind_kl": float(blind.mean()),
        "blind_se": float(blind.std(ddof=1) / np.sqrt(len(blind))) if len(blind) > 1 else float("nan"),
        "rows": rows,
    }


def measure(
    vlm: Any, lengths: Sequence[int], count: int, progress: Callable[[str], None] = print
) -> Iterator[list[dict[str, Any]]]:
    """A summary for each length over ``count`` texts, again after every text of each: a run may be cut short."""
    texts = {tokens: passages(vlm, tokens)[:count] for tokens in lengths}
    cases: dict[int, list[list[dict[str, Any]]]] = {tokens: [] for tokens in lengths}
    for i in range(count):
        for tokens in lengths:
            cases[tokens].append(one_case(vlm, texts[tokens][i], tokens))
            progress(f"{tokens} tokens, text {i + 1} of {count}: blind {cases[tokens][-1][0]['kl']:.4f}")
        yield [summary(found, tokens) for tokens, found in cases.items()]


def about(vlm: Any, name: str) -> dict[str, Any]:
    """What was measured on."""
    return {"model": name, "dtype": str(vlm.spec.dtype), "behind": BEHIND, "python": platform.python_version()}


CAPTION = (
    "η against the bytes of a patch, by which components are kept, for passages of three lengths. Bars are standard "
    "errors over the texts; points of one size are set apart a little, so that bars can be told apart."
)

SECTION = """## Where the bytes go on real text

`python -m benchmarks.patch --only text --model {model}` measures this again. `{model}` in {dtype}; two passages A and B
of a text (Python's `help()`, {python}) of so many tokens each, B's patch formed behind A; η of the KL over the {behind}
next tokens behind B, ± its standard error over the texts. All factors are int8. Bytes are shares of the chunk's KV in
{dtype}: in a dtype of half the width the same share pays for half the components.

{tables}

{figure}

*most energy, as formed*: what `form_patch` does with so many bytes: the components of most energy, whatever their
layer, at most {uneven} times the mean in one layer, rounded up to a power of two. *no bound*: the same without that.
*at most 32 a layer*: the default patch of before, which leaves bytes unused where all layers have 32. *uniform rank*:
as many in every layer.

{findings}"""


def section(result: dict[str, Any]) -> str:
    """The measurements as a section of the page."""
    tables = "\n\n".join(_table(found) for found in result["lengths"])
    about = {name: result[name] for name in ("model", "dtype", "python", "behind")}
    figure = style.figure_block("η against the bytes of a patch, on real text", "figures/patch-text.png", CAPTION)
    return SECTION.format(
        figure=figure, tables=tables, uneven=patch.UNEVEN, findings=_findings(result["lengths"]), **about
    )


def _table(found: dict[str, Any]) -> str:
    shares = sorted({row["share"] for row in found["rows"]})
    head = " | ".join(f"{share:.2%}".replace(".00%", "%").replace("0%", "0%") for share in shares)
    lines = [f"| {found['tokens']} tokens, {found['cases']} texts | {head} |", "|---|" + "---|" * len(shares)]
    for choice in CHOICES:
        rows = {row["share"]: row for row in found["rows"] if row["choice"] == choice}
        lines.append(
            f"| {choice} | " + " | ".join(f"{rows[s]['eta']:.3f} ± {rows[s]['se']:.3f}" for s in shares) + " |"
        )
    rows = {row["share"]: row for row in found["rows"] if row["choice"] == "most energy, no bound"}
    cells = " | ".join(f"{rows[s]['mean']:.1f}, {rows[s]['largest']}" for s in shares)
    lines += [f"| components a layer: mean, most (no bound) | {cells} |", ""]
    lines.append(f"KL of blind reuse: {found['blind_kl']:.4f} ± {found['blind_se']:.4f} nats.")
    return "\n".join(lines)


def _findings(lengths: Sequence[dict[str, Any]]) -> str:
    parts = []
    for found in lengths:
        formed = next(row for row in found["rows"] if row["choice"] == "form_patch")
        parts.append(f"{formed['eta']:.3f} ± {formed['se']:.3f} at {formed['bytes']:.1%} ({found['tokens']} tokens)")
    return "`form_patch` without a choice of size, fitted as the library fits it, has η " + ", ".join(parts) + "."


def plot(result: dict[str, Any], path: Path) -> None:
    """η against bytes, a panel for every length; bars are standard errors over the texts."""
    lengths = result["lengths"]
    with style.drawing(path, 3.2) as figure:
        titles = [f"{found['tokens']} tokens, {found['cases']} texts" for found in lengths]
        panels = style.panels(figure, titles)[0]
        for axes, found in zip(panels, lengths, strict=True):
            for place, (choice, (colour, marker)) in enumerate(CHOICES.items()):
                rows = [row for row in found["rows"] if row["choice"] == choice]
                aside = 1 + 0.05 * (place - 1.5)  # so that bars do not cover each other
                axes.errorbar(
                    [100 * row["bytes"] * aside for row in rows],
                    [row["eta"] for row in rows],
                    [row["se"] for row in rows],
                    fmt=f"{marker}-",
                    ms=4,
                    color=colour,
                    label=choice,
                    capsize=2,
                )
            axes.set_xscale("log")
            axes.set_xticks([100 * share for share in SHARES], [f"{100 * share:g}" for share in SHARES], minor=False)
            axes.minorticks_off()
            axes.set_xlabel("bytes, % of the KV")
        panels[0].set_ylabel("η")
        style.legend(figure, panels, columns=2)
