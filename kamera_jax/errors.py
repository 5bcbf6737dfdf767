"""Named errors. Each is a ValueError that says what was given, what was expected and what to do."""


class BackboneError(ValueError):
    """A backbone lacks something that it must have, or gives something else than it should."""


class ArgumentError(ValueError, TypeError):
    """An argument of another type than the function takes."""


class NoModelError(ArgumentError, BackboneError):
    """What stands where a model is expected has nothing of one: an item, a name, or arguments in another order."""


class DonatedError(ValueError):
    """A window or chunk whose arrays were given away, by ``donate=True`` or a caller's own donation."""


class ModelMismatchError(ValueError):
    """A chunk or patch was made by another model, or another revision, dtype or RoPE of it."""


class PreambleMismatchError(ValueError):
    """A chunk was encoded after another preamble than the window's."""


class PatchMismatchError(ValueError):
    """A patch was formed for another chunk."""


class WindowFullError(ValueError):
    """What is to be added does not fit the window's free slots."""


class ModelLengthError(WindowFullError):
    """What is to be added would stand beyond the positions that the model is for."""


class NonFiniteError(ValueError):
    """Numbers that are NaN or infinite where a model must have finite ones: its weights, or what it computes."""


class MissingInputsError(ValueError):
    """A chunk whose source was dropped cannot be run through the model again."""


class MissingKeyError(ValueError):
    """A chunk or patch without a key: nothing says how what it holds was computed, so it cannot be stored or found."""


class MissingSketchError(ValueError):
    """A patch keeps no sketch of how its chunk attended, so its staleness cannot be computed."""


class SharedRowsError(ValueError):
    """A chunk whose tokens cannot share rows: no video of equal frames, or its rows are shared already."""


class RenewalError(ValueError):
    """A chunk of which rows cannot be kept for another item: they differ in size, or its KV is not as encoded."""


class StalePatchError(ValueError):
    """A patch is not safe to reuse in the present context, and the policy asks for an error."""


class ChunkNotHeldError(ValueError):
    """A key of which a session holds no chunk: it was never added, or was dropped to stay within its memory."""


class SnapshotNotFoundError(ValueError):
    """A folder in which nothing was saved, or not to the end."""


class SnapshotCorruptError(ValueError):
    """What was saved in a folder is not as it was written."""


class SnapshotVersionError(ValueError):
    """A snapshot of a schema that this version does not read."""


class LibraryNotFoundError(ValueError):
    """A path that is no chunk library."""


class LibraryVersionError(ValueError):
    """A chunk library of a format that this version does not read."""


class LibraryReadOnlyError(ValueError):
    """A chunk library that cannot be written to: opened for reading, or in a folder that may not be changed."""


class LibraryFullError(ValueError):
    """The disk of a chunk library has no room for what is to be stored."""


class LibraryCorruptError(ValueError):
    """What a chunk library stored is not as it was written, or is gone."""


class ChunkNotFoundError(ValueError):
    """A key under which a chunk library holds nothing: it was never stored, or was deleted."""


class AmbiguousKeyError(ValueError):
    """The beginning of a key with which several keys of a chunk library begin."""


class LibraryArchiveError(ValueError):
    """A file that holds no chunk library as `ChunkLibrary.export` writes one."""


class ExportError(ValueError):
    """A path that chunks of a library cannot be exported to."""


class PublishedMeanwhileError(ValueError):
    """Another published a library to the same address meanwhile: what it published is whole, and stays."""


class LibraryDiskError(ValueError):
    """A disk, a system or an object store that failed while a chunk library was read or written."""


class NotRegularError(ValueError):
    """A link, pipe or device where a file or folder of a library, session or run is expected."""


class LockedError(ValueError):
    """A folder that another process is writing to."""


class LeaseLostError(ValueError):
    """A writer that another has taken over from: it did not renew its lease in time, and changes nothing any more."""


class NoFileLocksError(ValueError):
    """A system without file locks: nothing keeps two processes from writing to one folder at once."""


class ForkedProcessError(ValueError):
    """A forked process that would use what only the process it was forked from has: its threads, its devices."""


class UnstorableError(ValueError):
    """A chunk or patch with something that a library cannot store and give back as it is."""


class PlacementError(ValueError):
    """A mesh cannot have KV as it is asked to."""


class RetrievalError(ValueError):
    """Nothing says by which attention heads a model finds chunks, or something that says it for another model."""


class CodecError(ValueError):
    """A codec that there is not, or KV that it cannot store."""


class BasisError(CodecError):
    """What a codec is calibrated with is not known, or is another model's."""


class ClosedError(ValueError):
    """Tiers that were closed, and fetch nothing ahead any more."""
