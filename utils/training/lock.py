"""One training at a time in an experiment's folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from utils.lock import only_process


def is_first_process() -> bool:
    """Whether this is the process of a training that writes: rank 0 of the first machine.

    Known before there is a trainer. Lightning's rank counts from 0 on each machine until processes have met.
    """
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


@contextlib.contextmanager
def only_training(folder: str | Path) -> Iterator[None]:
    """Hold `folder` for this process; processes of the same training other than the first do nothing.

    Raises:
        UserError: another process trains there.
    """
    if not is_first_process():
        yield
        return
    advice = "wait until it is done, end it, or give this training a --tag of its own"
    with only_process(folder, "trains in", advice):
        yield
