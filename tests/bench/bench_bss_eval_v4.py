"""Time and memory of BSS Eval v4 against museval, as ratios measured in one run, and the largest difference.

    python tests/bench/bench_bss_eval_v4.py [--seconds 30] [--sources 2] [--rounds 3]

Synthetic stereo stems at 44.1 kHz. Time is that of the process on one thread; the rivals alternate, and the ratio is
one of medians. Memory is the peak of what numpy allocates in a call; it leaves out the copies that museval's linear
algebra makes on its own.
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from scipy.signal import lfilter
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[2]))
from utils.evaluation.metrics.bss_eval_v4 import frame_scores, frame_sdr


def museval_module(name: str):
    """A module of museval without the package's __init__, which raises an error where ffmpeg is missing."""
    known = sys.modules.get("museval")
    package = (
        importlib.util.module_from_spec(importlib.util.find_spec("museval"))
        if known is None
        else known
    )
    sys.modules["museval"] = package
    try:
        return importlib.import_module(f"museval.{name}")
    finally:
        if known is None:
            del sys.modules["museval"]


def museval_scores(estimates, references, sample_rate, window=1.0, hop=1.0, filter_length=512):
    """What `frame_scores` returns, from museval, without limits."""
    stems = (x.transpose(0, 2, 1) if x.ndim == 3 else x for x in (references, estimates))
    frames = {"window": int(window * sample_rate), "hop": int(hop * sample_rate)}
    scores = museval_module("metrics").bss_eval(*stems, **frames, filters_len=filter_length)
    return dict(zip(("sdr", "isr", "sir", "sar"), scores[:4], strict=True))


def stems(n_src, seconds, sample_rate, n_channels=2, seed=0):
    """References of notes and hits in a room, and estimates with filtering, leakage and noise: two float32
    (source, channel, time)."""
    rng = np.random.default_rng(seed)
    length = round(seconds * sample_rate)
    beat = np.arange(length) % (sample_rate // 4) / sample_rate
    references = np.empty((n_src, n_channels, length), np.float32)
    for reference in references:
        notes = 110 * 2 ** (rng.integers(0, 36, length // (sample_rate // 4) + 1) / 12)
        phase = 2 * np.pi * np.cumsum(np.repeat(notes, sample_rate // 4)[:length]) / sample_rate
        dry = sum(np.sin(k * phase) / k for k in range(1, 6)) * np.exp(-3 * beat)
        dry += rng.normal(0, 2, length) * np.exp(-40 * beat)
        for channel in reference:
            room = rng.normal(size=256) * np.exp(-np.arange(256) / 30)
            channel[:] = 0.02 * lfilter(room, 1, dry) + rng.normal(0, 1e-4, length)
    estimates = 0.9 * lfilter([1, 0.1, -0.05], 1, references) + 0.2 * (
        references.sum(axis=0) - references
    )
    estimates += rng.normal(0, 0.003, references.shape)
    return estimates.astype(np.float32), references


def cpu_seconds(function, *args) -> float:
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def peak_megabytes(function, *args) -> float:
    tracemalloc.start()
    function(*args)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="length of the track")
    parser.add_argument("--sources", type=int, default=2, help="stereo sources")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each rival")
    args = parser.parse_args()
    track = (*stems(args.sources, args.seconds, 44100), 44100)
    rivals = {"museval": museval_scores, "frame_scores": frame_scores, "frame_sdr": frame_sdr}
    with threadpool_limits(1):
        theirs, ours = museval_scores(*track), frame_scores(*track)  # also warms up
        times = {name: [] for name in rivals}
        for _ in range(args.rounds):
            for name, function in rivals.items():
                times[name].append(cpu_seconds(function, *track))
        memory = {name: peak_megabytes(function, *track) for name, function in rivals.items()}
    print(f"{args.sources} stereo sources, {args.seconds:g} s; SDR alone is frame_sdr")
    print(f"{'':14}{'CPU s':>8}{'faster':>9}{'MB':>7}{'share':>7}")
    for name in rivals:
        seconds, base = statistics.median(times[name]), statistics.median(times["museval"])
        share = memory[name] / memory["museval"]
        print(f"{name:14}{seconds:8.3f}{base / seconds:8.1f}x{memory[name]:7.0f}{share:7.0%}")
    for name, values in ours.items():
        difference = np.nanmax(np.abs(values - theirs[name]))
        same = np.array_equal(np.isnan(values), np.isnan(theirs[name]))
        print(
            f"largest difference of {name}: {difference:.1e} dB; the same frames without a score: {same}"
        )


if __name__ == "__main__":
    main()
