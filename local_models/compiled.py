"""numba's compiler, with a place for what it has compiled wherever the code is installed."""

import os
import stat
import tempfile
from collections.abc import Callable
from typing import Any

import numba


def jit(**options: Any) -> Callable:
    """A decorator as `numba.njit(**options)` makes one, that keeps the compiled function on disk if it can.

    numba keeps it in `NUMBA_CACHE_DIR`, beside the source, or in the home folder, and raises a RuntimeError if it may
    write in none of them, as in a container with a read-only checkout and no home. Then it is kept in a folder for
    temporary files, or compiled anew by each process.
    """

    def decorate(function):
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            folder = _temporary_cache()
        if folder is None:
            # Each process then compiles for itself, which takes seconds.
            return numba.njit(**options)(function)
        # From now on for all functions, those of other packages too.
        numba.config.CACHE_DIR = folder
        return numba.njit(cache=True, **options)(function)

    return decorate


def _temporary_cache() -> str | None:
    """A folder of this user, and of nobody else: what is in it is run."""
    try:
        folder = os.path.join(tempfile.gettempdir(), f"numba-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    except OSError:
        return None
    # Anybody may make a folder of this name first, or a link.
    is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    is_own = status.st_uid == os.getuid()
    if is_private and is_own and os.access(folder, os.W_OK):
        return folder
    return None
