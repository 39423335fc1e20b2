"""Fixtures of all tests.

The process that hands the tests out to others reads this file too, and they wait for it: what takes long to import is
imported where it is used.
"""

import collections
import os
import signal
import warnings

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Networks this small lose more by waiting for a second thread than it gains; read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

RATE = 8000


def tones(rng, seconds):
    """Two sources that a small network can tell apart: a low and a high tone, each with a slow envelope."""
    import numpy as np

    time = np.arange(round(seconds * RATE)) / RATE
    frequencies = rng.uniform([100, 900], [300, 2000])
    envelope = 0.5 + 0.5 * np.sin(
        2 * np.pi * rng.uniform(1, 4, (2, 1)) * time + rng.uniform(0, 6, (2, 1))
    )
    return (0.3 * envelope * np.sin(2 * np.pi * frequencies[:, None] * time)).astype(np.float32)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks as slow the cases that `fast_every` leaves out, before `-m` chooses by the marks."""
    numbers = collections.Counter()
    for item in items:
        marker = item.get_closest_marker("fast_every")
        if marker is None:
            continue
        function = item.nodeid.partition("[")[0]
        if numbers[function] % marker.args[0]:
            item.add_marker("slow")
        numbers[function] += 1


@pytest.fixture(autouse=True)
def handler_of_loader_processes():
    """Torch installs its handler for dead loader processes once a process, and a command that ends takes it away."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


@pytest.fixture(scope="session")
def torchiva():
    """A reference that needs torchaudio, which the project itself does without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchaudio
        return pytest.importorskip("torchiva")


@pytest.fixture(scope="session")
def tone_manifests(tmp_path_factory):
    """A folder with train.csv, valid.csv, test.csv and train_sources.csv of 1.0 to 1.5 s mixtures of tones at 8 kHz."""
    import numpy as np
    import pandas as pd
    import soundfile as sf

    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    recordings = []
    for name, number in (("train", 16), ("valid", 4), ("test", 4)):
        rows = []
        for index in range(number):
            sources = tones(rng, rng.uniform(1.0, 1.5))
            row = {"mixture_ID": f"{name}{index}"}
            for column, track in zip(
                ("mixture", "source_1", "source_2"), (sources.sum(0), *sources), strict=True
            ):
                row[f"{column}_path"] = f"{name}{index}_{column}.wav"
                sf.write(folder / row[f"{column}_path"], track, RATE, subtype="FLOAT")
            rows.append(row | {"length": sources.shape[1]})
            if name == "train":
                for k in (1, 2):
                    recordings.append(
                        {
                            "speaker": f"s{k}{index % 3}",
                            "path": row[f"source_{k}_path"],
                            "length": sources.shape[1],
                        }
                    )
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    pd.DataFrame(recordings).to_csv(folder / "train_sources.csv", index=False)
    return folder
