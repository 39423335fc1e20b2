"""Suites of metrics: what evaluation computes of an utterance, and how it sums up a set."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from utils.evaluation.metrics import bss_eval_v4, fuss
from utils.evaluation.metrics.bss_eval import bss_eval, sdr
from utils.evaluation.metrics.perceptual import pesq, stoi
from utils.evaluation.metrics.si_sdr import LIMIT, inverted, match, si_sdr, snr
from utils.evaluation.metrics.spectral_holes import NAMES as HOLES
from utils.evaluation.metrics.spectral_holes import spectral_holes
from utils.evaluation.scores import Measure, Score, Scores, of_mixture, of_sources
from utils.evaluation.signals import Samples, Signals, blocks, broadcast


@dataclass
class Scored:
    """What a suite says about one utterance."""

    scores: list[Score]
    estimates: Samples
    """(source, channel, time), in the order of the sources."""
    files: dict[str, str] = field(default_factory=dict)
    """JSON texts to be kept beside the table, by the name of their folder."""


@dataclass(frozen=True)
class Suite:
    """Metrics for one kind of sound. What the report calls them is in utils/report/labels.py."""

    name: str
    score: Callable[..., Scored]
    """(mixture, sources, estimates, sample_rate, extra, oracle) to `Scored`; shapes as in scoring.py.

    A ValueError says that the suite cannot score such signals."""
    summary: Callable[[Scores], dict]
    """The scores of a set to what final_metrics.json says about it."""
    primary: Measure
    """Ranks systems; in the summary as {mean, median, standard_error}."""
    statistic: str = "mean"
    """mean or median over the mixtures: of the primary score."""
    weight: Measure | None = None
    """Weights of the mixtures in the mean; None: equal."""
    input: Measure | None = None
    """The score of the unprocessed mixture."""


# ---- speech: SI-SDR, in the best order of the estimates


def _only_channel(signals: Samples) -> Samples:
    """(source, 1, time) to (source, time)."""
    if signals.shape[1] != 1:
        raise ValueError(
            f"it scores one channel, but the sources have {signals.shape[1]}: use --suite music, or "
            "give sources of one channel"
        )
    return signals[:, 0]


def _speech(
    mixture: Samples,
    sources: Samples,
    estimates: Samples,
    sample_rate: int,
    extra: tuple[str, ...] = (),
    oracle: Samples | None = None,
) -> Scored:
    """Scores in dB; means over the sources that have a score, then one at a time."""
    sources = _only_channel(sources)
    estimates = _only_channel(estimates)
    mixture = mixture[0]
    # Speakers have no names: estimates are compared in the order with the best mean.
    order = match(estimates, sources)
    estimates = estimates[order]
    # Nothing can be improved over silence.
    silent_mixture = _is_constant(mixture)
    input_si_sdr = np.full(len(sources), np.nan)
    if not silent_mixture:
        input_si_sdr = si_sdr(mixture[None], sources)
    by_source = {
        "input_si_sdr": input_si_sdr,
        "si_sdr": si_sdr(estimates, sources),
        "snr": snr(estimates, sources),
    }
    # Improvements over the unprocessed mixture.
    by_source["si_sdri"] = by_source["si_sdr"] - input_si_sdr
    # How well the system's own front end could do.
    if oracle is not None:
        by_source["oracle_si_sdr"] = si_sdr(oracle[:, 0], sources)
        by_source["oracle_si_sdri"] = by_source["oracle_si_sdr"] - input_si_sdr
    by_source |= _speech_extra(mixture, sources, estimates, sample_rate, extra)
    # A silent source has no score, and its estimate no sign.
    scored = ~np.isnan(by_source["si_sdr"])
    failed = by_source["si_sdr"] <= -LIMIT
    wrong_sign = inverted(estimates, sources) & scored
    of_the_mixture = {metric: mean(values) for metric, values in by_source.items()}
    of_the_mixture["inverted"] = int(wrong_sign.sum())
    of_the_mixture["sources"] = len(sources)
    of_the_mixture["silent_sources"] = int((~scored).sum())
    of_the_mixture["silent_mixture"] = int(silent_mixture)
    of_the_mixture["failed_estimates"] = int(failed.sum())
    # Which output of the system belongs to a source, from 1.
    by_source["permutation"] = order + 1
    scores = of_mixture(of_the_mixture) + of_sources(by_source)
    return Scored(scores, estimates[:, None])


def _is_constant(signal: Samples) -> bool:
    """Whether all samples of (time,) are the same."""
    smallest = []
    largest = []
    for block in blocks(signal.shape[-1]):
        samples = signal[..., block]
        smallest.append(samples.min())
        largest.append(samples.max())
    return min(smallest) == max(largest)


def _speech_extra(
    mixture: Samples,
    sources: Samples,
    estimates: Samples,
    sample_rate: int,
    extra: tuple[str, ...],
) -> dict[str, np.ndarray]:
    """Metrics on demand, of signals (source, time) in the order of the sources."""
    scores = {}
    # SIR and SAR cost more than SDR alone.
    if "bss_eval" in extra:
        scores["sdr"], scores["sir"], scores["sar"], _ = bss_eval(estimates, sources, permute=False)
    elif "sdr" in extra:
        scores["sdr"] = sdr(estimates, sources)
    # Like SI-SDR, with its improvement over the unprocessed mixture.
    if "sdr" in scores:
        scores["sdri"] = scores["sdr"] - sdr(mixture[None], sources)
    for name in ("stoi", "estoi"):
        if name in extra:
            scores[name] = stoi(estimates, sources, sample_rate, extended=name == "estoi")
    if "pesq" in extra:
        scores["pesq"] = pesq(estimates, sources, sample_rate)
    return scores


def mean(values: np.ndarray) -> float:
    """Of what is not nan; nan of nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def statistics(scores: Scores, measures: Iterable[Measure]) -> dict:
    """{mean, median, standard_error} of the measures that are there."""
    result = {}
    for measure in measures:
        if measure in scores:
            values = scores[measure].dropna()
            result[measure.key] = {
                "mean": values.mean(),
                "median": values.median(),
                "standard_error": values.sem(),
            }
    return result


