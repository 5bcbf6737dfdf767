"""Video files for tests, written by PyAV: frames that tell their numbers, at times of the test's choice."""

import struct
from fractions import Fraction

import av
import numpy as np

LEVELS = 8
"""A frame's number is written in base 8, in three grey bars, which codecs keep apart."""


def frame(number, height=48, width=64):
    """A frame that tells its number, whatever a codec makes of it, and which way up it is: the last column is white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    bars = 3
    for bar in range(bars):
        digit = number // LEVELS**bar % LEVELS
        pixels[bar * height // bars : (bar + 1) * height // bars] = digit * 224 // LEVELS
    pixels[:, -width // 4 :] = 255
    return pixels


def number(pixels):
    """The number that a frame tells."""
    height, width = pixels.shape[:2]
    rows = [pixels[(2 * bar + 1) * height // 6, : width // 2].mean() for bar in range(3)]
    return sum(round(float(level) * LEVELS / 224) * LEVELS**bar for bar, level in enumerate(rows))


def numbers(video):
    return [number(each) for each in video.frames]


def write(path, count=25, rate=Fraction(25, 2), *, times=None, codec="libx264", size=(48, 64), sound=False, still=False,
          **options):  # fmt: skip
    """A file of ``count`` numbered frames at one rate, or at ``times`` in milliseconds; with or without sound.

    Of a still picture all frames are the first.
    """
    clock = Fraction(1, 1000)
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "10"}
        if times is not None:
            stream.codec_context.time_base = clock
        tone = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for place in range(count):
            each = av.VideoFrame.from_ndarray(frame(0 if still else place, *size), format="rgb24")
            if times is not None:
                each.pts = times[place]
                each.time_base = clock
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
        if tone is not None:
            write_sound(container, tone, count / float(rate))
    return path


def write_sound(container, stream, seconds):
    for start in range(0, int(44100 * seconds), 1024):
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        piece.rate = 44100
        piece.pts = start
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def write_sizes(path, sizes):
    """Frames of sizes of their own, ten a second: each JPEG states its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width = sizes[0]
        stream.pix_fmt = "yuvj420p"
        for place, (height, width) in enumerate(sizes):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.height = height
            encoder.width = width
            encoder.pix_fmt = "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            (packet,) = encoder.encode(av.VideoFrame.from_ndarray(frame(place, height, width), format="rgb24"))
            packet.stream = stream
            packet.pts = place
            packet.dts = place
            packet.time_base = Fraction(1, 10)
            container.mux(packet)
    return path


def turn(path, matrix):
    """Write a display matrix (a, b, c, d) into an MP4's track, as phones do."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 2 * 4
    a, b, c, d = (each * 2**16 for each in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(content)
    return path
