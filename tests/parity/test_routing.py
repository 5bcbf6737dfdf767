"""Experts in bf16: a token that is sent elsewhere than in f32 was a close call, by no more than its scores changed."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.forward import run
from models import forward as ports
from models.blocks import moe
from tests.parity.pairs import CONFIGS
from tests.parity.routing import ROUTES, differs, margins, reached, tolerance

pytestmark = pytest.mark.parity

EXPERTS = [name for name in CONFIGS if name.startswith(("kimi_vl", "qwen3_vl_moe"))]
with_experts = pytest.mark.parametrize("pair", EXPERTS, indirect=True)
with_a_bias = pytest.mark.parametrize("pair", [name for name in EXPERTS if name.startswith("kimi_vl")], indirect=True)

QUESTION = "which colour is the cell on the page?"
NAMES = ("large", "wide")


@pytest.fixture
def prompt(pair):
    return pair.prompt(pair.items(NAMES), QUESTION)


@cache
def observed(text):
    """A forward of its own for a language model, and the list where its scores come to lie, layer by layer."""
    return partial(ports.forward, text), []


def routes(model, prompt, params=None):
    """Scores [layers, S, X], experts [layers, S, k] in order of their number, and margins [layers, S] of a port."""
    forward, scores = observed(model.config.text)
    original = moe.route

    def route(config, router, x):
        seen = moe.router_scores(config, router, x) + router.get("bias", jnp.zeros(config.count, jnp.float32))[None, :]
        jax.debug.callback(lambda each: scores.append(np.asarray(each)), seen, ordered=True)
        return original(config, router, x)

    scores.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moe, "route", route)
        params = model.params if params is None else params
        output = run(params, prompt.joined(model), None, forward=forward, collect=ROUTES)
        jax.block_until_ready(output)
        jax.effects_barrier()
    tokens = len(prompt.ids)
    experts, margin = (np.asarray(output.aux[name])[:, :tokens] for name in ROUTES)
    return np.stack(scores)[:, :tokens], np.sort(experts), margin


@with_experts
def test_margins_are_those_of_hf_s_scores(pair, prompt):
    config = pair.vlm.config.text.experts
    scores, experts, margin = routes(pair.vlm, prompt)
    np.testing.assert_array_equal(experts, prompt.full.experts)
    assert np.abs(scores - prompt.full.scores).max() <= 1e-5
    assert np.abs(margin - margins(prompt.full.scores, config)).max() <= 1e-5


@with_experts
def test_what_bf16_sends_elsewhere_was_a_close_call(pair, low, prompt):
    config = pair.vlm.config.text.experts
    layers = pair.vlm.spec.layers
    exact, experts, margin = routes(pair.vlm, prompt)
    scores, others, _ = routes(low, prompt)
    change = np.abs(scores - exact).max(-1)
    elsewhere = differs(experts, others)
    assert (margin[elsewhere] <= tolerance(config) * change[elsewhere]).all()

    # Scores of tokens that others' routes cannot have reached have changed by rounding alone, as much as HF's have.
    theirs = pair.run(prompt.ids, prompt.positions, prompt.media, model=pair.hf_bf16)
    hf_elsewhere = differs(experts, theirs.experts)
    hf_change = np.abs(theirs.scores - prompt.full.scores).max(-1)
    assert (margin[hf_elsewhere] <= tolerance(config) * hf_change[hf_elsewhere] + 1e-5).all()
    own = ~(reached(elsewhere, layers) | reached(hf_elsewhere, layers))[-len(margin) :]
    assert own.any(1).all()
    ours, hf_s = (np.sqrt(np.mean(np.square(each[own]))) for each in (change, hf_change))
    assert ours <= 1.15 * hf_s, (ours, hf_s)


@with_a_bias
def test_a_near_tie_goes_elsewhere_and_its_margin_tells(pair, low, prompt):
    """The bias is set so that f32 chooses one of two experts and bf16, by what it rounds, the other."""
    config = pair.vlm.config.text.experts
    exact, experts, _ = routes(pair.vlm, prompt)
    rounded, _, _ = routes(low, prompt)
    # The first layer with experts: its scores do not depend on its own bias.
    tie = nearest_tie(exact[0], rounded[0], experts[0], config)
    params = {name: with_bias(model.params, tie) for name, model in (("f32", pair.vlm), ("bf16", low))}
    _, before, margin = routes(pair.vlm, prompt, params["f32"])
    _, after, _ = routes(low, prompt, params["bf16"])
    token, chosen, other, _, lead = tie
    assert chosen in before[0, token] and other not in before[0, token]
    assert other in after[0, token] and chosen not in after[0, token]
    assert margin[0, token] == pytest.approx(lead, abs=1e-6)
    noise = np.abs(rounded[0] - exact[0]).max(-1)  # of each token: what sways one says nothing of another
    suspects = margin[0] <= tolerance(config) * noise
    assert suspects[token] and (suspects | ~differs(before[0], after[0])).all()
    assert suspects.mean() < 0.5


def nearest_tie(exact, rounded, experts, config):
    """Token, chosen and other expert, what to add to the other's bias, and by how much f32 then still prefers the one.

    The two are of the same group, so that with their scores alike the groups' ratings decide nothing; the one chosen
    last and the best of the rest, of the token in which bf16 favours the other most.
    """
    per_group = config.count // config.groups
    best = None
    for token, row in enumerate(exact):
        for other in set(range(config.count)) - set(experts[token]):
            group = [e for e in experts[token] if e // per_group == other // per_group]
            if not group:
                continue
            chosen = min(group, key=lambda e: row[e])
            favour = (rounded[token, other] - row[other]) - (rounded[token, chosen] - row[chosen])
            shift = row[chosen] - row[other] - favour / 2
            lifted = row.copy()
            lifted[other] += shift
            # Only if with the bias nothing but these two is near does the token's route hang on them.
            if favour > 0 and is_last_pair(lifted, chosen, other, config, favour / 2):
                if best is None or favour > best[-1] * 2:
                    best = (token, int(chosen), int(other), float(shift), float(favour / 2))
    assert best is not None
    return best


def is_last_pair(scores, chosen, other, config, lead):
    """Whether f32 prefers ``chosen`` to ``other`` and the margin of the whole choice is their distance."""
    margin = margins(scores[None], config)[0]
    return abs(margin - lead) <= 1e-6 and scores[chosen] > scores[other]


def with_bias(params, tie):
    """The parameters with the bias of the tie's other expert shifted in the first layer with experts."""
    _, _, other, shift, _ = tie
    text = params["text"]
    router = text["moe_layers"]["mlp"]["router"]
    assert router["bias"].dtype == jnp.float32
    router = {**router, "bias": router["bias"].at[0, other].add(shift)}
    mlp = {**text["moe_layers"]["mlp"], "router": router}
    return {**params, "text": {**text, "moe_layers": {**text["moe_layers"], "mlp": mlp}}}
