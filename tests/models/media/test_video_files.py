"""Video files: which frames are taken, at which times, in segments; and what is no video that can be read."""

import os
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from models.media import pictures, video_stream
from models.media.files import MediaFileError
from models.media.sampling import Sampling, SamplingError
from models.media.video_files import (
    DamagedVideoError,
    FrameSizeError,
    VideoFile,
    VideoFormatError,
    VideoReaderError,
    VideoSizeError,
    VideoTimesError,
    clock_time,
    file_segments,
    read_video,
    video_file,
)
from tests.models.media.clips import frame, number, numbers, turn, write, write_sizes

QWEN = Sampling(least=4, multiple=2)
ALL = Sampling(fps=1000)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),  # frames are reordered
        ("a.mov", "mpeg4"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("b.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
    ],
)
def test_frames_are_at_the_times_of_the_file_in_every_format(tmp_path, name, codec):
    path = write(tmp_path / name, 25, codec=codec, sound=name == "a.mp4")
    every = read_video(path, ALL)
    assert numbers(every) == list(range(25))
    np.testing.assert_allclose(every.times, np.arange(25) * 0.08, atol=1e-6)
    # 25 frames at 12.5 a second are 2 s: of four frames each stands for half a second.
    video = read_video(path, QWEN)
    assert numbers(video) == [0, 6, 12, 18]
    np.testing.assert_allclose(video.times, [0, 0.5, 1, 1.5])
    again = read_video(path, QWEN)
    np.testing.assert_array_equal(again.frames, video.frames)


def test_rates_that_a_clock_of_milliseconds_rounds(tmp_path):
    path = write(tmp_path / "a.mkv", 60, Fraction(30000, 1001))
    video = read_video(path, QWEN)
    assert numbers(video) == [0, 15, 30, 45]
    np.testing.assert_allclose(video.times, np.array([0, 15, 30, 45]) * 1.001 / 30, rtol=1e-6)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_rate_takes_what_is_shown_at_each_moment(tmp_path, name):
    """The file's average rate is far from the truth: 5 frames of 20 s."""
    path = write(tmp_path / name, 5, times=[0, 100, 200, 10_000, 20_000])
    video = read_video(path, QWEN)  # at most as many frames as there are
    assert numbers(video) == [0, 2, 3, 3]
    np.testing.assert_allclose(video.times, np.arange(4) * 5.02, atol=0.02)  # how long the last one lasts varies
    segments = list(file_segments(path, 10, QWEN))
    assert [numbers(each.video) for each in segments] == [[0, 1], [3], [4]]
    assert [each.video.times[0] for each in segments] == pytest.approx([0, 10, 20])


def test_segments_follow_one_another(tmp_path):
    path = write(tmp_path / "clip.mp4", 100, 10)
    segments = list(file_segments(path, 4, QWEN))
    assert [each.name for each in segments] == [
        "clip.mp4, 0:00–0:04",
        "clip.mp4, 0:04–0:08",
        "clip.mp4, 0:08–0:10",
    ]
    assert [(each.begin, each.end) for each in segments] == [(0, 4), (4, 8), (8, 10)]
    assert [numbers(each.video) for each in segments] == [
        [0, 5, 10, 15, 20, 25, 30, 35],
        [40, 45, 50, 55, 60, 65, 70, 75],
        [80, 85, 90, 95],
    ]
    np.testing.assert_allclose(segments[1].video.times, 4 + np.arange(8) / 2)
    every = [numbers(each.video) for each in file_segments(path, 0.35, ALL)]
    assert sum(every, []) == list(range(100)) and [len(each) for each in every[:4]] == [4, 3, 4, 3]
    assert [numbers(each.video) for each in file_segments(path, 5, Sampling(frames=2))] == [[0, 25], [50, 75]]
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="expected a number above 0"):
            next(file_segments(path, wrong))


