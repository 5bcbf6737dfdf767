"""Video files against transformers' own video processors: frames that are taken, pixels, and positions."""

import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from models import load
from models.media.images import cropped_patches, resized
from models.media.sampling import UNBOUNDED, EndToEndSampling, Sampling, ShiftedSampling
from models.media.spans import Features
from models.media.video_files import read_video
from models.ports.internvl.media import sampling_from_hf
from models.ports.internvl.port import VIDEOS as TILES
from models.ports.llava_onevision import media as onevision
from models.ports.qwen2_5_vl.video import VideoMedium, video_config_from_hf
from models.ports.qwen3_vl.video import TimedVideoMedium
from models.registry import ARCHITECTURES
from tests.models import tiny_qwen3_vl
from tests.models.media.clips import write

pytestmark = pytest.mark.parity

MEDIUM = VideoMedium()


def metadata(total, rate):
    return VideoMetadata(total_num_frames=total, fps=float(rate), duration=total / float(rate))


RATES = pytest.mark.parametrize("rate", [10, 12.5, 23.976, 24, 25, 30000 / 1001, 30, 50, 60, 7.3])


@RATES
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


@RATES
@pytest.mark.parametrize("shift", [True, False, 2, 1.5, 0.25])
def test_frames_with_a_shift_are_those_that_transformers_takes(rate, shift):
    processor = InternVLVideoProcessor(initial_shift=shift)
    own = None if shift is True else float(shift)
    for total in [*range(3, 64), 97, 300, 999, 1500, 108_000]:
        of_file = metadata(total, rate)
        for frames, fps in ((3, None), (8, None), (64, None), (None, 0.5), (None, 1), (None, 2), (None, 4.0)):
            if (total / rate * fps < 1) if frames is None else frames > total:
                continue  # transformers refuses these
            sampling = ShiftedSampling(fps=fps or 2, frames=frames, most=UNBOUNDED, shift=own)
            places = sampling.places(total, rate)
            taken = places.astype(np.float32).astype(int)
            theirs = processor.sample_frames(of_file, num_frames=frames, fps=fps).numpy()
            theirs = theirs[theirs < total]  # one may stand behind the last frame, which transformers then fails at
            assert len(taken) == len(theirs)
            # Of thousands, torch.arange rounds as many at once as a vector of this machine holds.
            close = np.abs(places - places.round()) < 0.01 if len(places) > 1000 else np.zeros(len(places), bool)
            np.testing.assert_array_equal(taken[~close], theirs[~close])
            assert np.abs(taken - theirs).max() <= 1


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


def processed(path, count, rate, processor, **options):
    """All frames of a file, what transformers makes of them, and which it took."""
    every = read_video(path, Sampling(fps=1e6))
    assert len(every.frames) == count
    theirs = processor(
        videos=[torch.from_numpy(every.frames).permute(0, 3, 1, 2)],
        video_metadata=[metadata(count, rate)],
        return_metadata=True,
        return_tensors="pt",
        **options,
    )
    return every, theirs, theirs["video_metadata"][0]


def levels_apart(ours, theirs, settings):
    """The largest difference of normalised pixels [n, 3 ...], channels first in a patch, in levels of 255."""
    apart = np.abs(ours - theirs).reshape(len(ours), 3, -1)
    return (apart * np.asarray(settings.std)[:, None]).max() * 255


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_file_becomes_what_transformers_makes_of_it(tmp_path, name, container):
    count, rate, size, tokens_per_second = CASES[name]
    path = write(tmp_path / f"a.{container}", count, rate, size=size)
    processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 20}, fps=2.0, do_sample_frames=True
    )
    every, theirs, of_file = processed(path, count, rate, processor, cap_pixels_per_frame=False)

    stated = json.loads(processor.to_json_string())
    config = SimpleNamespace(towers=load("kamera-tiny-gqa").config.towers)
    video = read_video(path, MEDIUM.sampling(stated, config))
    np.testing.assert_array_equal(video.frames, every.frames[np.asarray(of_file.frames_indices)])
    settings = video_config_from_hf(stated)
    patches, positions, pairs = ours(video, settings, tokens_per_second)

    grid = theirs["video_grid_thw"][0]
    apart = levels_apart(patches, theirs["pixel_values_videos"].numpy(), settings)
    resized = size[0] % 28 or size[1] % 28
    assert pairs == grid[0] and apart <= (1.001 if resized else 1e-3)
    interval = tokens_per_second * processor.temporal_patch_size / of_file.sampled_fps
    expected = Qwen2_5_VLModel.get_vision_position_ids(None, 0, grid, 1, processor.merge_size, interval)
    np.testing.assert_array_equal(positions, expected.numpy())


TIMED = {
    "25 frames at 12.5": (25, Fraction(25, 2), (64, 96), 1000, {}),
    "NTSC, an odd last frame": (72, Fraction(30000, 1001), (96, 64), 1000, {}),
    "24 a second, resized": (50, 24, (50, 90), 1000, {}),
    "few frames": (3, 10, (64, 64), 1000, {}),
    "shrunk": (30, 10, (120, 200), 40, {}),
    "grown": (30, 10, (20, 36), 1000, {"shortest_edge": 32 * 32 * 60}),
    "a rate and a bound": (40, 10, (64, 96), 1000, {"fps": 3.0, "max_frames": 7}),
    "a number": (40, 10, (64, 96), 1000, {"fps": None, "num_frames": 5}),
}


