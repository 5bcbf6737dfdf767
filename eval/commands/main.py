"""The `kamera` command: the process around it, its signals and its exit status.

Everything else is imported once Ctrl-C ends the process in order: even importing JAX takes seconds.
"""

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from eval.commands.arguments import ATTENTIONS, DEFAULT, EMBEDDED

__all__ = ["ATTENTIONS", "DEFAULT", "EMBEDDED", "main", "parser"]

INTERRUPTED = 130
"""The exit status after Ctrl-C."""


def _leave(*_: object) -> None:
    """End the process at once, whatever it is importing or closing."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _interrupt(*_: object) -> None:
    """Interrupt the command, which stores what it has; a second time, end the process."""
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def _on_interrupt(handler: Any) -> Any:
    """Set what Ctrl-C does, and return what it did; where it is ignored, or this is no main thread, it stays."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return signal.SIG_IGN
        return signal.signal(signal.SIGINT, handler)
    except ValueError:
        return None


if __name__ == "__main__" or os.path.basename(sys.argv[0] if sys.argv else "") == "kamera":
    _on_interrupt(_leave)


def __getattr__(name: str) -> Any:
    if name in ("ATTENTIONS", "DEFAULT", "EMBEDDED"):
        from eval.commands import arguments

        return getattr(arguments, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parser() -> "argparse.ArgumentParser":
    """The command line."""
    from eval.commands import command_line

    return command_line.parser()


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run a command.

    Args:
        arguments: by default those of the process, whose streams and signals are then this function's.

    Returns:
        The exit status: 0, also where nobody reads the output to its end; 1 for an error in what was given; 130 after
        Ctrl-C.
    """
    own = arguments is None
    before = _on_interrupt(_leave) if own else None
    if own:
        from eval.commands import streams

        streams.protect()
        sys.unraisablehook = _unraisable
    try:
        status = _run(arguments, own)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        status = 0
    except SystemExit as stop:  # of the parser: --help, or arguments that are none
        if not own:
            raise
        status = stop.code if isinstance(stop.code, int) else 0
    if own and before is not None:
        _on_interrupt(_leave)  # closing takes a while too
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        print(f"kamera: standard output cannot be written: {error.strerror}", file=sys.stderr)
        return status or 1
    return status


def _run(arguments: "Sequence[str] | None", own: bool) -> int:
    from eval.commands import command_line

    options = command_line.parse(arguments)
    try:
        files = command_line.check(options)
        from eval.commands import compile_cache, hidden, platforms

        hidden.check()
        if own:
            platforms.skip_missing_tpu()
        compile_cache.enable()
        import kamera_jax  # noqa: F401  (here, so that an interrupted import says nothing but that)

        if hasattr(options, "model"):
            import models  # noqa: F401
        if own:
            _on_interrupt(_interrupt)
        return command_line.run(options, files)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        if options.debug:
            raise
        print(f"kamera: {str(error) or 'there is not enough memory'}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if options.debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        print(f"kamera: the device has not enough memory ({reason}); give less, or shorter items", file=sys.stderr)
        return 1


def _unraisable(caught: Any) -> None:
    """What Python does with an error that nothing can catch; an interrupt among them ends the process."""
    if isinstance(caught.exc_value, KeyboardInterrupt):
        _leave()
    sys.__unraisablehook__(caught)


if __name__ == "__main__":
    sys.exit(main())
