"""Counts that are none or far too large, and logits that are no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import ArgumentError, NonFiniteError, WindowFullError
from kamera_jax.session.warm import warm
from tests.kamera_jax.toy import Toy

CAPACITY = 128


@pytest.fixture(scope="module")
def toy():
    return Toy()


def calls(toy):
    """Every call that takes a number of tokens, by name."""
    session = kj.Session(toy, CAPACITY)
    window = kj.append(kj.Window.empty(toy, CAPACITY), kj.encode(toy, "abc"))
    return {
        "generate": lambda count: kj.generate(toy, window, "what", max_new_tokens=count).tokens,
        "ask": lambda count: session.ask("what", max_new_tokens=count, keep=False).tokens,
        "warm": lambda count: warm(toy, CAPACITY, items=["abc"], max_new_tokens=count),
    }


@pytest.mark.parametrize("name", ["generate", "ask", "warm"])
def test_a_truth_is_no_count(toy, name):
    """What else is none: see `tests.kamera_jax.bad_arguments`, where annotations are not checked."""
    with pytest.raises(ArgumentError, match="max_new_tokens is True; expected a whole number"):
        calls(toy)[name](True)


@pytest.mark.parametrize("name", ["generate", "ask", "warm"])
@pytest.mark.parametrize("count", [10**12, 2**63, 10**30])
def test_a_count_is_bounded_by_the_window(toy, name, count):
    with pytest.raises(WindowFullError):
        calls(toy)[name](count)


def test_so_many_tokens_are_answered(toy):
    assert len(calls(toy)["generate"](3)) == len(calls(toy)["ask"](3)) == 3


@pytest.mark.parametrize("capacity", [2**31, 10**12, 10**30])
def test_a_window_is_bounded_by_memory(toy, capacity):
    for make in (kj.Window.empty, kj.Session):
        for mode in ("materialise", "in_place"):
            with pytest.raises(ValueError, match="capacity is "):
                make(toy, capacity, mode=mode)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
def test_logits_that_are_no_numbers_are_no_answer(value, options):
    """NaN and infinity name a token too: the first of them, and often one that ends the answer."""
    broken = Toy()
    broken.params = {**broken.params, "out": jnp.full_like(broken.params["out"], value)}
    window = kj.append(kj.Window.empty(broken, CAPACITY), kj.encode(broken, "abc"))
    if options:
        options = {**options, "key": jax.random.key(0)}
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite.*float32"):
        kj.generate(broken, window, "what", max_new_tokens=4, **options)
    session = kj.Session(broken, CAPACITY)
    key = session.add("abc")
    with pytest.raises(NonFiniteError):
        session.ask("what")
    assert session.keys == (key,) and session.stats.turns == 0


def test_a_token_without_probability_is_none_of_the_models_faults():
    """-inf in some logits is how a model rules a token out."""
    barred = Toy()
    barred.params = {**barred.params, "out": barred.params["out"].at[:, :32].set(-jnp.inf)}
    window = kj.append(kj.Window.empty(barred, CAPACITY), kj.encode(barred, "abc"))
    tokens = kj.generate(barred, window, "what", max_new_tokens=6).tokens
    assert len(tokens) == 6 and min(tokens) >= 32
