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
