"""Sound as a medium: a recording, or a part of one, is one block of tokens, from one run of the audio tower."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from kamera_jax.items import Audio
from models.blocks.params import Params
from models.blocks.vit import pad_patches
from models.hub.chat import ChatTemplate
from models.hub.fields import Fields, UnsupportedConfigError
from models.media.audio_stream import AudioLengthError, at_rate
from models.media.mel import HOP, RATE, WINDOW
from models.media.recordings import (
    FRAMES,
    LEAST,
    AudioFile,
    AudioPart,
    RecordedSegment,
    blocks_of,
    parts,
    spectrogram,
)
from models.media.spans import Features, Span
from models.media.video_stream import clock_time

VERSION = 1
"""Of how samples become mel: a part of the keys of chunks with sound."""

MAX_BYTES = 2**30
"""The samples of a file that is cut by tokens, and so held in memory, have no more bytes than this: 4.6 hours."""

FIELDS = (
    *("chunk_length", "dither", "feature_extractor_type", "feature_size", "hop_length", "n_fft"),
    *("n_samples", "nb_max_frames", "padding_side", "padding_value", "return_attention_mask", "sampling_rate"),
)
"""What a ``preprocessor_config.json`` says of sound, where images and sound share one."""


@dataclass(frozen=True)
class MelConfig:
    """How samples become mel, as HF ``WhisperFeatureExtractor`` is configured.

    Attributes:
        bands: of the spectrogram.
        seconds: of sound that are read as one chunk, at most.
    """

    bands: int
    seconds: int

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], bands: int) -> "MelConfig":
        """The configuration in a ``preprocessor_config.json``; what it says of images is passed over.

        Args:
            mapping: the file. What it leaves out has the default of transformers' class.
            bands: that the tower reads.

        Raises:
            UnsupportedConfigError: a value that asks for other preprocessing, or other bands than the tower's.
        """
        fields = Fields("preprocessor_config.json", {name: mapping[name] for name in FIELDS if name in mapping})
        fields.expect("feature_extractor_type", "WhisperFeatureExtractor")
        for name, only in {"sampling_rate": RATE, "hop_length": HOP, "n_fft": WINDOW}.items():
            fields.expect(name, only)
        for name in ("dither", "padding_value"):
            fields.expect(name, 0.0, 0)
        if "image_processor_type" not in mapping:  # else it is the images'
            Fields("preprocessor_config.json", mapping).expect("do_normalize", False)
        size = fields.size("feature_size", 80)
        if size != bands:
            raise UnsupportedConfigError(
                f"preprocessor_config.json: feature_size is {size}; expected {bands}, num_mel_bins of audio_config"
            )
        seconds = fields.size("chunk_length", 30, most=10**6)
        fields.expect("n_samples", seconds * RATE)
        fields.expect("nb_max_frames", seconds * FRAMES)
        fields.ignore("padding_side", "return_attention_mask")  # one recording is read at a time
        fields.close()
        return cls(size, seconds)


def less_sound(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of images or videos, where sound is read apart from them.

    Raises:
        UnsupportedConfigError: it asks for the sound of videos among their frames.
    """
    fields = Fields("preprocessor_config.json", {name: each for name, each in mapping.items() if name not in FIELDS})
    for name in ("use_audio_in_video", "load_audio_from_video"):
        fields.expect(name, False)
    fields.ignore("seconds_per_chunk", "position_id_per_seconds")
    return fields.rest


