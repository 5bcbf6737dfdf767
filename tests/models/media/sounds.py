"""Files of sound for tests, written by PyAV."""

import av
import numpy as np

CODECS = {
    "wav": "pcm_s16le",
    "flac": "flac",
    "mp3": "libmp3lame",
    "opus": "libopus",
    "m4a": "aac",
    "aiff": "pcm_s16be",
}


def tone(seconds, rate=16000, *, pitch=440.0, noisy=0.1, seed=0):
    """A tone among noise that rises, f32[n]: every part of it is another."""
    at = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(at))
    return (0.2 * np.sin(2 * np.pi * pitch * at) + noisy * at / seconds * noise).astype(np.float32)


def write(path, samples, rate=16000, *, codec=None):
    """A file of samples [n], or [channels, n], of the format that its name says."""
    samples = np.atleast_2d(samples)
    layout = ("mono", "stereo")[len(samples) - 1]
    ending = path.suffix[1:]
    with av.open(str(path), "w", format="ipod" if ending == "m4a" else None) as container:
        stream = container.add_stream(codec or CODECS[ending], rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = rate
        coded = {"format": stream.codec_context.format, "layout": layout, "rate": rate}
        resampler = av.AudioResampler(**coded, frame_size=stream.codec_context.frame_size or 1024)
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
    return path
