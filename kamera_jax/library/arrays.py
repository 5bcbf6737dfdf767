"""Named arrays as an Orbax checkpoint whose files hold their bytes and nothing else; written by one thread.

Orbax loses or hangs some saves when several threads of a process save at once, so all of them go through `writer`.
"""

import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kamera_jax.library import saver
from kamera_jax.library.forked import check_unforked
from kamera_jax.library.opening import open_regular, read_regular

STATE = "state"
"""Folder of the arrays in a checkpoint, which is Orbax's to name."""

DTYPES = {
    np.dtype(each).name: np.dtype(each)
    for each in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    )
}
"""What can be stored, by name; anything else a file asks for is refused."""

# Orbax looks for what this layout has not, and warns of it at every save.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in str(record.msg))

_writers: dict[int, ThreadPoolExecutor] = {}


def writer() -> ThreadPoolExecutor:
    """The one thread of this process that saves.

    Raises:
        ForkedProcessError: this process was forked from one that saved, whose threads it has not.
    """
    check_unforked("writing arrays")
    if _writers and os.getpid() not in _writers:
        check_unforked("the thread that writes arrays", next(iter(_writers)))
    if not _writers:
        _writers[os.getpid()] = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kamera-library")
    return _writers[os.getpid()]


def save(place: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint of arrays that are not empty; on the `writer` alone. Not brought to the disk yet.

    Raises:
        OSError, ValueError: as Orbax has them; nothing is to be made of what lies there then.
    """
    if _in_job():
        saver.save(place, arrays)
        return
    from orbax.checkpoint import v1 as ocp  # seconds to import

    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    context.array.saving.use_zarr3 = False
    context.array.saving.use_compression = False
    context.memory_options.deepcopy_host_arrays = False  # they stay as they are until this returns
    context.async_options.create_directories_asynchronously = False  # else a folder that cannot be made takes minutes
    with context:
        ocp.save(str(place), dict(arrays))
    for name, array in arrays.items():
        if data_file(place, name, array.ndim).stat().st_size != array.nbytes:
            raise OSError(f"Orbax wrote array {name!r} otherwise than one uncompressed file; use orbax-checkpoint 0.12")


def load(place: Path, targets: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arrays of a checkpoint: numpy's, or as a `jax.ShapeDtypeStruct` with a sharding says for each.

    Raises:
        Exception: whatever Orbax makes of missing or broken files.

    In a job of `jax.distributed` each process that has devices of a sharding reads their part, and waits for no other.
    """
    import jax
    from orbax.checkpoint import v1 as ocp

    if not _in_job():
        return ocp.load(str(place), targets)
    if targets is not None:
        return {name: _loaded_part(place, name, target) for name, target in targets.items()}
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.barrier_sync_key_prefix = str(jax.process_index())
    with context:
        return ocp.load(str(place))


def _in_job() -> bool:
    """Whether this is one of several processes of `jax.distributed`, which Orbax saves and loads with all at once."""
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _loaded_part(place: Path, name: str, target: Any) -> Any:
    """An array of a checkpoint on devices of several processes, each of which reads what its own need."""
    import jax

    with os.fdopen(open_regular(data_file(place, name, len(target.shape))), "rb") as file:
        whole = np.memmap(file, target.dtype, "r", shape=target.shape)
        return jax.make_array_from_callback(target.shape, target.sharding, lambda index: np.array(whole[index]))


def check_layout(place: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a checkpoint says of an array what `save` does: one uncompressed file, of this shape.

    The storage library makes room for whatever is said there.
    """
    said: Any = json.loads(read_regular(place / STATE / name / ".zarray", 2**16))
    stored = dtype.name if dtype.isbuiltin == 2 else dtype.newbyteorder("<").str  # 2: of ml_dtypes
    wanted: dict[str, Any] = {"zarr_format": 2, "dtype": stored, "order": "C", "compressor": None, "filters": None}
    wanted |= {"shape": list(shape), "chunks": list(shape), "dimension_separator": "."}
    if not isinstance(said, dict) or any(repr(said.get(key)) != repr(value) for key, value in wanted.items()):
        raise ValueError(f"array {name} is said to be {str(said)[:200]}; expected {wanted}")


def data_file(place: Path, name: str, axes: int) -> Path:
    """Where the bytes of an array lie, in C order."""
    return place / STATE / name / ".".join("0" * axes)
