"""Errors of reading GGUF files."""

from models.errors import ConfigError, MissingTensorError, TensorShapeError, UnexpectedTensorError, WeightsError
from models.hub.refusals import UnknownModelError


class GgufError(ValueError):
    """A GGUF file that cannot be read, or a model in it that this version does not serve."""


class GgufPackageError(GgufError, ImportError):
    """The package ``gguf``, which dequantises, is not installed or is too old."""


class NotGgufError(GgufError, UnknownModelError):
    """A file does not begin as GGUF files do."""


class GgufVersionError(GgufError):
    """A file is of a version of the format that this does not read."""


class GgufByteOrderError(GgufError):
    """A file is big-endian."""


class TruncatedGgufError(GgufError, WeightsError):
    """A file ends before what its header declares."""


class CorruptGgufError(GgufError, WeightsError):
    """A file does not keep to its format."""


class SplitGgufError(GgufError):
    """A file is one part of several."""


class UnknownGgufArchitectureError(GgufError, UnknownModelError):
    """A file holds a model of an architecture that is not served."""


class GgufMetadataError(GgufError, ConfigError):
    """What a file says of its model is missing, or asks for a computation that is not served."""


class MissingGgufTensorError(GgufError, MissingTensorError):
    """A file lacks a tensor that the architecture needs."""


class UnexpectedGgufTensorError(GgufError, UnexpectedTensorError):
    """A file has a tensor that the architecture has no use for."""


class GgufTensorSizeError(GgufError, TensorShapeError):
    """A tensor has another size than its place in the file, or the metadata, asks for."""


class UnsupportedTensorTypeError(GgufError, WeightsError):
    """A tensor is quantised in a way that the package ``gguf`` does not dequantise."""


class GgufTokenizerError(GgufError):
    """A file's tokenizer cannot be built."""


class UnknownPreTokenizerError(GgufTokenizerError):
    """A file's tokenizer splits text in a way that is not known, before it is merged to tokens."""
