"""Segments and streams of them: what they say, how they are packed for training, and that training on them runs."""

import json

import jax
import numpy as np
import pytest

from eval.tiny import pages
from eval.tiny.backbones import BACKBONES, EMBEDDED
from eval.tiny.batches import Words, pack, slots_for
from eval.tiny.episodes import MOVING, SEGMENTS, sample_episode
from eval.tiny.language import Stage
from eval.tiny.stream import NEAR, REACH, REFERENCES, THINGS, sample_stream
from eval.tiny.train import train_video
from eval.tiny.vocabulary import VOCABULARY
from kamera_jax.items import Video
from models import load
from models.registry import CHECKPOINTS

WORDS = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))
SHAPE = (SEGMENTS.moments, SEGMENTS.rows, SEGMENTS.columns)


@pytest.mark.parametrize("seed", range(5))
def test_a_segment_shows_all_its_things_at_every_moment_and_few_of_them_move(seed):
    episode = sample_episode(np.random.default_rng(seed), SEGMENTS, 3)
    for chunk in episode.chunks:
        assert chunk.cells.shape == SHAPE
        things = [np.sort(moment[moment >= pages.BACKGROUNDS]) for moment in chunk.cells]
        assert all(np.array_equal(things[0], each) for each in things)
        assert {pages.parse(cell)[1] for cell in things[0]} == set(chunk.entries)
        for before, after in zip(chunk.cells[:-1], chunk.cells[1:], strict=True):
            assert 0 <= np.sum(before != after) <= 2 * MOVING


def test_a_segment_is_a_video_of_two_equal_frames_a_moment():
    cells = sample_episode(np.random.default_rng(3), SEGMENTS, 2).chunks[0].cells
    video = pages.shown(cells)
    assert isinstance(video, Video) and len(video.frames) == pages.FRAMES * SEGMENTS.moments
    np.testing.assert_array_equal(video.times, np.arange(8) / 2)
    np.testing.assert_array_equal(video.frames[4], np.asarray(pages.render(cells[2])))
    np.testing.assert_array_equal(video.frames[4], video.frames[5])


def test_segments_are_packed_as_the_model_reads_them():
    """Ids and positions of a segment in training are those of the video in the loaded model."""
    vlm = load("kamera-tiny-video")
    backbone = EMBEDDED["video"]
    rng = np.random.default_rng(4)
    episode = sample_episode(rng, SEGMENTS, 2)
    slots = slots_for(SEGMENTS, WORDS, 2, backbone)
    batch = pack([episode], WORDS, rng, backbone=backbone, phrases=SEGMENTS.phrases, max_gap=0, slots=slots)
    segment = vlm.prepare(pages.shown(episode.chunks[0].cells))
    mine = batch.chunk[0] == 0
    length = int(segment.length)
    assert mine.sum() == length
    begin = len(WORDS.preamble)
    np.testing.assert_array_equal(batch.positions[0][:, mine] - begin, np.asarray(segment.positions)[:, :length])
    media = np.asarray(segment.inputs["is_media"])[:length]
    np.testing.assert_array_equal(batch.ids[0][mine] >= WORDS.size, media)
    np.testing.assert_array_equal(batch.ids[0][mine][~media], np.asarray(segment.inputs["tokens"])[:length][~media])
    second = batch.positions[0][:, batch.chunk[0] == 1]
    assert second.min() == begin + float(segment.advance)


def test_later_segments_refer_to_what_a_window_of_five_still_shows():
    stream = sample_stream(np.random.default_rng(6), 30)
    assert [chunk.cells.shape for chunk, _ in stream] == [SHAPE] * 30
    for number, (chunk, truths) in enumerate(stream):
        assert len(truths) == len(chunk.entries) == THINGS
        near = {truth.glyph for _, own in stream[max(0, number - NEAR) : number] for truth in own}
        assert not near & {truth.glyph for truth in truths}
        assert sum(truth.behind > 0 for truth in truths) == (REFERENCES if number else 0)
        for truth in truths:
            kind, value = chunk.entries[truth.glyph]
            if truth.behind:
                assert kind == "reference" and truth.behind <= REACH
                assert stream[number - truth.behind][0].entries[value] == ("fact", truth.colour)
            else:
                assert (kind, value) == ("fact", truth.colour)


def test_training_goes_on_from_the_model_of_pages_and_writes_one_that_loads(tmp_path):
    recipe = SEGMENTS.__class__(**{**vars(SEGMENTS), "chunks": (2, 2), "questions": 2})
    start = CHECKPOINTS / BACKBONES["gqa"].name
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        train_video(tmp_path, start, stages=(Stage(recipe, steps=2, batch=2),))
    history = json.loads((tmp_path / "training.json").read_text())
    assert [record["part"] for record in history] == ["segments"] and np.isfinite(history[0]["loss"])
    trained = load(tmp_path)
    before = load(start)
    assert not np.array_equal(trained.params["text"]["embed"]["w"], before.params["text"]["embed"]["w"])
    for mine, theirs in zip(*(jax.tree.leaves(each.params["vision"]) for each in (trained, before)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