# Of which final_metrics.json has the statistics, where they were computed.
SPEECH_METRICS = (
    "si_sdri",
    "si_sdr",
    "input_si_sdr",
    "snr",
    "oracle_si_sdri",
    "oracle_si_sdr",
    # What a learnt front end says about its masks, see local_models/two_step/instruments.py.
    "silence_share",
    "masks_alone_si_sdr",
    "constant_mask_latent_si_sdr",
    "latent_cosine",
    "heard_share",
    "sdr",
    "sdri",
    "sir",
    "sar",
    "stoi",
    "estoi",
    "pesq",
)


def _speech_summary(scores: Scores) -> dict:
    """Statistics over mixtures of the means over their sources."""
    measures = [Measure(metric) for metric in SPEECH_METRICS]
    result = statistics(scores, measures)
    # Mixtures that the system has not separated.
    si_sdrs = scores.mixture("si_sdr").dropna()
    is_negative = si_sdrs < 0
    result["share_below_0_db"] = float(is_negative.mean())
    # Of the sources that have a score: silent ones have none, and no sign.
    n_sources = scores.mixture("sources").sum()
    n_silent = scores.mixture("silent_sources").sum()
    n_inverted = scores.mixture("inverted").sum()
    n_scored = n_sources - n_silent
    result["inverted_share"] = float(n_inverted / n_scored) if n_scored else np.nan
    # What makes a mean hard to read is counted.
    for metric in ("silent_sources", "silent_mixture", "failed_estimates"):
        count = scores.mixture(metric).sum()
        result[metric] = int(count)
    return result


# ---- universal sounds: the official score of FUSS


def _fuss(
    mixture: Samples,
    sources: Samples,
    estimates: Samples,
    sample_rate: int,
    extra: tuple[str, ...] = (),
    oracle: Samples | None = None,
) -> Scored:
    """Silent slots are all zeros; the mixture that counts is the sum of the slots, as officially."""
    sources = _only_channel(sources)
    estimates = _only_channel(estimates)
    clip = fuss.clip_score(estimates, sources, _sum_of(sources))
    # The order may name slots of silence that were added to the estimates.
    n_slots = max(len(clip.order), len(estimates))
    slots = fuss.with_silence(estimates, n_slots)
    ordered = slots[clip.order][: len(sources)]
    # Holes of the pairs that the official score counts.
    rates = []
    for k in np.flatnonzero(clip.pairs[: len(sources)]):
        rates.append(spectral_holes(ordered[k], sources[k]))
    mean_rates = pd.DataFrame(rates, columns=HOLES).mean()
    of_the_mixture = fuss.row(clip)
    of_the_mixture |= mean_rates.to_dict()
    # Which output of the system belongs to a slot, from 1.
    order = of_sources({"permutation": clip.order + 1})
    return Scored(of_mixture(of_the_mixture) + order, ordered[:, None])


def _sum_of(signals: Samples) -> Signals:
    """The sum (time,) of signals (source, time), as it is read."""

    def read(number: int, start: int, stop: int) -> np.ndarray:
        return signals[..., start:stop].sum(axis=0)

    return Signals(np.array(0), signals.shape[-1], read)


def _fuss_summary(scores: Scores) -> dict:
    """The official numbers, and spectral holes."""
    table = scores.of_mixtures()
    # Numbers of sources name parts of the set.
    for metric in ("n_references", "n_estimates"):
        table[metric] = table[metric].astype(int)
    result = fuss.summary(table)
    result |= statistics(scores, [Measure(metric) for metric in HOLES])
    # Over mixtures, while the official mean is over pairs of sources.
    improvement = table.msi[table.pairs > 0]
    result["msi"]["median"] = improvement.median()
    result["msi"]["standard_error"] = improvement.sem()
    is_worse = improvement < 0
    result["share_below_0_db"] = float(is_worse.mean())
    # Clips without an active reference enter nothing else.
    result["silent_mixture"] = result["skipped"]
    return result


