"""Errors that a person caused and can mend: printed as one message, without a traceback."""

import contextlib
import errno
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

NO_MEMORY = "not enough memory: use fewer jobs, smaller batches or sizes, or a larger machine"
INTERRUPTED = 130  # exit code of a program that Ctrl-C ended, as shells have it


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and what to do."""


def command(main: Callable) -> Callable:
    """Decorate the main function of a command: what a person can mend ends it with one line.

    The exit code is 2 for a `UserError` and for errors of the operating system (a full disk, a name that is too long,
    a loop of links, ...), of memory and of a closed output; 130 for Ctrl-C. Names of files that the terminal cannot
    show are printed with backslashes.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        _print_any_name()
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()  # a closed output would else be noticed when Python ends
            return result
        except UserError as error:
            _end(f"error: {error}")
        except KeyboardInterrupt:
            _end("interrupted; the same command goes on", INTERRUPTED)
        except BrokenPipeError:
            # Python would try to write the rest of the output at its end, and fail again.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _end("error: the program that was to read the output has ended")
        except (MemoryError, RuntimeError) as error:
            if message := _of_torch(error):
                _end(f"error: {message}")
            raise
        except OSError as error:
            if error.errno is None or (error.filename is None and error.errno not in _FULL_DISK):
                raise
            _end(f"error: {explain(error)}")

    return wrapped


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import libraries that take seconds: meanwhile Ctrl-C and SIGTERM end the program at once, with one line.

    An exception out of the middle of an import would be a traceback, or be caught by a library that tries another one.
    Exit codes are those of shells, 128 and the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    # A shell that starts a program in the background lets it ignore Ctrl-C.
    usual = (signal.default_int_handler, signal.SIG_DFL)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replaced = {number: handler for number, handler in before.items() if handler in usual}
    # Not raised as an exception: some libraries catch what an import of theirs raises.
    for number in replaced:
        signal.signal(number, _end_at_once)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _end_at_once(number, frame):
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(128 + number)


_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def lacks_memory(error: BaseException) -> bool:
    """Whether there was too little memory; torch has no class of its own for that of the CPU."""
    said = re.search("can't allocate memory|out of memory", str(error))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(said))


def _of_torch(error: Exception) -> str | None:
    """What an error that torch or Python may raise anywhere is to a person; None: nothing."""
    # A loader process that dies raises one wherever this process is, even while a message is on its way.
    if isinstance(error.__context__, UserError):
        return str(error.__context__)
    return NO_MEMORY if lacks_memory(error) else None


def explain(error: OSError) -> str:
    """The message for an error of the operating system: what, where, and what to do."""
    where = error.filename or "while writing"
    if error.errno in _FULL_DISK:
        return f"the disk is full ({where}): free some space and run the same command again"
    if error.errno in _FORBIDDEN:
        return f"{where}: {error.strerror}. Choose another place, or change its permissions"
    if error.errno == errno.EMFILE:
        return f"{where}: {error.strerror}. Raise the limit with `ulimit -n 4096`"
    return f"{where}: {error.strerror}"


def _end(message: str, code: int = 2):
    if threading.current_thread() is threading.main_thread():
        # Loader processes may die meanwhile; torch's handler would raise an error here.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    print(message, file=sys.stderr)
    # What objects say that a failure left half-made, when Python deletes them, would bury the message.
    sys.unraisablehook = lambda _: None
    sys.exit(code)


def _print_any_name():
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