@pytest.mark.parametrize(("count", "taken"), [(1, [0]), (2, [0, 1]), (3, [0, 1]), (5, [0, 1, 2, 3])])
def test_few_frames(tmp_path, count, taken):
    assert numbers(read_video(write(tmp_path / "a.mp4", count, 10), QWEN)) == taken


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda pixels: pixels),
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # a phone held upright: clockwise
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels)),
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
        ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
        ((0, 1, 1, 0), lambda pixels: pixels.swapaxes(0, 1)),
    ],
)
def test_frames_are_turned_as_a_player_turns_them(tmp_path, matrix, shown):
    path = write(tmp_path / "a.mp4", 2, 10)
    stored = read_video(path, ALL).frames
    turned = read_video(turn(path, matrix), ALL).frames
    np.testing.assert_array_equal(turned, np.stack([shown(each) for each in stored]))


def test_other_angles_are_refused(tmp_path):
    path = turn(write(tmp_path / "a.mp4", 2, 10), (1, 1, -1, 1))
    with pytest.raises(MediaFileError, match="expected multiples of 90 degrees"):
        read_video(path)


def test_ten_hours_of_two_frames(tmp_path):
    path = write(tmp_path / "a.mp4", 2, times=[0, 36_000_000])
    video = read_video(path, QWEN)
    assert numbers(video) == [0, 1] and video.times.tolist() == [0, 36_000]
    segments = list(file_segments(path, 4, QWEN))
    assert [each.name for each in segments] == ["a.mp4, 0:00–0:04", "a.mp4, 10:00:00–10:00:00.08"]
    assert segments[1].video.times.tolist() == [36_000]


def test_many_frames_run_at_bounded_memory(tmp_path):
    """2,000 frames of 18 MB in all: whatever the length, a segment's frames are in memory, and a packet's time each."""
    path = write(tmp_path / "a.mp4", 2000, 25)
    last = 0
    tracemalloc.start()
    for each in file_segments(path, 4, QWEN):
        assert len(each.video.frames) == 8
        last = each.video.times[-1]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last == 79.5
    assert most < 2**20


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", {"options": {"movflags": "faststart"}}),
        ("a.mp4", "libx264", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mjpeg", {}),
    ],
)
@pytest.mark.parametrize("share", [0.05, 0.6, 0.99])
def test_a_file_that_breaks_off(tmp_path, name, codec, options, share):
    path = write(tmp_path / name, 25, codec=codec, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DamagedVideoError, match="breaks off: .* bytes are lacking"):
        read_video(path)
    with pytest.raises(DamagedVideoError, match="breaks off"):
        next(file_segments(path, 1))


def test_a_stream_that_is_cut_anywhere_is_read_as_far_as_it_goes(tmp_path):
    path = write(tmp_path / "a.ts", 25)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    read = numbers(read_video(path, Sampling(fps=3)))
    assert read == sorted(read) and 2 <= len(read) < 25


def test_bytes_that_are_not_those_that_were_written(tmp_path):
    path = write(tmp_path / "a.mp4", 25, codec="mjpeg")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + len(content) // 3
    content[start : start + len(content) // 3] = bytes(len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(DamagedVideoError, match="a.mp4"):
        read_video(path, ALL)


def test_what_is_no_video(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("what a day. " * 99)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:1\nfile:/etc/passwd\n")  # no other file is opened
    image = tmp_path / "image.mp4"
    from PIL import Image

    Image.new("RGB", (9, 9)).save(image, "PNG")
    for path in (text, empty, playlist, image):
        with pytest.raises(VideoFormatError, match=f"{path.name} is no video file that can be read"):
            read_video(path)


def test_sound_alone(tmp_path):
    import av

    from tests.models.media.clips import write_sound

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        write_sound(container, container.add_stream("aac", rate=44100, layout="mono"), 0.5)
    with pytest.raises(VideoFormatError, match=r"has no video stream \(its streams are: audio\)"):
        read_video(path)


def test_no_frames(tmp_path):
    import av

    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height = 48
        stream.width = 64
        stream.pix_fmt = "yuvj420p"
        container.start_encoding()
    with pytest.raises((DamagedVideoError, VideoFormatError, VideoSizeError), match="a.avi"):
        read_video(path)


def test_a_size_that_changes(tmp_path):
    path = write_sizes(tmp_path / "a.avi", [(48, 64)] * 10 + [(64, 48)] * 10)
    with pytest.raises(FrameSizeError, match="from 64 x 48 to 48 x 64 pixels at 0:01"):
        read_video(path, QWEN)
    with pytest.raises(FrameSizeError):
        list(file_segments(path, 0.7, QWEN))
    # Segments that end where the size changes are videos of one size each.
    assert [each.video.frames.shape[1:3] for each in file_segments(path, 1, QWEN)] == [(48, 64), (64, 48)]


def test_frames_without_times(tmp_path):
    path = write(tmp_path / "a.mp4", 9, format="h264")
    with pytest.raises(VideoTimesError, match="frame 0 has no time"):
        read_video(path)


def test_times_that_fall_back(tmp_path):
    """Two transport streams behind one another, as cameras write them."""
    one = write(tmp_path / "one.ts", 100, 10).read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(one + one)
    with pytest.raises(VideoTimesError, match="the times fall back at 0:09.9"):
        read_video(path)


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 2, 10)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 48 * 64)
    assert len(read_video(path).frames) == 1
    monkeypatch.setattr(pictures, "MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(VideoSizeError, match="a.mp4 are 64 x 48 pixels, expected 3071 pixels at most"):
        read_video(path)


def test_a_frame_that_grows_huge_on_the_way(tmp_path, monkeypatch):
    path = write_sizes(tmp_path / "a.avi", [(48, 64)] * 5 + [(480, 640)] * 5)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 48 * 64)
    with pytest.raises(DamagedVideoError, match="cannot be decoded"):
        read_video(path, ALL)


