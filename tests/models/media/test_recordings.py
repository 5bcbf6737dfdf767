"""Sound of files and arrays: read whole or in parts, at 16,000 samples a second, and refused by name."""

import sys

import numpy as np
import pytest

import kamera_jax as kj
from models.media import audio_stream, mel
from models.media.audio_stream import (
    AudioFormatError,
    AudioLengthError,
    AudioReaderError,
    DamagedAudioError,
    at_rate,
    decoded,
)
from models.media.files import MediaFileError
from models.media.recordings import (
    SUFFIXES,
    AudioFile,
    AudioPart,
    audio_file,
    blocks_of,
    parts,
    read_audio,
    spectrogram,
)
from tests.models.media.clips import write as write_clip
from tests.models.media.sounds import CODECS, tone, write


@pytest.mark.parametrize("ending", CODECS)
def test_files_are_read_as_one_channel_at_16000_samples_a_second(ending, tmp_path):
    rate = 48000 if ending == "opus" else 44100
    samples = tone(1.5, rate, noisy=0)
    path = write(tmp_path / f"talk.{ending}", np.stack([samples, 0.5 * samples]), rate)
    audio = read_audio(path, 10)
    assert audio.rate == 16000 and audio.samples.dtype == np.float32
    assert abs(len(audio.samples) - 24000) <= 16000 * 0.05  # encoders fill their last frame
    # The mean of the channels: FFmpeg's own mix is louder.
    level = np.abs(audio.samples).mean() / np.abs(samples).mean()
    assert 0.7 < level < 0.8
    assert audio_file(path) == AudioFile(path) and audio_file(str(path)) is None
    assert audio_file(path.with_suffix(path.suffix.upper())).path.suffix == f".{ending.upper()}"


def test_a_wav_of_that_rate_is_its_samples(tmp_path):
    samples = tone(0.7)
    read = read_audio(write(tmp_path / "a.wav", samples), 10)
    np.testing.assert_allclose(read.samples, samples, rtol=0, atol=2**-15)
    assert len(read.samples) == len(samples)
    again = np.concatenate(list(blocks_of(AudioFile(tmp_path / "a.wav"))()))
    np.testing.assert_array_equal(again, read.samples)


def test_many_channels_are_averaged_too(tmp_path):
    """A header may say 22 of them: the samples of one are then those of 22."""
    path = write(tmp_path / "a.wav", tone(2.2))
    content = bytearray(path.read_bytes())
    content[22:24] = (22).to_bytes(2, "little")
    content[32:34] = (44).to_bytes(2, "little")
    path.write_bytes(content)
    read = read_audio(path, 10).samples
    expected = tone(2.2).reshape(-1, 22).mean(1)
    np.testing.assert_allclose(read, expected, rtol=0, atol=2**-15)


def test_arrays_of_another_rate_are_resampled_as_files_are(tmp_path):
    samples = tone(0.5, 44100)
    made = at_rate(kj.Audio(samples, 44100))
    read = read_audio(write(tmp_path / "a.wav", samples, 44100, codec="pcm_f32le"), 10)
    assert made.rate == 16000 and len(made.samples) == 8000
    np.testing.assert_allclose(made.samples, read.samples, rtol=0, atol=1e-6)
    same = kj.Audio(samples, 16000)
    assert at_rate(same) is same


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_file_that_breaks_off_is_named(ending, share, tmp_path):
    rate = 48000 if ending == "opus" else 44100
    path = write(tmp_path / f"a.{ending}", tone(4.0, rate), rate)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DamagedAudioError, match=rf"a\.{ending}.*(breaks off|whole\?)"):
        read_audio(path, 10)


def test_a_wav_that_was_written_to_a_pipe_states_no_length(tmp_path):
    path = write(tmp_path / "a.wav", tone(0.5))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert len(read_audio(path, 10).samples) == 8000


def test_titles_in_another_encoding_and_rates_that_are_none(tmp_path):
    path = write(tmp_path / "a.wav", tone(0.5))
    content = bytearray(path.read_bytes())
    at = content.index(b"Lavf")
    content[at : at + 4] = b"Caf\xe9"
    path.write_bytes(content)
    assert len(read_audio(path, 10).samples) == 8000
    content[24:28] = (1).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DamagedAudioError, match="1 samples a second, expected 1000 at least"):
        read_audio(path, 10)
    with pytest.raises(AudioFormatError, match=r"the sound has 16 samples a second.*in kHz"):
        at_rate(kj.Audio(tone(0.1), 16))


def test_samples_that_are_none_are_named(tmp_path):
    loud = 1000 * tone(0.5)
    with pytest.raises(DamagedAudioError, match=r"a.wav: .* cannot be decoded \(samples of up to"):
        read_audio(write(tmp_path / "a.wav", loud, codec="pcm_f32le"), 10)


