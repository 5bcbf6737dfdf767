"""A patch without a choice of size: a tenth of the bytes, where the energy is, in arrays of few sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import patch
from kamera_jax.kv import KV
from kamera_jax.patch.size import Size
from kamera_jax.window.window import Window
from tests.kamera_jax.toy import Toy

TOKENS = 128
ROT = 64
FREE = 128
CAPACITY = 160


def kv(features):
    return KV(*(jnp.asarray(part, jnp.float32) for part in np.split(features, [ROT], -1)))


def changed(strengths):
    """Canonical and conditioned KV whose change in layer l has the singular values ``strengths[l]``."""
    rng = np.random.default_rng(0)
    layers, most = strengths.shape
    shapes = ((layers, TOKENS, most), (layers, ROT + FREE, most))
    u, v = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in shapes)
    canonical = rng.standard_normal((layers, TOKENS, ROT + FREE))
    change = (u * strengths[:, None]) @ v.swapaxes(1, 2)
    return kv(canonical + change), kv(canonical)


def paid(layers, share=0.1):
    """Components that a share of the bytes pays for: f32 KV, int8 factors with a scale each."""
    return int(share * layers * TOKENS * (ROT + FREE) * 4) // (TOKENS + ROT + FREE + 4)


def test_one_layer_gets_all_that_the_bytes_pay_for():
    strengths = np.zeros((2, TOKENS))
    strengths[1] = np.linspace(3, 2, TOKENS)
    fitted = Size().fit(*changed(strengths), TOKENS)
    assert paid(2) == 60
    assert np.asarray(fitted.factors.ranks).tolist() == [0, 60] and fitted.factors.u.dtype == jnp.int8
    left = np.sum(strengths[1, 60:] ** 2) / np.sum(strengths[1] ** 2)
    np.testing.assert_allclose(fitted.residual, [0, left], rtol=0, atol=0.01)


def test_components_go_where_the_energy_is():
    """As in a language model: far more than the mean in the last layer, next to nothing in the first ones."""
    depth = np.array([0.0, 0.05, 0.5, 0.8, 1.0, 1.4])
    strengths = depth[:, None] * np.exp(-np.arange(TOKENS) / 30)
    wanted = np.sort((strengths**2).ravel())[::-1][paid(len(depth)) - 1]
    wanted = (strengths**2 >= wanted).sum(-1)
    factors = Size().fit(*changed(strengths), TOKENS).factors
    assert wanted.max() > 1.5 * paid(len(depth)) / len(depth) > 32  # more than any bound of 32
    assert np.asarray(factors.ranks).tolist() == wanted.tolist()
    assert patch.nbytes(factors, TOKENS) <= 0.1 * len(depth) * TOKENS * (ROT + FREE) * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [16, 64, 128, 256, 512, 1024])
def test_sizes_are_few(rows, dtype):
    """One width for chunks of as many rows, whatever their length, and whether a share is asked for or not."""
    canonical = KV(jnp.zeros((30, rows, 192), dtype), jnp.zeros((30, rows, 192), dtype))
    token = 30 * 384 * jnp.dtype(dtype).itemsize
    lengths = range(rows // 2 + 1, rows + 1)
    widths = {Size().budget(canonical, length)[1] for length in lengths}
    assert len(widths) == 1
    width = widths.pop()
    assert width == min(rows, 384) or (width & (width - 1) == 0 and width >= 32)
    for length in lengths:
        count, _ = Size().budget(canonical, length)
        assert count <= 30 * width and count * (length + 384 + 4) <= max(0.1 * length * token, length + 388)
    same = {Size(max_bytes=int(0.1 * length * token)).budget(canonical, length)[1] for length in (rows // 2 + 1, rows)}
    assert same == {width}


def test_there_is_no_bound_of_a_layer_any_more():
    with pytest.warns(DeprecationWarning, match="WIDEST"):
        assert patch.WIDEST == 32
    with pytest.raises(AttributeError, match="there_is_none"):
        _ = patch.there_is_none


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_a_session_forms_what_form_patch_does(toy, mode, tmp_path):
    session = kj.Session(toy, CAPACITY, mode=mode)
    for item in ("abcdefgh", "the second one"):
        session.add(item)
    before = session.window
    key = session.add("another text")
    wanted = kj.form_patch(toy, kj.encode(toy, "another text"), context=before)
    own = session.window.entries[-1].patch
    assert (
        own.key == wanted.key
        and own.factors.scale is not None
        and 0 < own.nbytes <= 0.1 * session.window.entries[-1].chunk.nbytes
    )
    for ours, theirs in zip(jax.tree.leaves(own.factors), jax.tree.leaves(wanted.factors), strict=True):
        assert (np.asarray(ours) == np.asarray(theirs)).all()
    session.save(tmp_path / "session")
    again = kj.Session.restore(toy, tmp_path / "session")
    for each in (session, again):
        each.add("and one more")
    assert session.window.entries[-1].patch.key == again.window.entries[-1].patch.key and key in again.keys


def test_a_session_takes_a_rank(toy):
    session = kj.Session(toy, CAPACITY, rank=3)
    session.add("abcdefgh")
    before = session.window
    session.add("another text")
    wanted = kj.form_patch(toy, kj.encode(toy, "another text"), context=before, rank=3)
    assert session.window.entries[-1].patch.key == wanted.key


def test_the_planner_forms_what_form_patch_does(toy):
    window = kj.append(Window.empty(toy, CAPACITY), kj.encode(toy, "abcdefgh"))
    chunk = kj.encode(toy, "another text")
    planned = kj.planning.plan(toy, window, kj.planning.Append(chunk), policy=kj.ReusePolicy(fallback="patch"))
    done = kj.planning.execute(toy, planned)
    assert done.window.entries[-1].patch.key == kj.form_patch(toy, chunk, context=window).key
