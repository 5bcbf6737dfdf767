"""Sound as an item: of models that read it, and of others; files, segments, sessions, libraries, the command line."""

import json
import pickle
from dataclasses import dataclass

import jax
import numpy as np
import pytest

import kamera_jax as kj
from eval.commands.main import main
from models import AudioFile, load
from models.hub.fields import UnsupportedConfigError
from models.media.audio_stream import AudioLengthError
from models.media.mistaken import PathAsTextWarning
from models.media.recordings import AudioPart
from models.vlm import ItemError
from tests.models import tiny_omni
from tests.models.media import clips
from tests.models.media.sounds import tone, write
from tests.omni_files import AUDIO, MEL, SECONDS, TOKENS


@dataclass(frozen=True)
class Tower:
    """What a family's audio tower makes of recordings.

    Attributes:
        unit: frames that it reads apart from all others.
        word: tokens of half a second.
        three, rest, six: tokens of 3 seconds, of 2.05 and of 6.
        tokens, cut: of parts at most, and the frames of parts of 8.05 seconds of so many.
        halves: tokens at most, and lengths of chunks of such parts of segments of 3 seconds.
        few: samples that are too few, and what is said of them.
        capacity: of a window that nine chunks of a second do not fit in.
    """

    unit: int
    word: int
    three: int
    rest: int
    six: int
    tokens: int
    cut: list[int]
    halves: tuple[int, list[int]]
    few: str
    capacity: int


TOWERS = {
    "qwen2_5_omni": Tower(
        unit=20,
        word=12,
        three=75,
        rest=51,
        six=150,
        tokens=57,
        cut=[220, 220, 220, 145],
        halves=(50, [52, 27, 52, 27, 52, 3]),
        few="has 1 frames of 10 ms; expected 3 at least",
        capacity=192,
    ),
    "qwen3_omni_moe": Tower(
        unit=100,
        word=7,
        three=39,
        rest=27,
        six=78,
        tokens=57,
        cut=[400, 400, 5],
        halves=(26, [28, 15, 28, 15, 28, 3]),
        few="has 0 frames of 10 ms; expected 1 at least",
        capacity=128,
    ),
}


@pytest.fixture(scope="module", params=TOWERS)
def family(request):
    return request.param


@pytest.fixture
def tower(family):
    return TOWERS[family]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, family):
    return tiny_omni.write(tmp_path_factory.mktemp("omni"), family=family)


@pytest.fixture(scope="module")
def vlm(folder):
    return load(folder)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """8.05 seconds, more than the model reads as one chunk."""
    return write(tmp_path_factory.mktemp("sounds") / "talk.wav", tone(8.05))


@pytest.fixture(scope="module")
def word(tmp_path_factory):
    """0.5 seconds: 50 frames."""
    return write(tmp_path_factory.mktemp("sounds") / "word.wav", tone(0.5, seed=3))


def window_kv(window):
    valid = np.asarray(window.state.valid)
    return np.asarray(window.state.rot)[:, valid], np.asarray(window.state.free)[:, valid]


def tokens_of(segment):
    return int((np.asarray(segment.inputs["tokens"])[: int(segment.length)] == TOKENS[AUDIO]).sum())


def test_a_file_and_its_samples_are_one_chunk(vlm, word, tower):
    by_hand = vlm.prepare(kj.Audio(tone(0.5, seed=3), 16000))
    read = vlm.prepare(word)
    count = tower.word + 2
    assert tokens_of(read) == tower.word and read.advance == int(read.length) == count
    np.testing.assert_array_equal(read.positions[:, :count], np.tile(np.arange(count), (3, 1)))
    assert read.content != by_hand.content  # 16-bit integers
    of_file = next(iter(vlm.segments(word, seconds=2)))
    for item in ([word], AudioFile(word), of_file, pickle.loads(pickle.dumps(vlm.preprocess))(word)):
        segment = vlm.prepare(item)
        assert segment.content == read.content
        jax.tree.map(np.testing.assert_array_equal, segment.inputs, read.inputs)
    both = vlm.prepare(["listen:", word, np.zeros((16, 16, 3), np.uint8)])
    assert tokens_of(both) == tower.word and int(both.length) > count + 4
    assert vlm.prepare(kj.Audio(tone(0.5, 44100), 44100)).content != by_hand.content


