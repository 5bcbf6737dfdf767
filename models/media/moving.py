"""Videos as a medium: what those of several ports say alike."""

from collections.abc import Sequence
from typing import Any

from kamera_jax.items import Video
from models.media.images import VERSION


class VideoItems:
    """What a medium of videos says of its items: a part of one."""

    kind: str

    def reads(self, item: Any) -> bool:
        """See `models.architecture.Medium`."""
        return isinstance(item, Video)

    def normal(self, item: Video) -> Video:
        """See `models.architecture.Medium`; a `Video` has checked itself."""
        return item

    def digested(self, item: Video, settings: Any) -> tuple[str, str, bytes]:
        """See `models.architecture.Medium`."""
        content = item.frames.tobytes() + item.times.tobytes()
        return f"{self.kind}:v{VERSION}:{settings}", str(item.frames.shape), content


class FrameByFrame(VideoItems):
    """The same of one whose frames do not see each other in the tower, each of ``config.vision.tokens`` tokens."""

    def cut(self, item: Video, settings: Any, config: Any, tokens: int) -> Sequence[Video]:
        """See `models.architecture.Medium`; each part is whole frames, one at least."""
        frames = max(1, tokens // config.vision.tokens)
        return [item.between(first, first + frames) for first in range(0, len(item.frames), frames)]
