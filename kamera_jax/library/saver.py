"""Saving by a process of its own, in a job of `jax.distributed`: in one, Orbax saves with all processes at once.

What is to be saved goes through a pipe: a line that says what, then the arrays' bytes. Each answer is a line.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

_savers: dict[int, "_Saver"] = {}


def save(place: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As `kamera_jax.library.arrays.save`; on the one thread that saves.

    Raises:
        OSError: it failed, in the words of that process, or the process cannot be started or died.
    """
    if os.getpid() not in _savers:
        _savers[os.getpid()] = _Saver()
    try:
        _savers[os.getpid()].save(place, arrays)
    except BaseException:
        _savers.pop(os.getpid()).close()  # another one for the next
        raise


class _Saver:
    def __init__(self) -> None:
        # Of the job it knows nothing: who joins one says so in the program, which this is not.
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process: Any = subprocess.Popen(
            [sys.executable, "-P", "-c", "from kamera_jax.library.saver import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        atexit.register(self.close)

    def save(self, place: Path, arrays: Mapping[str, np.ndarray]) -> None:
        about = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
        try:
            self._process.stdin.write(json.dumps({"place": str(place), "arrays": about}).encode() + b"\n")
            for array in arrays.values():
                self._process.stdin.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it says nothing then
        answer = self._process.stdout.readline()
        if not answer:
            raise OSError(f"the process that saves {place} ended before it had saved it; see what it printed")
        if (said := json.loads(answer)) != "saved":
            raise OSError(said)

    def close(self) -> None:
        """End the process; it leaves nothing that its library would take for a pack."""
        atexit.unregister(self.close)
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Save what is sent until nothing more is."""
    from kamera_jax.library.arrays import DTYPES
    from kamera_jax.library.arrays import save as save_here

    while line := orders.readline():
        order = json.loads(line)
        arrays = {}
        for name, (dtype, shape) in order["arrays"].items():
            array = np.empty(shape, DTYPES[dtype])
            room = array.reshape(-1).view(np.uint8).data
            while room.nbytes:
                read = orders.readinto(room)  # type: ignore[attr-defined]
                if not read:
                    return  # whoever sent it died
                room = room[read:]
            arrays[name] = array
        try:
            save_here(Path(order["place"]), arrays)
            answer = "saved"
        except Exception as error:  # as whatever the storage library has it
            answer = f"{type(error).__name__}: {error}"
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Serve through this process's own streams; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