def test_what_a_recording_is_normalised_with_is_in_its_key(vlm, tower):
    seconds = tower.unit / 100
    quiet = 1e-4 * tone(seconds, seed=1)
    beside = [np.concatenate([quiet, scale * tone(0.8, seed=2)]) for scale in (1.0, 0.1)]
    firsts = [next(iter(vlm.segments(kj.Audio(each, 16000), seconds=seconds))) for each in beside]
    assert all(isinstance(each, AudioPart) and each.frames == tower.unit for each in firsts)
    keys = {vlm.prepare(each).content for each in (*firsts, kj.Audio(quiet, 16000))}
    assert len(keys) == 3
    (again,) = {vlm.prepare(next(iter(vlm.segments(kj.Audio(beside[0], 16000), seconds=seconds)))).content}
    assert again == vlm.prepare(firsts[0]).content


def test_a_part_behind_others_is_another_chunk_than_its_samples_alone(vlm, tower):
    """What stands before it shows in the edge of its spectrogram; of Qwen3-Omni a short one is filled to a piece."""
    audio = kj.Audio(tone((tower.unit + 10) / 100, seed=1), 16000)
    first, last = (each.item for each in vlm.preprocess.recorded(audio, seconds=tower.unit / 100))
    assert (first.begin, last.begin, last.frames) == (0, tower.unit, 10)
    alone = AudioPart(last.samples, 0, last.frames, last.last, last.loudest)
    behind, moved = (vlm.prepare(each) for each in (last, alone))
    assert behind.content != moved.content and int(behind.length) == int(moved.length)
    tokens = int(behind.length) - 2
    apart = np.abs(np.asarray(behind.inputs["media"] - moved.inputs["media"]))[tokens].max()
    assert apart > 1e-3


def test_segments_are_chunks(vlm, talk, tower):
    names = [each.name for each in vlm.preprocess.file_segments(talk, seconds=3)]
    assert names == ["talk.wav, 0:00–0:03", "talk.wav, 0:03–0:06", "talk.wav, 0:06–0:08.05"]
    segments = list(vlm.segments(talk, seconds=3))
    chunks = kj.encode_all(vlm, talk, segment=3)
    assert [chunk.length - 2 for chunk in chunks] == [tower.three, tower.three, tower.rest]
    assert [chunk.key for chunk in chunks] == [kj.encode(vlm, each).key for each in segments]
    # Cut again where tokens are asked for; by tokens alone without segments, at the pieces of the audio tower.
    assert [part.frames for part in vlm.cut(talk, tokens=tower.tokens)] == tower.cut
    tokens, lengths = tower.halves
    assert [chunk.length for chunk in kj.encode_all(vlm, talk, segment=3, tokens=tokens)] == lengths
    assert [each.frames for each in vlm.segments(talk, seconds=0.05)][:2] == [tower.unit] * 2
    # Longer than the model reads at once, parts are as long as that.
    assert [part.frames for part in vlm.segments(talk, seconds=100)] == [SECONDS * 100, 205]
    assert [chunk.length - 2 for chunk in kj.encode_all(vlm, talk)] == [tower.six, tower.rest]
    samples = kj.Audio(tone(2.0), 16000)
    assert [part.frames for part in vlm.cut(samples, tokens=25)] == [100, 100]
    assert kj.encode_all(vlm, samples)[0].key == kj.encode(vlm, samples).key


def test_what_is_held_at_once_is_bounded(vlm, talk, monkeypatch):
    monkeypatch.setattr("models.media.sound.MAX_BYTES", 6 * 16000 * 4)
    with pytest.raises(AudioLengthError, match=r"talk.wav has more than 384000 bytes.*one after another.*segment=30"):
        kj.encode_all(vlm, talk, tokens=50)
    assert len(list(vlm.segments(talk, seconds=2))) == 5


def test_what_cannot_be_read_says_what_to_do(vlm, talk, tower):
    with pytest.raises(AudioLengthError, match=r"talk.wav has more than 6 seconds.*kamera encode --segment 30s"):
        kj.encode(vlm, talk)
    with pytest.raises(AudioLengthError, match=r"part 2 of 2: the recording has 7 seconds of sound"):
        vlm.prepare(["listen:", kj.Audio(tone(7), 16000)])
    with pytest.raises(AudioLengthError, match=tower.few):
        vlm.prepare(kj.Audio(tone(0.01), 16000))
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="segment"):
            kj.encode_all(vlm, talk, segment=wrong)
    with pytest.warns(PathAsTextWarning, match="looks like the name of a file"):
        vlm.prepare("talk.flac")