@dataclass(frozen=True)
class AudioMedium:
    """The sound of a port whose chat template writes one placeholder a recording.

    Attributes:
        declared: the tower's configuration, which has ``bands``, to its parameters.
        plan: frames, the tower's configuration, and whether they are a part that stands behind others of its recording,
            to the layout that ``embed`` takes.
        embed: parameters, the tower's configuration, frames of mel and layout to [M, E]; zero from ``plan.tokens`` on.
        unit: the tower's configuration to the frames that it reads apart from all others, and the tokens of these.
        mirrored: how a recording ends; see `models.media.recordings.spectrogram`.
        least: frames that give a token at least.
    """

    declared: Callable[[Any], Params]
    plan: Callable[[int, Any, bool], Any]
    embed: Callable[[Params, Any, Any, Any], jax.Array]
    unit: Callable[[Any], tuple[int, int]]
    mirrored: bool = False
    least: int = LEAST
    kind: str = "audio"
    tower: str = "audio"
    items: str = "sound (a file, or kamera_jax.Audio)"

    def settings(self, preprocessing: Mapping[str, Any], config: Any) -> MelConfig:
        """See `models.architecture.Medium`.

        Raises:
            UnsupportedConfigError: a value asks for other preprocessing, or the tower reads more at once than is read
                as one chunk.
        """
        tower = config.towers[self.tower]
        settings = MelConfig.from_hf(preprocessing, tower.bands)
        frames, _ = self.unit(tower)
        if frames > settings.seconds * FRAMES:
            raise UnsupportedConfigError(
                f"preprocessor_config.json: chunk_length is {settings.seconds} seconds; expected {frames / FRAMES:g} "
                "at least, which the audio tower reads together"
            )
        return settings

    def declaration(self, tower: Any) -> Params:
        """See `models.architecture.Medium`."""
        return self.declared(tower)

    def reads(self, item: Any) -> bool:
        """See `models.architecture.Medium`."""
        return isinstance(item, Audio | AudioPart)

    def normal(self, item: Audio | AudioPart) -> Audio | AudioPart:
        """The same at 16,000 samples a second.

        Raises:
            AudioReaderError: it has another rate, and what resamples it is not installed.
        """
        return at_rate(item) if isinstance(item, Audio) else item

    def digested(self, item: Audio | AudioPart, settings: MelConfig) -> tuple[str, str, bytes]:
        """See `models.architecture.Medium`; of a part also what it is normalised with, to four places."""
        made = f"{self.kind}:v{VERSION}:{settings}"
        if isinstance(item, AudioPart):
            made += f":loudest {item.loudest:.4f}"
            shape = f"{item.frames} frames, {'behind others' if item.begin else 'first'}{', last' * item.last}"
            return made, shape, item.samples.tobytes()
        return made, str(item.samples.shape), item.samples.tobytes()

    def spans(
        self,
        item: Audio | AudioPart,
        settings: MelConfig,
        config: Any,
        chat: ChatTemplate,
        encode: Callable[[Any, Any], Features],
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`.

        Raises:
            AudioLengthError: it is longer than the model reads at once, or too short for a token.
        """
        frames = spectrogram(item, settings.bands, settings.seconds, mirrored=self.mirrored, least=self.least)
        behind = isinstance(item, AudioPart) and item.begin > 0
        layout = self.plan(len(frames), config.towers[self.tower], behind)
        features = encode(pad_patches(frames, layout), layout)
        return (Span([config.placeholders[self.kind]] * int(layout.tokens), features),)

    def frames(
        self, settings: MelConfig, config: Any, *, seconds: float | int | None = None, tokens: int | None = None
    ) -> int:
        """Frames of a part of at most so many seconds or tokens: whole pieces of the tower, one at least.

        Raises:
            ValueError: ``seconds`` is not above 0.
        """
        unit, each = self.unit(config.towers[self.tower])
        units = settings.seconds * FRAMES // unit
        if seconds is not None:
            if not seconds > 0:
                raise ValueError(f"a segment is {seconds} seconds long; expected a number above 0")
            units = min(units, seconds * FRAMES / unit + 1e-6)  # 0.1 s and the like are no binary fractions
        if tokens is not None:
            units = min(units, tokens // each)
        return max(1, int(units)) * unit

    def segments(
        self,
        item: Audio | AudioFile,
        settings: MelConfig,
        config: Any,
        *,
        seconds: float | int | None = None,
        tokens: int | None = None,
    ) -> Iterator[RecordedSegment]:
        """A recording in parts of at most so many seconds or tokens (see `frames`), each made when it is asked for.

        Raises:
            ValueError: the recording cannot be read, where the part in work cannot be.
        """
        frames = self.frames(settings, config, seconds=seconds, tokens=tokens)
        name = item.path.name if isinstance(item, AudioFile) else "the recording"
        for part in parts(blocks_of(item), frames, settings.bands, mirrored=self.mirrored, least=self.least):
            begin = 0.0
            end = part.seconds
            if isinstance(part, AudioPart):
                begin = part.begin / FRAMES
                end += begin
            yield RecordedSegment(f"{name}, {clock_time(begin)}–{clock_time(end)}", begin, end, part)

    def cut_file(self, file: AudioFile, settings: MelConfig, config: Any, tokens: int) -> tuple[Any, ...]:
        """As `cut`, of a file, whose parts are all in memory together.

        Raises:
            AudioLengthError: they have more than `MAX_BYTES`.
            AudioFileError: the file cannot be read.
        """
        made = []
        count = 0
        for each in self.segments(file, settings, config, tokens=tokens):
            made.append(each.item)
            count += each.item.samples.nbytes
            if count > MAX_BYTES:
                raise AudioLengthError(
                    f"{file.path} has more than {MAX_BYTES} bytes of samples, {clock_time(each.begin)} of sound: read "
                    "it in segments, one after another: encode_all(…, segment=30), or Session.add(…, segment=30)"
                )
        return tuple(made)

    def cut(self, item: Audio | AudioPart, settings: MelConfig, config: Any, tokens: int) -> Sequence[Any]:
        """See `models.architecture.Medium`; each part is normalised with the whole recording."""
        if isinstance(item, Audio):
            return [each.item for each in self.segments(item, settings, config, tokens=tokens)]
        frames = self.frames(settings, config, tokens=tokens)
        begins = range(0, max(1, item.frames - self.least + 1), frames)
        return [item.between(first, first + frames) for first in begins]

    def encode(self, params: Params, tower: Any, inputs: jax.Array, plan: Any) -> Features:
        """See `models.architecture.Medium`."""
        return Features(self.embed(params, tower, inputs, plan))