@pytest.mark.parametrize("name", TIMED)
def test_a_file_becomes_what_qwen3_vl_reads(tmp_path, name):
    """The frames that are taken, the times that are written before them, and their pixels."""
    count, rate, size, most, options = TIMED[name]
    path = write(tmp_path / "a.mp4", count, rate, size=size)
    bounds = {"shortest_edge": options.get("shortest_edge", 32 * 32), "longest_edge": 32 * 32 * most}
    stated = {key: value for key, value in options.items() if key != "shortest_edge"}
    processor = Qwen3VLVideoProcessor(size=bounds, **stated)
    every, theirs, of_file = processed(path, count, rate, processor, cap_pixels_per_frame=False)

    chat = load("kamera-tiny-gqa")._chat
    mapping = tiny_qwen3_vl.config()
    mapping["vision_config"] |= {"patch_size": 16}
    tower = ARCHITECTURES["qwen3_vl"].config_from_hf(mapping).vision
    config = SimpleNamespace(towers={"vision": tower}, media={"video": (1, 2)}, placeholders={"video": 3})
    medium = TimedVideoMedium()
    own = {**json.loads(processor.to_json_string()), **stated}
    video = read_video(path, medium.sampling(own, config))
    np.testing.assert_array_equal(video.frames, every.frames[np.asarray(of_file.frames_indices)])

    settings = medium.settings(own, config)
    patches = []

    def encode(inputs, plan):
        patches.append(np.asarray(inputs)[: int(plan.tokens) * 4])
        return Features(np.zeros((int(plan.tokens), 1), np.float32))

    spans = medium.spans(video, settings, config, chat, encode)
    apart = levels_apart(np.concatenate(patches), theirs["pixel_values_videos"].numpy(), settings)
    grid = theirs["video_grid_thw"][0].tolist()
    resized = size != (16 * grid[1], 16 * grid[2])
    assert len(patches) == grid[0] and apart <= (1.001 if resized else 1e-3)
    assert resized == (name in ("24 a second, resized", "shrunk", "grown"))
    seconds = Qwen3VLProcessor._calculate_timestamps(None, np.asarray(of_file.frames_indices), of_file.fps)
    written = [span.ids for span in spans if span.ids[-1] == 1]
    assert written == [[*chat.ids(f"<{each:.1f} seconds>"), 1] for each in seconds]


TILED = {
    "25 frames at 12.5": (25, Fraction(25, 2), (56, 56), {"num_frames": 8}),
    "NTSC": (61, Fraction(30000, 1001), (56, 56), {"num_frames": 5}),
    "resized": (50, 24, (120, 200), {"num_frames": 8}),
    "grown": (30, 10, (20, 36), {"fps": 2.0}),
    "from the first frame": (30, 10, (56, 56), {"num_frames": 7, "initial_shift": False}),
    "from the third frame": (30, 10, (56, 56), {"num_frames": 10, "initial_shift": 2}),
}


@pytest.mark.parametrize("name", TILED)
def test_a_file_becomes_what_internvl_reads(tmp_path, name):
    count, rate, size, options = TILED[name]
    path = write(tmp_path / "a.mp4", count, rate, size=size)
    processor = InternVLVideoProcessor(size={"height": 56, "width": 56}, do_sample_frames=True, **options)
    every, theirs, of_file = processed(path, count, rate, processor)

    own = json.loads(processor.to_json_string())
    video = read_video(path, sampling_from_hf(own))
    np.testing.assert_array_equal(video.frames, every.frames[np.asarray(of_file.frames_indices)])
    settings = TILES.settings_from_hf(own, 14)
    tiles = []
    for _, picture in TILES.pictures(video):
        cut = TILES.preprocess(picture, settings)
        assert cut.grid == (1, 4, 4)
        tiles.append(cut.patches.reshape(4, 4, 3, 14, 14).transpose(2, 0, 3, 1, 4).reshape(3, 56, 56))
    apart = levels_apart(np.stack(tiles), theirs["pixel_values_videos"][0].numpy(), settings)
    assert apart <= (1e-3 if size == (56, 56) else 1.001)


@pytest.mark.parametrize(("size", "options"), [((56, 56), {"num_frames": 4}), ((30, 90), {"fps": 2.0})])
def test_a_file_becomes_what_llava_onevision_reads(tmp_path, size, options):
    count = 31
    rate = Fraction(25, 2)
    path = write(tmp_path / "a.mp4", count, rate, size=size)
    processor = LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56}, do_sample_frames=True, **options)
    every, theirs, of_file = processed(path, count, rate, processor)

    own = json.loads(processor.to_json_string())
    video = read_video(path, onevision.sampling_from_hf(own))
    assert len(video.frames) == 4
    np.testing.assert_array_equal(video.frames, every.frames[np.asarray(of_file.frames_indices)])
    settings = onevision.video_config_from_hf(own, SimpleNamespace(image_size=56, patch_size=14))
    cut = [cropped_patches(resized(Image.fromarray(frame), 56, 56), settings).patches for frame in video.frames]
    tiles = np.stack(cut).reshape(4, 4, 4, 3, 14, 14).transpose(0, 3, 1, 4, 2, 5).reshape(4, 3, 56, 56)
    apart = levels_apart(tiles, theirs["pixel_values_videos"][0].numpy(), settings)
    assert apart <= (1e-3 if size == (56, 56) else 1.001)
