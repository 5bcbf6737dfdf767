"""Sound of the omni models against transformers: mel, the tower, whole prompts, chunks moved, reused and patched."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

import kamera_jax as kj
from kamera_jax.forward import run
from models.blocks.vit import pad_patches
from models.media import mel
from models.media.recordings import parts, spectrogram
from tests.omni_files import AUDIO, TOKENS
from tests.parity import omni_pair
from tests.parity.oracle import assert_close, assert_prefilled, assert_same_positions, token
from tests.parity.test_reuse import assert_blind_equals_hf, assert_items_equal_there, patched

pytestmark = pytest.mark.parity

SIZE = 128
QUESTION = "which colour is the cell on the page?"

pairs = pytest.mark.parametrize("pair", omni_pair.SOUNDING, indirect=True)
FAMILIES = ("qwen2_5_omni", "qwen3_omni_moe")
ONE_A_FAMILY = [next(name for name in omni_pair.SOUNDING if name.startswith(family)) for family in FAMILIES]
one_a_family = pytest.mark.parametrize("pair", ONE_A_FAMILY, indirect=True)
some_pairs = pytest.mark.parametrize("pair", [*ONE_A_FAMILY, list(omni_pair.SOUNDING)[1]], indirect=True)


def sound(samples, seed=0):
    """Noise whose second half is quieter by what the floor of the spectrogram lies between."""
    rng = np.random.default_rng(seed)
    noise = 0.1 * rng.standard_normal(samples).astype(np.float32)
    noise[samples // 2 :] *= 1e-3
    return kj.Audio(noise, 16000)


def frames_of(pair, pieces, more):
    return pieces * 2 * pair.hf.config.audio_config.n_window + more


def recording(pair, pieces, more, seed=0):
    """Of whole pieces of the tower and some frames, of which the last is not whole."""
    return sound(pair.samples(max(3, frames_of(pair, pieces, more))), seed)


def video(pair, count, fps, seed=0):
    shape = (count, 2 * pair.cell, 2 * pair.cell, 3)
    return kj.Video.at_rate(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), fps)


def prompts(pair):
    """Recordings that cross a piece by one frame, with an odd last row, of one token; and two media in one chunk."""
    return {
        "a frame more than pieces": [recording(pair, 1, 1)],
        "an odd row": [recording(pair, 0, 5, seed=1), recording(pair, 0, 3, seed=2)],
        "whole pieces": [recording(pair, 1, 0, seed=3)],
        "with an image and a video": [
            [pair.image("wide"), recording(pair, 0, 7, seed=4), "the first page.", video(pair, 3, 3.0)],
            recording(pair, 0, 9, seed=5),
        ],
    }


# Mel


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quiet", [1.0, 1e-4])
@pytest.mark.parametrize("samples", [480, 501, 1600, 32000, 32077, 95_920, 95_921, 96_000])
def test_mel_equals_hf_s(samples, quiet, mirrored):
    """Up to the 6 seconds that the processor reads; the frames of the last 25 ms know what is behind them, if anything.

    HF computes in f64 with numpy and in f32 with torch, which is up to 3.5e-6 off in noise, and 1e-5 far below the
    loudest band.
    """
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=6, hop_length=160, n_fft=400)
    noise = 0.1 * np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    noise[samples // 2 :] *= quiet
    given = {"sampling_rate": 16000, "return_attention_mask": True, "return_tensors": "np"}
    how = {"padding": True, "truncation": False} if mirrored else {"padding": "max_length"}
    made = extractor(noise, **given, **how)
    frames = int(made["attention_mask"].sum())
    assert frames == (samples // 160 if mirrored else -(-samples // 160))
    ours = spectrogram(kj.Audio(noise, 16000), 128, 6, mirrored=mirrored)
    assert ours.dtype == np.float32 and ours.shape == (frames, 128)
    filled = noise if mirrored else np.pad(noise, (0, 96_000 - samples))
    exact = extractor._np_extract_fbank_features(filled[None], "cpu")[0].T[:frames]
    np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6)
    theirs = made["input_features"][0, :, :frames].T
    rounded = np.abs(theirs - exact)
    assert (np.abs(ours - theirs) <= 2e-6 + rounded).all() and np.median(np.abs(ours - theirs)) <= 2e-7


def test_bands_equal_hf_s():
    for count in (80, 128):
        expected = WhisperFeatureExtractor(feature_size=count).mel_filters
        np.testing.assert_allclose(mel.bands(count), expected, rtol=0, atol=1e-12)


# The tower


@pytest.fixture
def towers(pair):
    """The port's tower and HF's, of frames [T, F]."""
    config = pair.vlm.config.towers["audio"]
    medium = pair.vlm.architecture.medium("audio")
    run_tower = jax.jit(partial(medium.embed, pair.vlm.params["audio"], config))

    def ours(frames, behind=False):
        layout = medium.plan(len(frames), config, behind)
        made = np.asarray(run_tower(pad_patches(frames, layout), layout))
        assert not made[int(layout.tokens) :].any()
        return made[: int(layout.tokens)]

    def theirs(frames):
        lengths = torch.tensor([len(frames)])
        with torch.no_grad():
            return pair.hf.model.audio_tower(torch.from_numpy(frames.T), feature_lens=lengths)[0].numpy()

    return ours, theirs


def assert_tower_equals_hf(pair, towers, frames):
    ours, theirs = towers
    given = np.random.default_rng(7).standard_normal((frames, pair.vlm.config.towers["audio"].bands))
    expected = theirs(given.astype(np.float32))
    made = ours(given.astype(np.float32))
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() <= 2e-6 * np.abs(expected).max()


@pairs
@pytest.mark.parametrize("pieces, more", [(0, 3), (1, 0), (1, 1), (1, 2), (2, -1), (3, 5)])
def test_the_tower_equals_hf_s(pair, towers, pieces, more):
    assert_tower_equals_hf(pair, towers, frames_of(pair, pieces, more))


@one_a_family
def test_the_tower_equals_hf_s_on_a_long_recording(pair, towers):
    """Of more pieces than are computed at once."""
    assert_tower_equals_hf(pair, towers, frames_of(pair, 17, 3))


@pairs
def test_a_recording_in_parts_gives_the_tower_s_rows_of_the_whole(pair, towers):
    """Cut after the mel: the quiet half is normalised with the loud one, and no token lies in two parts."""
    ours, theirs = towers
    config = pair.vlm.config.towers["audio"]
    medium = pair.vlm.architecture.medium("audio")
    read = partial(spectrogram, bands=config.bands, seconds=10, mirrored=medium.mirrored, least=medium.least)
    step, tokens = medium.unit(config)
    audio = sound(pair.samples(2 * step + 3), seed=8)
    whole = read(audio)
    blocks = partial(np.array_split, audio.samples, 3)
    cut = list(parts(blocks, step, config.bands, mirrored=medium.mirrored, least=medium.least))
    assert [part.frames for part in cut] == [step, step, 3]
    pieces = [read(part) for part in cut]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    made = [ours(piece, behind=number > 0) for number, piece in enumerate(pieces)]
    assert [len(each) for each in made] == [tokens, tokens, 1]
    expected = theirs(whole)
    assert np.abs(np.concatenate(made) - expected).max() <= 2e-6 * np.abs(expected).max()
    if medium.mirrored:  # the last piece alone is not filled up
        assert np.abs(ours(pieces[2]) - expected[-1:]).max() > 1e-3 * np.abs(expected).max()
    alone = read(kj.Audio(audio.samples[step * 160 :], 16000))
    assert np.abs(alone[:step] - whole[step : 2 * step]).max() > 0.05


# Rungs 2 to 5


@pytest.fixture(params=["a frame more than pieces", "an odd row", "whole pieces", "with an image and a video"])
def prompt(pair, request):
    return pair.prompt(prompts(pair)[request.param], QUESTION)


@pairs
def test_whole_prompt_equals_hf(pair, prompt):
    tokens = [np.asarray(s.inputs["tokens"])[: int(s.length)] for s in prompt.segments]
    positions = [np.asarray(s.positions)[:, : int(s.length)] for s in prompt.segments]
    np.testing.assert_array_equal(np.concatenate(tokens), prompt.ids)
    assert_same_positions(np.concatenate(positions, axis=1), prompt.positions)
    assert (prompt.ids == TOKENS[AUDIO]).any()

    segment = prompt.joined(size=SIZE)
    length = len(prompt.ids)
    output = run(pair.vlm.params, segment, None, jnp.arange(SIZE), forward=pair.vlm.forward)
    assert_close(np.asarray(output.logits)[:length], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, :length], prompt.full.rot, layers=True)
    assert_close(np.asarray(output.kv.free)[:, :length], prompt.full.free, layers=True)


@pairs
def test_a_chunk_rotated_equals_hf_there(pair):
    """At a place that is no whole number too."""
    items = prompts(pair)["with an image and a video"][:1]
    assert token("video_pad") in pair.prompt(items, QUESTION).ids
    assert_items_equal_there(pair, items, 37)
    assert_items_equal_there(pair, items, np.float32(37.4))
    assert_items_equal_there(pair, prompts(pair)["a frame more than pieces"], np.float32(37.4))


@some_pairs
def test_blind_and_patched_reuse_equal_hf(pair):
    prompt = pair.prompt(prompts(pair)["with an image and a video"], QUESTION)
    assert_blind_equals_hf(pair, prompt, "pinned")
    assert_prefilled(patched(pair.vlm, prompt.items, "antecedents"), prompt)


@one_a_family
def test_greedy_generation_equals_hf(pair):
    prompt = pair.prompt(prompts(pair)["an odd row"], QUESTION)
    ids = torch.from_numpy(prompt.ids)[None]
    given = {**prompt.media.tensors, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        whole = pair.hf.generate(ids, **given, max_new_tokens=6, do_sample=False)
    expected = [each for each in whole[0, ids.shape[1] :].tolist() if each not in pair.vlm.eos]
    window = kj.prefill(pair.vlm, prompt.items, capacity=128)
    assert list(kj.generate(pair.vlm, window, QUESTION, max_new_tokens=6).tokens) == expected