def test_others_say_what_they_read(talk):
    gqa = load("kamera-tiny-gqa")
    for given in (talk, AudioFile(talk)):
        with pytest.raises(ItemError, match=r"talk.wav is a recording; this model reads text"):
            gqa.prepare(given)
        with pytest.raises(ItemError, match="is a recording"):
            kj.encode_all(gqa, given, segment=1)
    with pytest.raises(ItemError, match="is of type Audio; this model reads text"):
        gqa.prepare(kj.Audio(tone(1), 16000))
    with pytest.raises(ItemError, match="is a recording"):
        gqa.preprocess.file_segments(talk, seconds=1)


def test_a_session_slides_over_a_recording_and_recalls_of_it(vlm, talk, word, tower, tmp_path):
    session = kj.Session(vlm, capacity=tower.capacity)
    keys = session.add(talk, segment=1, patch=False)
    assert len(keys) == 9 and 1 < len(session.keys) < 9  # the window slid
    assert session.keys == keys[-len(session.keys) :]
    session.recall(keys[0])
    assert session.keys[-1] == keys[0]
    spoken = session.add(word)
    assert session.ask("what colour is the star?", max_new_tokens=3).text is not None
    assert spoken in session.keys
    # Slid there it is what it would be if it were encoded there: canonical, relocated.
    first, second = kj.encode_all(vlm, talk, segment=1)[:2]
    moved = kj.slide(kj.append(kj.append(kj.Window.empty(vlm, 192), first), second), drop=1)
    alone = kj.append(kj.Window.empty(vlm, 192), second)
    for one, other in zip(window_kv(moved), window_kv(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    session.save(tmp_path / "session")
    assert kj.Session.restore(vlm, tmp_path / "session").keys == session.keys


def test_a_sound_is_patched_as_other_chunks_are(vlm, word, talk):
    first, second = kj.encode_all(vlm, talk, segment=1)[:2]
    patch = kj.form_patch(vlm, second, antecedents=[first], rank=10_000)
    window = kj.append(kj.append(kj.Window.empty(vlm, 256), first), second, patch)
    full = kj.prefill(vlm, [first, second], capacity=256)
    expected = kj.query(vlm, full, "what colour is the star?")
    np.testing.assert_allclose(kj.query(vlm, window, "what colour is the star?"), expected, rtol=0, atol=1e-4)


def test_the_command_line_encodes_and_asks(folder, vlm, talk, word, tmp_path, capsys):
    clip = clips.write(tmp_path / "clip.mp4", 10, 5, sound=True)
    out = tmp_path / "a.json"
    options = ["--model", str(folder), "--library", str(tmp_path / "lib"), "--json", str(out)]
    assert main(["encode", str(talk), str(word), str(clip), *options, "--segment", "3s"]) == 0
    items = json.loads(out.read_text())["items"]
    names = [each["name"] for each in items]
    assert names[2:] == ["talk.wav, 0:06–0:08.05", "word.wav, 0:00–0:00.5", "clip.mp4, 0:00–0:02"]
    assert [each["key"] for each in items[:3]] == [each.key for each in kj.encode_all(vlm, talk, segment=3)]
    assert [each["key"] for each in items[4:]] == [each.key for each in kj.encode_all(vlm, clip, segment=3)]
    assert [each["origin"]["time"] for each in items] == [0.0, 3.0, 6.0, 0.0, 0.0]
    asked = ["ask", "what colour is the star?", "--model", str(folder), "--item", str(talk), "--segment", "4s"]
    assert main([*asked, "--method", "blind"]) == 0
    assert main(["encode", str(talk), *options]) == 1
    assert "cut it up" in capsys.readouterr().out.replace("\n", " ")


def test_preprocessing_is_the_checkpoint_s(tmp_path, family):
    for name, wrong in {
        "sampling_rate": 24000,
        "hop_length": 80,
        "n_fft": 512,
        "feature_size": 80,
        "dither": 0.1,
        "chunk_length": 0,
        "n_samples": 1,
        "feature_extractor_type": "ClapFeatureExtractor",
        "use_audio_in_video": True,
    }.items():
        with pytest.raises(UnsupportedConfigError, match=name):
            load(tiny_omni.write(tmp_path / name, {name: wrong}, family))
    folder = tiny_omni.write(tmp_path / "of transformers 5", family=family)
    written = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    sound = {name: each for name, each in written.items() if name in MEL}
    images = {name: each for name, each in written.items() if name not in sound}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": images, "feature_extractor": sound}))
    assert load(folder).preprocess._settings["audio"].seconds == SECONDS