def test_files_without_sound_or_of_another_kind_are_named(tmp_path):
    silent = write_clip(tmp_path / "a.mp4", 4)
    with pytest.raises(AudioFormatError, match=r"a.mp4 has no sound \(its streams are: video\)"):
        list(decoded(silent))
    text = tmp_path / "b.wav"
    text.write_text("no sound")
    with pytest.raises(AudioFormatError, match="b.wav is no file of sound that can be read"):
        list(decoded(text))
    with pytest.raises(MediaFileError, match="is a folder"):
        list(decoded(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        list(decoded(tmp_path / "c.wav"))


def test_the_sound_of_a_video_is_an_item_of_its_own(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 24, 12, sound=True)
    assert audio_file(clip) is None
    assert abs(read_audio(clip, 10).seconds - 2) < 0.1


def test_no_more_is_read_than_the_model_reads(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", tone(30.0))
    runs = []
    monkeypatch.setattr(
        "models.media.recordings.decoded", lambda path: map(lambda run: runs.append(1) or run, decoded(path))
    )
    with pytest.raises(AudioLengthError, match=r"a.wav has more than 2 seconds.*reads 2 as one chunk.*segment=30"):
        read_audio(path, 2)
    assert len(runs) < 100


def test_without_pyav_the_package_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", tone(0.1))
    audio_stream._package.cache_clear()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioReaderError, match=r"takes the package av .*kamera-jax\[video\]"):
        list(decoded(path))
    with pytest.raises(
        AudioReaderError, match=r"44100 samples a second, and the model reads 16000.*resample it yourself"
    ):
        at_rate(kj.Audio(tone(0.1), 44100))
    assert len(at_rate(kj.Audio(tone(0.1), 16000)).samples) == 1600


@pytest.mark.parametrize("samples", [64_000, 64_001, 64_300, 64_500, 70_077])
def test_parts_are_the_spectrogram_of_the_whole(samples):
    """Whatever the runs are in which the samples come; what gives no token at the end is no part."""
    sound = tone(5)[:samples]
    whole = spectrogram(kj.Audio(sound, 16000), 16, 300)
    for runs in (1, 11):
        split = np.array_split(sound, runs)
        cut = list(parts(lambda given=split: given, 200, 16))
        made = np.concatenate([spectrogram(part, 16, 300) for part in cut])
        left = len(whole) - len(made)
        assert 0 <= left < 3 and all(part.frames == 200 for part in cut[:-1])
        np.testing.assert_allclose(made, whole[: len(made)], rtol=0, atol=1e-7)
        assert [part.begin for part in cut] == [200 * place for place in range(len(cut))]
    smaller = [each for part in cut for each in (part.between(0, 100), part.between(100, 200)) if each.frames > 2]
    made = np.concatenate([spectrogram(part, 16, 300) for part in smaller])
    np.testing.assert_allclose(made, whole[: len(made)], rtol=0, atol=1e-7)
    assert repr(cut[1]) == "<AudioPart 0:02–0:04 of a recording>"


def test_a_recording_of_one_part_is_itself():
    sound = tone(2)
    (only,) = parts(lambda: (sound,), 200, 16)
    assert isinstance(only, kj.Audio)
    np.testing.assert_array_equal(only.samples, sound)


def test_a_part_is_read_on_the_floor_of_the_whole():
    """Beside something loud a quiet passage is raised; alone it is not."""
    quiet = 1e-4 * tone(2, seed=1)
    sound = np.concatenate([quiet, tone(2)])
    first, _ = parts(lambda: (sound,), 200, 16)
    alone = spectrogram(kj.Audio(quiet, 16000), 16, 300)
    assert isinstance(first, AudioPart)
    assert np.abs(spectrogram(first, 16, 300)[:-1] - alone[:-1]).max() > 0.2


def test_memory_is_bounded():
    """An hour in runs that are made one by one: no more than a part of it is held."""
    run = tone(1.0)
    held = []

    def runs():
        for _ in range(600):
            yield run

    for part in parts(runs, 1000, 4):
        held.append(part.samples.nbytes)
    assert len(held) == 60 and max(held) <= (1000 * mel.HOP + mel.WINDOW) * 4


def test_lengths_that_are_none():
    for samples in (1, 160, 320):
        with pytest.raises(AudioLengthError, match=r"frames of 10 ms; expected 3 at least"):
            spectrogram(kj.Audio(tone(1)[:samples], 16000), 16, 300)
    assert len(spectrogram(kj.Audio(tone(1)[:321], 16000), 16, 300)) == 3
    with pytest.raises(AudioLengthError, match=r"has 2.01 seconds of sound; the model reads 2 as one chunk"):
        spectrogram(kj.Audio(tone(3)[:32001], 16000), 16, 2)


def test_silence_is_read():
    silence = spectrogram(kj.Audio(np.zeros(16000), 16000), 16, 300)
    np.testing.assert_array_equal(silence, np.full((100, 16), np.float32(-1.5)))


def test_suffixes_are_no_videos():
    assert ".wav" in SUFFIXES and ".mp4" not in SUFFIXES