def test_frames_that_do_not_fit_in_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 20, 10)
    monkeypatch.setattr(video_stream, "MAX_BYTES", 4 * frame(0).nbytes)
    assert len(read_video(path, QWEN).frames) == 4
    with pytest.raises(VideoSizeError, match=r"5 frames of 64 x 48 pixels .* segment=4.0"):
        read_video(path, Sampling(frames=5))
    assert len(list(file_segments(path, 1, QWEN))) == 2


def test_links_are_followed_and_pipes_are_not_read(tmp_path):
    path = write(tmp_path / "a.mp4", 2, 10)
    link = tmp_path / "link.mp4"
    link.symlink_to(path)
    assert numbers(read_video(link, ALL)) == [0, 1]
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    device = tmp_path / "device.mp4"
    device.symlink_to("/dev/zero")
    for wrong, kind in ((pipe, "a named pipe"), (folder, "a folder"), (device, "a device")):
        with pytest.raises(MediaFileError, match=f"is {kind}; expected a regular file"):
            read_video(wrong)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_video(tmp_path / "none.mp4")


def test_without_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 2, 10)
    video_stream._package.cache_clear()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoReaderError, match=r'takes the package av .*: pip install "kamera-jax\[video\]"'):
        read_video(path)
    monkeypatch.undo()
    assert len(read_video(path, ALL).frames) == 2


def test_what_is_taken_for_a_video_file(tmp_path):
    assert video_file(tmp_path / "A.MP4") == VideoFile(tmp_path / "A.MP4")
    given = VideoFile(tmp_path / "frames", fps=1)
    assert video_file(given) is given
    for other in ("a.mp4", tmp_path / "a.gif", tmp_path / "a.txt", None):
        assert video_file(other) is None
    for wrong in ({"fps": 0}, {"fps": float("inf")}, {"frames": 0}):
        with pytest.raises(SamplingError, match="is (0|inf)"):
            VideoFile(tmp_path / "a.mp4", **wrong)


def test_times_as_people_write_them():
    times = [0, 4, 59.999, 61.5, 3600, 36061.25]
    assert [clock_time(each) for each in times] == ["0:00", "0:04", "1:00", "1:01.5", "1:00:00", "10:01:01.25"]


def test_numbers_survive_the_codec():
    assert [number(frame(each)) for each in range(8**3)] == list(range(8**3))


def test_a_title_in_another_encoding_is_no_damage(tmp_path):
    path = write(tmp_path / "a.mp4", 8)
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1
    path.write_bytes(content.replace(b"Lavf", b"Caf\xe9"))
    assert numbers(read_video(path)) == numbers(read_video(write(tmp_path / "b.mp4", 8)))
