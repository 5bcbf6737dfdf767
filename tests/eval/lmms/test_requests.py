"""What lmms-eval's requests become: chunks in order, a question, and how its answer is generated."""

import io

import numpy as np
import pytest
from PIL import Image

from eval.lmms.requests import RequestError, Visuals, asked_in_messages, asked_in_text, decoding
from kamera_jax.items import Audio, Video
from models.media.video_files import VideoFile
from tests.models.media import clips


def same(visual):
    return visual


def user(*content):
    return [{"role": "user", "content": list(content)}]


def text(words):
    return {"type": "text", "text": words}


def image(name):
    return {"type": "image", "url": name}


@pytest.mark.parametrize(
    ("words", "visuals", "items", "question"),
    [
        ("what?", ["a", "b"], ["a", "b"], "what?"),
        ("<image>\nwhat?", ["a"], ["a"], "what?"),
        ("first <image> then <image> what?", ["a", "b"], ["first", "a", "then", "b"], "what?"),
        ("<image> what?", ["a", "b"], ["a", "b"], "what?"),
        ("what? <image>", ["a"], ["a"], "what?"),
        ("what <image>?", [], [], "what ?"),
        ("", ["a"], ["a"], ""),
    ],
)
def test_visuals_stand_where_the_text_shows_them(words, visuals, items, question):
    assert asked_in_text(words, visuals, same) == (items, question)


@pytest.mark.parametrize(
    ("content", "items", "question"),
    [
        ([image("a"), text("what?")], [image("a")], "what?"),
        ([text("look: "), image("a"), text(" "), image("b"), text("wh"), text("at?\n")],
         ["look:", image("a"), image("b")], "what?"),
        ([text("what?"), image("a")], [image("a")], "what?"),
        ([text("one"), image("a"), text("two"), image("b")], [image("a"), image("b")], "one\ntwo"),
        ([text("what?")], [], "what?"),
    ],
)  # fmt: skip
def test_the_parts_of_a_message_stand_in_order(content, items, question):
    assert asked_in_messages(user(*content), same) == (items, question)


def test_a_system_message_is_the_models():
    messages = [{"role": "system", "content": "be brief. "}, {"role": "user", "content": "what?"}]
    assert asked_in_messages(messages, same, "be brief.") == ([], "what?")
    with pytest.raises(RequestError, match="system= among the model's arguments"):
        asked_in_messages(messages, same)
    with pytest.raises(RequestError, match="messages of user, assistant, user"):
        asked_in_messages([*user(text("a")), {"role": "assistant", "content": "b"}, *user(text("c"))], same)
    for wrong in (None, ["what?"], [{"role": "user", "content": 3}], []):
        with pytest.raises(RequestError):
            asked_in_messages(wrong, same)


def test_visuals_become_items(tmp_path):
    picture = Image.new("RGB", (8, 6), "red")
    path = tmp_path / "a.png"
    picture.save(path)
    clip = clips.write(tmp_path / "a.mp4", 8, 4)
    frames = np.zeros((5, 6, 8, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
    item = Visuals().item
    assert item(picture) is picture and item(frames[0]) is not None and item(str(path)) == path
    assert item({"type": "image", "url": picture}) is picture and item({"bytes": None, "path": str(path)}) == path
    held = io.BytesIO()
    picture.save(held, "png")
    assert item({"bytes": held.getvalue(), "path": None}).size == (8, 6)
    film = item(str(clip))
    assert isinstance(film, VideoFile) and film.frames is None
    assert Visuals(frames=3, fps=2).item(clip) == VideoFile(clip, frames=3)
    several = item([picture, picture])
    assert isinstance(several, Video) and several.frames.shape == (2, 6, 8, 3) and several.times.tolist() == [0, 1]
    few = Visuals(frames=2, fps=4).item(frames)
    assert few.frames[:, 0, 0, 0].tolist() == [0, 2] and few.times.tolist() == [0, 0.25]
    sound = item({"array": [0.0, 0.5], "sampling_rate": 8000})
    assert isinstance(sound, Audio) and sound.rate == 8000
    part = {"type": "video", "url": str(clip), "video_start": 1, "video_end": 2}
    assert clips.numbers(Visuals(fps=4).item(part)) == [4, 5, 6, 7]
    assert clips.numbers(Visuals(frames=2).item({**part, "video_end": None})) == [4, 6]


@pytest.mark.parametrize(
    ("visual", "match"),
    [
        (3, "of type int"),
        ([], "of type list"),
        ("https://example.org/a.png", "is the address"),
        ("gone.png", "is the file gone.png, which is not there"),
        ({"type": "image"}, "a record of type; expected a url"),
    ],
)
def test_what_is_no_visual_is_named(visual, match):
    with pytest.raises(RequestError, match=match):
        Visuals().item(visual)


def test_parts_of_videos_that_cannot_be_are_named(tmp_path):
    clip = clips.write(tmp_path / "a.mp4", 8, 4)
    with pytest.raises(RequestError, match="give frames= of the model"):
        Visuals().item({"url": str(clip), "video_start": 1})
    with pytest.raises(RequestError, match="no video file"):
        Visuals().item({"url": Image.new("RGB", (8, 6)), "video_start": 1})


def test_how_answers_are_generated():
    greedy = {"max_new_tokens": 7, "temperature": 0.0, "top_k": None, "top_p": None, "stop": ()}
    assert decoding({}, 7) == decoding({"temperature": 0, "top_p": 0.9, "top_k": 5, "do_sample": True}, 7) == greedy
    assert decoding({"until": "\n", "max_new_tokens": 3}, 7) == {**greedy, "stop": ("\n",), "max_new_tokens": 3}
    assert decoding({"until": ["a", "", "b"], "num_beams": 1, "modality": "x"}, 7) == {**greedy, "stop": ("a", "b")}
    drawn = decoding({"temperature": 0.5, "top_p": 0.9, "top_k": 5.0, "do_sample": False}, 7)
    assert drawn == {**greedy, "temperature": 0.5, "top_k": 5, "top_p": 0.9}
    for wrong in ({"num_beams": 3}, {"repetition_penalty": 1.1}, {"until": 3}, {"until": [3]}, {"temperature": "hot"}):
        with pytest.raises(RequestError):
            decoding(wrong, 7)
