"""One training at a time in an experiment's folder."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from utils.errors import UserError

NAME = ".lock"


def is_first_process() -> bool:
    """Whether this is the process of a training that writes: rank 0 of the first machine.

    Known before there is a trainer. Lightning's rank counts from 0 on each machine until processes have met.
    """
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


@contextlib.contextmanager
def only_training(folder: str | Path) -> Iterator[None]:
    """Hold `folder` for this process, which is freed when the process ends in whatever way.

    Processes of the same training other than the first do nothing. The lock is a POSIX record lock: other than one by
    flock(2) it does not pass to forked loader workers, which may outlive a killed training by some seconds.

    Raises:
        UserError: another process trains there.
    """
    if not is_first_process():
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Opened for appending: what another process has written about itself stays until the lock is ours.
    with open(folder / NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(_who_holds(folder, file)) from None
        except OSError as error:
            # Some network file systems have no locks; a training there is as safe as it was without.
            print(f"{folder}: cannot be locked ({error.strerror}); start no second training there")
        file.truncate(0)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.write(json.dumps(holder))
        file.flush()
        yield


def _who_holds(folder: Path, file) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "it has not said which"
    return (
        f"another process trains in {folder} ({who}): wait until it is done, end it, "
        "or give this training a --tag of its own"
    )
