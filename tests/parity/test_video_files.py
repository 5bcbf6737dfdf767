"""Video files against transformers' own video processors: frames that are taken, pixels, and positions."""

import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from models import load
from models.media.sampling import EndToEndSampling, Sampling
from models.media.spans import Features
from models.media.video_files import read_video
from models.ports.qwen2_5_vl.video import VideoMedium, video_config_from_hf
from tests.models.media.clips import write

pytestmark = pytest.mark.parity

MEDIUM = VideoMedium()


def metadata(total, rate):
    return VideoMetadata(total_num_frames=total, fps=float(rate), duration=total / float(rate))


@pytest.mark.parametrize("rate", [10, 12.5, 23.976, 24, 25, 30000 / 1001, 30, 50, 60, 7.3])
def test_frames_are_those_that_transformers_takes(rate):
    qwen2 = Qwen2VLVideoProcessor()
    qwen3 = Qwen3VLVideoProcessor()
    for total in [*range(2, 64), 97, 300, 999, 1500, 108_000]:
        of_file = metadata(total, rate)
        for fps in (0.5, 1, 2, 4.0):
            taken = Sampling(fps=fps, least=4, multiple=2).places(total, rate).astype(np.float32).astype(int)
            np.testing.assert_array_equal(taken, qwen2.sample_frames(of_file, fps=fps)[: len(taken)])
            taken = EndToEndSampling(fps=fps, least=4).places(total, rate).astype(int)
            np.testing.assert_array_equal(taken, qwen3.sample_frames(of_file, fps=fps))
        if total >= 8:
            taken = Sampling(frames=8, multiple=2).places(total, rate).astype(np.float32).astype(int)
            np.testing.assert_array_equal(taken, qwen2.sample_frames(of_file, num_frames=8))


def ours(video, settings, tokens_per_second):
    """Patches, grid, and positions [3, n], as the port has them; no tower is run."""
    vlm = load("kamera-tiny-gqa")
    patches = []

    def encode(inputs, plan):
        rows = int(plan.tokens) * vlm.config.vision.spatial_merge_size**2
        patches.append(np.asarray(inputs)[:rows])
        return Features(np.zeros((int(plan.tokens), 1), np.float32))

    config = SimpleNamespace(
        towers=vlm.config.towers, media={"video": tokens_per_second}, placeholders=vlm.config.placeholders
    )
    spans = MEDIUM.spans(video, settings, config, vlm._chat, encode)
    return np.concatenate(patches), np.concatenate([each.positions for each in spans], axis=1), len(spans)


CASES = {
    "25 frames at 12.5": (25, Fraction(25, 2), (56, 84), 2),
    "NTSC": (61, Fraction(30000, 1001), (84, 56), 2),
    "24 a second, resized": (50, 24, (50, 90), 4),
    "few frames": (3, 10, (56, 56), 2),
    "shrunk": (30, 10, (120, 200), 2),
    "grown": (30, 10, (20, 36), 25),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_file_becomes_what_transformers_makes_of_it(tmp_path, name, container):
    count, rate, size, tokens_per_second = CASES[name]
    path = write(tmp_path / f"a.{container}", count, rate, size=size)
    processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 20}, fps=2.0, do_sample_frames=True
    )
    every = read_video(path, Sampling(fps=1e6))
    assert len(every.frames) == count
    theirs = processor(
        videos=[torch.from_numpy(every.frames).permute(0, 3, 1, 2)],
        video_metadata=[metadata(count, rate)],
        return_metadata=True,
        cap_pixels_per_frame=False,
        return_tensors="pt",
    )
    (of_file,) = theirs["video_metadata"]

    stated = json.loads(processor.to_json_string())
    config = SimpleNamespace(towers=load("kamera-tiny-gqa").config.towers)
    video = read_video(path, MEDIUM.sampling(stated, config))
    np.testing.assert_array_equal(video.frames, every.frames[np.asarray(of_file.frames_indices)])
    settings = video_config_from_hf(stated)
    patches, positions, pairs = ours(video, settings, tokens_per_second)

    grid = theirs["video_grid_thw"][0]
    levels = np.asarray(settings.std).max() * 255
    apart = np.abs(patches - theirs["pixel_values_videos"].numpy()).max() * levels
    resized = size[0] % 28 or size[1] % 28
    assert pairs == grid[0] and apart <= (1.001 if resized else 1e-3)
    interval = tokens_per_second * processor.temporal_patch_size / of_file.sampled_fps
    expected = Qwen2_5_VLModel.get_vision_position_ids(None, 0, grid, 1, processor.merge_size, interval)
    np.testing.assert_array_equal(positions, expected.numpy())
