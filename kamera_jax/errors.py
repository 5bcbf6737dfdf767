"""Named errors. Each is a ValueError that says what was given, what was expected and what to do."""


class ModelMismatchError(ValueError):
    """A chunk or patch was made by another model, or another revision, dtype or RoPE of it."""


class PreambleMismatchError(ValueError):
    """A chunk was encoded after another preamble than the window's."""


class PatchMismatchError(ValueError):
    """A patch was formed for another chunk."""


class WindowFullError(ValueError):
    """What is to be added does not fit the window's free slots."""


class MissingInputsError(ValueError):
    """A chunk whose inputs were dropped cannot be run through the model again."""


class MissingSketchError(ValueError):
    """A patch keeps no sketch of how its chunk attended, so its staleness cannot be told."""


class StalePatchError(ValueError):
    """A patch is not safe to reuse in the present context, and the policy asks for an error."""


class ChunkNotHeldError(ValueError):
    """A key of which a session holds no chunk: it was never added, or was dropped to stay within its memory."""


class SnapshotNotFoundError(ValueError):
    """A folder in which nothing was saved, or not to the end."""


class SnapshotCorruptError(ValueError):
    """What was saved in a folder is not as it was written."""
