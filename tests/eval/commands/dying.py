"""Workers of `kamera encode` of which the second is killed at its second item, and the first waits for that."""

import os
import signal
import time

from eval.commands import worker


def work(index, count, connection, job):
    import tests.conftest  # noqa: F401  (JAX as in the process of the tests, so that bits are equal)
    from eval.commands import encoding

    real = encoding.encode_segment
    dead = job.library.with_name("dead")
    encoded = []

    def encode_segment(vlm, segment):
        if index == 1 and encoded:
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 120
        while index == 0 and not dead.exists() and time.monotonic() < until:
            time.sleep(0.02)
        encoded.append(segment)
        return real(vlm, segment)

    encoding.encode_segment = encode_segment
    worker.work(index, count, connection, job)
