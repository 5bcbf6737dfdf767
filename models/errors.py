"""Errors of reading a model's folder."""

from collections.abc import Iterable

from kamera_jax.errors import NonFiniteError


class ConfigError(ValueError):
    """A configuration cannot be read as the port needs it."""


class UnknownConfigFieldError(ConfigError):
    """A field the port has never heard of: it might change the computation."""


class MissingConfigFieldError(ConfigError):
    """A field without which the computation is not determined."""


class UnsupportedConfigError(ConfigError):
    """A known field with a value that changes the computation in a way the port does not do."""


class MissingConfigFileError(ConfigError, FileNotFoundError):
    """A model folder lacks a file."""


class ParamsError(ValueError):
    """Parameters that do not fit a model."""


class FrozenParamsError(AttributeError, ValueError):
    """A model's parameters were assigned to, which would leave its fingerprint and its keys as they were."""


class WeightsError(ValueError):
    """A folder's weights are not the model's."""


class GitLfsPointerError(ConfigError, WeightsError):
    """A file of a model is a pointer of Git LFS: its content was never fetched."""


class MissingTensorError(WeightsError):
    """The model needs a tensor that the folder does not have."""


class UnexpectedTensorError(WeightsError):
    """The folder has a tensor that the model has no use for."""


class TensorShapeError(WeightsError):
    """A tensor has another shape than the configuration asks for."""


class TensorDtypeError(WeightsError):
    """A tensor has a dtype that cannot fill a parameter."""


class TensorRangeError(WeightsError):
    """A tensor has values that the parameters' dtype does not reach."""


class NonFiniteWeightsError(WeightsError, NonFiniteError):
    """A tensor has values that are NaN or infinite."""


def few(names: Iterable[str], shown: int = 4) -> str:
    """The first of many names, for a message."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "nothing") + more


class ItemError(ValueError):
    """An item that this model does not read: of another kind, an empty list, or a list in a list."""


class PreprocessedError(ValueError):
    """An item that was preprocessed for another model, or other preprocessing."""
