"""What a forked process may do with a library: nothing that its parent opened, all else if JAX was not started.

`python -m tests.kamera_jax.library.forks FOLDER JAX|nothing`, of a library that has chunks 0 and 1.
"""

import os
import signal
import sys
import traceback
import warnings


def in_child(work):
    """The status of a child that does something; one that hangs is killed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(30)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def refused(*acts):
    """Raise unless every act is refused by name."""
    from kamera_jax.errors import ForkedProcessError

    for act in acts:
        try:
            act()
        except ForkedProcessError as error:
            assert "forked" in str(error)
        else:
            raise AssertionError("it was not refused")


def main(root, started):
    """Open a library, fork, and use it in the child."""
    warnings.simplefilter("ignore")  # JAX warns of every fork
    import kamera_jax as kj
    from tests.kamera_jax.library.made import bits, chunk, key_of

    if started == "JAX":
        import jax

        jax.devices()
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        if started == "JAX":
            lib.put(chunk(6))
        items = chunk(7) if started == "JAX" else None

        def inherited():
            with lib:
                refused(
                    *(lambda: lib.put(items), lambda: lib.put_async(items), lambda: lib.put_many([items])),
                    *(lambda: lib.delete(key_of(0)), lib.gc, lib.close, lambda: lib.get(key_of(0)), lib.keys),
                    *(lambda: lib.get_many([key_of(0)]), lambda: lib.has(key_of(0)), lib.verify, lib.stats),
                )

        def own():
            if started == "JAX":
                refused(lambda: kj.ChunkLibrary.open(root), lambda: kj.ChunkLibrary.open(root, mode="a"))
                return
            with kj.ChunkLibrary.open(root, mode="a") as mine:
                mine.put(chunk(8))
                assert bits(mine.get(key_of(8))) == bits(chunk(8)) and bits(mine.get(key_of(0))) == bits(chunk(0))

        assert in_child(inherited) == 0, "with the parent's library"
        assert in_child(own) == 0, "with its own"
        lib.put(chunk(9))
        assert bits(lib.get(key_of(9))) == bits(chunk(9)) and lib.has(key_of(8)) == (started != "JAX")
    print("as it should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
