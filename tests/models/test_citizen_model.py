"""Models as values: other parameters, copies, pickles, devices, dtypes, and preprocessing in other processes."""

import copy
import multiprocessing
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from models import load
from models.errors import ParamsError
from models.preprocessor import PreprocessedError
from models.vlm import ItemError

IMAGE = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
ITEMS = ("the sky is blue", IMAGE, ["first", IMAGE, "then", IMAGE])


@pytest.fixture(scope="module")
def vlm():
    return load("kamera-tiny-gqa")


def bits(tree):
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def test_parameters_are_not_assigned(vlm):
    params = vlm.params
    with pytest.raises(ValueError, match="vlm.with_params"):
        vlm.params = jax.tree.map(lambda leaf: leaf, params)
    with pytest.raises(AttributeError):
        vlm.params = params
    assert vlm.params is params


def test_tuned_parameters_are_another_model(vlm):
    before = kj.encode(vlm, "the sky")
    tuned = jax.tree.map(lambda leaf: leaf * jnp.asarray(1.5, leaf.dtype), vlm.params)
    other = vlm.with_params(tuned, revision="run 3, step 100")
    after = kj.encode(other, "the sky")
    assert other.fingerprint != vlm.fingerprint == before.model
    assert other.spec.fingerprint == other.fingerprint == after.model != before.model
    assert after.key != before.key and after.preamble != before.preamble
    assert other.calibration is None and other.forward is vlm.forward
    window = kj.Window.empty(other, 128)
    assert bits(window.preamble.chunk.kv) != bits(kj.Window.empty(vlm, 128).preamble.chunk.kv)
    with pytest.raises(ValueError, match="weights"):
        kj.append(window, before)
    assert kj.encode(vlm, "the sky").key == before.key
    assert vlm.with_params(tuned, revision="run 3, step 100").fingerprint == other.fingerprint
    assert vlm.with_params(tuned, revision="run 3, step 200").fingerprint != other.fingerprint


def test_parameters_without_a_revision_are_digested(vlm):
    tuned = jax.tree.map(lambda leaf: leaf * jnp.asarray(1.5, leaf.dtype), vlm.params)
    one = vlm.with_params(tuned)
    assert one.fingerprint == vlm.with_params(jax.tree.map(np.asarray, tuned)).fingerprint
    slightly = {**tuned, "text": {**tuned["text"], "norm": tuned["text"]["norm"].at[0].add(1)}}
    assert vlm.with_params(slightly).fingerprint != one.fingerprint
    wide = vlm.with_params(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), vlm.params))
    assert wide.spec.dtype == "float32" and kj.encode(wide, "the sky").kv.rot.dtype == jnp.float32


def test_parameters_that_do_not_fit(vlm):
    text = vlm.params["text"]
    cases = {
        r"lack \['text'\]": {name: part for name, part in vlm.params.items() if name != "text"},
        "have .*more": {**vlm.params, "more": text["norm"]},
        "expected an array of shape": {**vlm.params, "text": {**text, "norm": text["norm"][:-1]}},
        "is float;": {**vlm.params, "text": {**text, "norm": 1.0}},
        "several dtypes": {**vlm.params, "text": {**text, "norm": text["norm"].astype(jnp.float16)}},
        "is int8": {**vlm.params, "text": {**text, "norm": text["norm"].astype(jnp.int8)}},
    }
    for message, params in cases.items():
        with pytest.raises(ValueError, match=message):
            vlm.with_params(params)
    with pytest.raises(ParamsError, match="revision="):
        jax.eval_shape(lambda params: vlm.with_params(params).params, vlm.params)
    shapes = jax.eval_shape(lambda params: vlm.with_params(params, revision="traced").params, vlm.params)
    assert jax.tree.structure(shapes) == jax.tree.structure(vlm.params)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda vlm: pickle.loads(pickle.dumps(vlm))])
def test_a_copy_of_a_model(vlm, copied):
    other = copied(vlm)
    assert other is not vlm and other.forward is vlm.forward
    assert (other.fingerprint, other.spec) == (vlm.fingerprint, vlm.spec)
    assert bits(other.params) == bits(vlm.params)
    assert bits(kj.encode(other, IMAGE)) == bits(kj.encode(vlm, IMAGE))
    assert kj.encode(other, IMAGE).key == kj.encode(vlm, IMAGE).key


@pytest.mark.parametrize("dtype", ["float64", "int8", np.float64, "float8_e4m3fn", "complex64", bool])
def test_dtypes_that_parameters_cannot_have(dtype):
    with pytest.raises(ValueError, match="dtype is .*expected one of float32, bfloat16, float16"):
        load("kamera-tiny-gqa", dtype=dtype)


@pytest.mark.parametrize("mode", ["materialise", "in_place"])
def test_half_precision(mode):
    vlm = load("kamera-tiny-gqa", dtype="float16")
    a, b = (kj.encode(vlm, text) for text in ("the sky is blue", "a star"))
    window = kj.append(kj.append(kj.Window.empty(vlm, 128, mode=mode), a), b)
    assert np.isfinite(np.asarray(kj.query(vlm, window, "what colour?"))).all()


# Preprocessing


def worker(preprocess, items, connection):
    connection.send([preprocess(item) for item in items])


@pytest.mark.parametrize("number", range(len(ITEMS)))
def test_what_was_preprocessed_is_prepared_to_the_same(vlm, number):
    done = vlm.preprocess(ITEMS[number])
    assert not [leaf for span in done.spans for leaf in jax.tree.leaves(vars(span)) if isinstance(leaf, jax.Array)]
    ours = vlm.prepare(pickle.loads(pickle.dumps(done)))
    theirs = vlm.prepare(ITEMS[number])
    assert ours.content == theirs.content and ours.advance == theirs.advance
    assert bits(ours) == bits(theirs)
    assert vlm.preprocess(done) is done
    assert kj.encode(vlm, done).key == kj.encode(vlm, ITEMS[number]).key


def test_workers_that_were_forked(vlm):
    """After the device was used, where the tower would wait for threads that are not there."""
    vlm.prepare(IMAGE)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with pytest.warns(Warning):  # that forks and threads do not go together: what the worker calls needs none
        child = context.Process(target=worker, args=(vlm.preprocess, ITEMS, theirs))
        child.start()
    assert ours.poll(60)
    done = ours.recv()
    child.join(10)
    assert [bits(vlm.prepare(each)) for each in done] == [bits(vlm.prepare(item)) for item in ITEMS]


def test_a_preprocessor_pickles_without_the_parameters(vlm):
    pickled = pickle.dumps(vlm.preprocess)
    assert len(pickled) < sum(leaf.nbytes for leaf in jax.tree.leaves(vlm.params))
    done = pickle.loads(pickled)(IMAGE)
    assert bits(vlm.prepare(done)) == bits(vlm.prepare(IMAGE))


def test_what_was_preprocessed_for_another_model(vlm):
    other = load("kamera-tiny-mla")
    with pytest.raises(PreprocessedError, match="preprocess it with this model's preprocess"):
        other.prepare(vlm.preprocess("the sky"))
    with pytest.raises(ItemError, match="of type object"):
        vlm.preprocess(object())
