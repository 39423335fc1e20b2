"""One process at a time in a folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from utils.errors import UserError

NAME = ".lock"


class HeldError(UserError):
    """Another process works in the folder."""


@contextlib.contextmanager
def only_process(
    folder: str | Path,
    work: str,
    advice: str,
    wait: bool = False,
) -> Iterator[None]:
    """Hold `folder` for this process, which is freed when the process ends in whatever way.

    The lock is a POSIX record lock: other than one by flock(2) it does not pass to forked workers, which may outlive a
    killed process by some seconds. Where nothing can be written, nothing is locked.

    Args:
        folder: is made.
        work: what the process does, as in "another process trains in".
        advice: what to do if another one does it, as the end of a sentence.
        wait: until that one has ended.

    Raises:
        HeldError: another process does it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # For appending: what another process has written about itself stays until the lock is ours.
        file = open(folder / NAME, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        yield
        return
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            raise HeldError(f"another process {work} {folder} ({holder}): {advice}") from None
        except OSError as error:
            # Some network file systems have no locks; one is as safe there as it was without.
            print(f"{folder}: cannot be locked ({error.strerror}); start nothing else there")
        file.truncate(0)
        # Who is refused is told who holds the folder.
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.write(json.dumps(note))
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    """Who has written about itself in the file of a lock."""
    # What an earlier holder has written, if this one has not come to it.
    file.seek(0)
    try:
        note = json.load(file)
        return f"process {note['pid']} on {note['host']}, since {note['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said which"
