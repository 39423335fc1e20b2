"""How many times faster than mir_eval, and how far from it, BSS Eval scores two-speaker utterances.

    OMP_NUM_THREADS=1 python tests/bench/bench_bss_eval.py [--seconds 6] [--pairs 6]

CPU time (the median of the utterances, the best of three calls) of each and of mir_eval.separation.bss_eval_sources
by turns in one run, on synthesised voices at 8 kHz; then for references that make the correlations (near) singular.
"""

import argparse
import random
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import mir_eval
import numpy as np
import scipy.signal
import soxr

from utils.data import speech
from utils.evaluation.metrics.bss_eval import bss_eval, sdr

RATE = 8000


def voices(seconds: float, pairs: int) -> np.ndarray:
    draw, length = random.Random(0), round(seconds * RATE)
    speakers = speech.make_speakers(8, seed=0)
    sources = []
    for k in range(2 * pairs):
        parts = [np.zeros(0)]
        while sum(map(len, parts)) < length:
            parts.append(speech.synthesise(speech.make_sentence(draw), speakers[k % 8], RATE))
        sources.append(np.concatenate(parts)[:length])
    return np.reshape(sources, (pairs, 2, length)).astype(np.float64)


def mixed(references: np.ndarray) -> np.ndarray:
    """What a separator may give: other speaker at -15 dB, noise at -25 dB, a short filter."""
    noise = np.random.default_rng(0).normal(size=references.shape) * references.std(
        axis=-1, keepdims=True
    )
    return scipy.signal.lfilter([0.9, 0.3], 1, references) + 0.18 * references[::-1] + 0.056 * noise


def hard_cases(sources: np.ndarray) -> dict:
    """Pairs of references, in the order of how singular their correlations are."""
    length = sources.shape[-1]
    faded = sources * scipy.signal.windows.tukey(length, 0.1)
    faded[:, : length // 10] = faded[:, -length // 10 :] = 0
    tones = np.sin(2 * np.pi * np.array([[440.0], [1000.0]]) * np.arange(length) / RATE)
    sos = scipy.signal.butter(8, 0.1, output="sos")
    return {
        "int16": np.round(sources * 32767),
        "zero-padded": np.pad(
            sources[:, length // 4 : -length // 4], ((0, 0), (length // 4, length // 4))
        ),
        "upsampled x2": scipy.signal.resample_poly(sources[:, : length // 2], 2, 1, axis=-1),
        "upsampled x6": scipy.signal.resample_poly(sources[:, : length // 6], 6, 1, axis=-1),
        "low-passed at .1 Nyquist": scipy.signal.sosfilt(sos, sources),
        "two pure tones": tones,
        "upsampled x2, silent ends": np.stack([soxr.resample(x, 1, 2)[:length] for x in faded]),
        "low-passed, float32, silent ends": scipy.signal.sosfiltfilt(sos, faded)
        .astype(np.float32)
        .astype(np.float64),
        "two tones, Hann window": tones * scipy.signal.windows.hann(length),
    }


def timed(function, *args, **options):
    times = []
    for _ in range(3):
        start = time.process_time()
        result = function(*args, **options)
        times.append(time.process_time() - start)
    return min(times), np.array(result)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of an utterance")
    parser.add_argument("--pairs", type=int, default=6, help="utterances")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # mir_eval deprecates what is compared here
    theirs = mir_eval.separation.bss_eval_sources
    rows = {
        "SDR": lambda e, r: timed(sdr, e, r),
        "SDR, order": lambda e, r: timed(sdr, e, r, permute=True),
        "SDR, SIR, SAR": lambda e, r: timed(bss_eval, e, r, permute=False),
        "SDR, SIR, SAR, order": lambda e, r: timed(bss_eval, e, r),
        "mir_eval": lambda e, r: timed(theirs, r, e, compute_permutation=False),
        "mir_eval, order": lambda e, r: timed(theirs, r, e, compute_permutation=True),
    }
    pairs = voices(args.seconds, args.pairs)
    for row in rows.values():
        row(mixed(pairs[0]), pairs[0])
    runs = [{name: row(mixed(pair), pair) for name, row in rows.items()} for pair in pairs]
    cost = {name: 1e3 * np.median([run[name][0] for run in runs]) for name in rows}
    print(f"{'':34}{'ms':>8}{'ratio':>8}{'largest difference, dB':>25}")
    for name in list(rows)[:4]:
        rival = "mir_eval, order" if "order" in name else "mir_eval"
        differences = [
            np.abs(run[name][1].reshape(-1, 2) - run[rival][1][: run[name][1].size // 2])
            for run in runs
        ]
        print(
            f"{name:34}{cost[name]:8.2f}{cost[rival] / cost[name]:8.1f}{np.max(differences):25.1e}"
        )
    print(
        "\nmir_eval takes "
        + " and ".join(f"{cost[name]:.0f} ms" for name in list(rows)[4:])
        + " (order)\n"
    )
    print(f"{'SDR':34}{'ms':>8}{'ratio':>8}{'largest difference, dB':>25}")
    for name, references in hard_cases(pairs[0]).items():
        (ours, a), (rival, b) = (
            rows[k](mixed(references), references) for k in ("SDR", "mir_eval")
        )
        print(f"{name:34}{1e3 * ours:8.2f}{rival / ours:8.1f}{np.abs(a - b[0]).max():25.1e}")


if __name__ == "__main__":
    main()