# ---- music: BSS Eval v4 of stems that have names


def _music(
    mixture: Samples,
    sources: Samples,
    estimates: Samples,
    sample_rate: int,
    extra: tuple[str, ...] = (),
    oracle: Samples | None = None,
) -> Scored:
    """The first stem is the target, usually the vocals."""
    mixture = mixture[: sources.shape[1]]
    unprocessed = broadcast(mixture, sources.shape[:-1])
    # Of each second; the scores of a track are medians over them.
    frames = bss_eval_v4.frame_scores(estimates, sources, sample_rate)
    frames_input = bss_eval_v4.frame_sdr(unprocessed, sources, sample_rate)
    by_source = bss_eval_v4.track_medians(frames)
    share = by_source.pop("nan_share")
    # Of a song without one of its stems uSDR is -100 dB for this and up to 100 for the other: nothing for a mean.
    complete = _is_heard(sources).all()
    usdr = bss_eval_v4.usdr(estimates, sources)
    by_source["usdr"] = np.where(complete, usdr, np.nan)
    by_source["sdr_mean"] = _row_means(frames["sdr"])
    medians_input = bss_eval_v4.track_medians({"sdr": frames_input})
    by_source["input_sdr"] = medians_input["sdr"]
    if "gnsdr" in extra:
        by_source |= _karaoke(mixture, sources, estimates)
    # Frames without a score have none for any source.
    scores = of_mixture({"nan_share": float(share[0])})
    scores += of_sources(by_source)
    # museval's files name the stems.
    names = [f"source {k + 1}" for k in range(len(sources))]
    if len(sources) == 2:
        names = ["vocals", "accompaniment"]
    museval = json.dumps(bss_eval_v4.museval_json(frames, names))
    return Scored(scores, estimates, {"museval/test": museval})


def _is_heard(signals: Samples) -> np.ndarray:
    """Which signals (source, channel, time) are not all zeros: (source,)."""
    heard = np.zeros(len(signals), bool)
    for block in blocks(signals.shape[-1]):
        heard |= signals[..., block].any(axis=(1, 2))
    return heard


def _row_means(frames: np.ndarray) -> np.ndarray:
    """(source, frame) to (source,), without nan."""
    return np.array([mean(values) for values in frames])


def _karaoke(mixture: Samples, sources: Samples, estimates: Samples) -> dict[str, np.ndarray]:
    """BSS Eval v3 of mono clips; NSDR is the improvement of the SDR over the mixture's."""
    if sources.shape[1] != 1:
        raise ValueError("GNSDR, GSIR and GSAR are defined for mono")
    sources = sources[:, 0]
    v3_sdr, v3_sir, v3_sar, _ = bss_eval(estimates[:, 0], sources, permute=False)
    input_sdr = sdr(mixture[:1], sources)
    return {
        "v3_sdr": v3_sdr,
        "v3_sir": v3_sir,
        "v3_sar": v3_sar,
        "v3_nsdr": v3_sdr - input_sdr,
    }


# Of which final_metrics.json has the statistics for each stem, where they were computed.
MUSIC_METRICS = (
    "sdr",
    "isr",
    "sir",
    "sar",
    "usdr",
    "sdr_mean",
    "input_sdr",
    "v3_sdr",
    "v3_sir",
    "v3_sar",
)
# GNSDR, GSIR and GSAR of a set, and the metrics of clips that they are means of.
GLOBAL = {
    "gnsdr": "v3_nsdr",
    "gsir": "v3_sir",
    "gsar": "v3_sar",
}


def _music_summary(scores: Scores) -> dict:
    """Statistics over tracks for each stem."""
    measures = []
    for metric in MUSIC_METRICS:
        for source in scores.sources(metric):
            measures.append(Measure(metric, source))
    result = statistics(scores, measures)
    # Means over the clips, weighted by their length.
    lengths = scores.mixture("length")
    for source in (1, 2):
        for name, metric in GLOBAL.items():
            measure = Measure(metric, source)
            if measure not in scores:
                continue
            values = scores[measure].dropna()
            weights = lengths[values.index]
            weighted = (values * weights).sum()
            result[Measure(name, source).key] = float(weighted / weights.sum())
    result["nan_share"] = float(scores.mixture("nan_share").mean())
    # Tracks whose target is more error than sound.
    of_target = scores[Measure("sdr", 1)].dropna()
    is_negative = of_target < 0
    result["share_below_0_db"] = float(is_negative.mean())
    return result


SUITES = {
    "speech": Suite(
        name="speech",
        score=_speech,
        summary=_speech_summary,
        primary=Measure("si_sdri"),
        input=Measure("input_si_sdr"),
    ),
    "fuss": Suite(
        name="fuss",
        score=_fuss,
        summary=_fuss_summary,
        primary=Measure("msi"),
        weight=Measure("pairs"),
        input=Measure("input_si_snr"),
    ),
    "music": Suite(
        name="music",
        score=_music,
        summary=_music_summary,
        primary=Measure("sdr", 1),
        statistic="median",
        input=Measure("input_sdr", 1),
    ),
}
