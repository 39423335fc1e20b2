"""Suites of metrics: what evaluation writes about an utterance and a set, and how the report shows it."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from utils.evaluation.metrics import bss_eval_v4, fuss
from utils.evaluation.metrics.bss_eval import bss_eval, sdr
from utils.evaluation.metrics.perceptual import pesq, stoi
from utils.evaluation.metrics.si_sdr import LIMIT, inverted, match, si_sdr, snr
from utils.evaluation.metrics.spectral_holes import NAMES as HOLES
from utils.evaluation.metrics.spectral_holes import spectral_holes


@dataclass(frozen=True)
class Metric:
    """One more column of the tables."""

    key: str
    """Of final_metrics.json: a number, or a dict with mean, median and standard_error."""
    label: str
    unit: str = "dB"
    """dB, % (the number is a share) or nothing."""
    digits: int = 2
    statistic: str | None = None
    """mean or median, where it is not that of the suite."""


@dataclass
class Scored:
    """What a suite says about one utterance."""

    row: dict
    """Of all_metrics.csv."""
    estimates: np.ndarray
    """(source, channel, time), in the order of the sources."""
    files: dict[str, str] = field(default_factory=dict)
    """JSON texts to be kept beside the table, by the name of their folder."""


@dataclass(frozen=True)
class Suite:
    name: str
    score: Callable[..., Scored]
    """(mixture, sources, estimates, sample_rate, extra, oracle) to `Scored`; shapes as in scoring.py.

    A ValueError says that the suite cannot score such signals."""
    summary: Callable[[pd.DataFrame], dict]
    """The rows of a set to what final_metrics.json says about it."""
    primary: str
    """Column of the rows and key of the summary ({mean, median, standard_error})."""
    label: str
    columns: tuple[Metric, ...]
    """Of the tables, after the primary score, its median and the share of failures."""
    legend: str
    statistic: str = "mean"
    """mean or median over the rows: ranks systems."""
    weight: str | None = None
    """Column with the weights of the rows in the mean; None: equal."""
    input: str | None = None
    """Column with the score of the unprocessed mixture."""
    failure: str = ""
    """Column whose share below 0 dB counts as failures."""
    extra: tuple[str, ...] = ()
    """Metrics computed on demand (`--extra`), since they take long."""


# ---- speech: SI-SDR, in the best order of the estimates


def _only_channel(signals: np.ndarray) -> np.ndarray:
    """(source, 1, time) to (source, time)."""
    if signals.shape[1] != 1:
        raise ValueError(
            f"it scores one channel, but the sources have {signals.shape[1]}: use --suite music, or "
            "give sources of one channel"
        )
    return signals[:, 0]


def _speech(mixture, sources, estimates, sample_rate, extra=(), oracle=None) -> Scored:
    """Scores in dB; means over the sources that have a score, then one at a time."""
    sources = _only_channel(sources)
    estimates = _only_channel(estimates)
    mixture = mixture[0]
    order = match(estimates, sources)
    estimates = estimates[order]
    silent_mixture = np.ptp(mixture) == 0
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
    if oracle is not None:
        by_source["oracle_si_sdr"] = si_sdr(oracle[:, 0], sources)
        by_source["oracle_si_sdri"] = by_source["oracle_si_sdr"] - input_si_sdr
    by_source |= _speech_extra(mixture, sources, estimates, sample_rate, extra)
    scored = ~np.isnan(by_source["si_sdr"])
    row: dict[str, Any] = {name: mean(values) for name, values in by_source.items()}
    row["inverted"] = int(inverted(estimates, sources)[scored].sum())
    row["sources"] = len(sources)
    row["silent_sources"] = int((~scored).sum())
    row["silent_mixture"] = int(silent_mixture)
    row["failed_estimates"] = int((by_source["si_sdr"] <= -LIMIT).sum())
    row |= numbered(by_source)
    row["permutation"] = " ".join(str(k + 1) for k in order)
    return Scored(row, estimates[:, None])


def numbered(by_source: dict[str, np.ndarray]) -> dict[str, float]:
    """Scores of the sources as columns: NAME_1, NAME_2, ..."""
    columns = {}
    for name, values in by_source.items():
        for k, value in enumerate(values, 1):
            columns[f"{name}_{k}"] = float(value)
    return columns


def _speech_extra(mixture, sources, estimates, sample_rate, extra) -> dict[str, np.ndarray]:
    """Metrics on demand, of signals (source, time) in the order of the sources."""
    scores = {}
    if "bss_eval" in extra:
        scores["sdr"], scores["sir"], scores["sar"], _ = bss_eval(estimates, sources, permute=False)
    elif "sdr" in extra:
        scores["sdr"] = sdr(estimates, sources)
    if "sdr" in scores:
        unprocessed = np.broadcast_to(mixture, sources.shape)
        scores["sdri"] = scores["sdr"] - sdr(unprocessed, sources)
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


def statistics(scores: pd.DataFrame, names: Iterable[str]) -> dict:
    """{mean, median, standard_error} of the columns that are there."""
    result = {}
    for name in names:
        if name in scores:
            values = scores[name].dropna()
            result[name] = {
                "mean": values.mean(),
                "median": values.median(),
                "standard_error": values.sem(),
            }
    return result


def _speech_summary(scores: pd.DataFrame) -> dict:
    names = ["si_sdri", "si_sdr", "input_si_sdr", "snr", "oracle_si_sdri", "oracle_si_sdr"]
    names += ["sdr", "sdri", "sir", "sar", "stoi", "estoi", "pesq"]
    result = statistics(scores, names)
    # Silent sources have no score.
    scored = (scores.sources - scores.silent_sources).sum()
    result["share_below_0_db"] = float((scores.si_sdr.dropna() < 0).mean())
    result["inverted_share"] = float(scores.inverted.sum() / scored) if scored else float("nan")
    for name in ("silent_sources", "silent_mixture", "failed_estimates"):
        result[name] = int(scores[name].sum())
    return result


# ---- universal sounds: the official score of FUSS


def _fuss(mixture, sources, estimates, sample_rate, extra=(), oracle=None) -> Scored:
    """Silent slots are all zeros; the mixture that counts is the sum of the slots, as officially."""
    sources = _only_channel(sources)
    estimates = _only_channel(estimates)
    clip = fuss.clip_score(estimates, sources, sources.sum(axis=0))
    # The order may name slots of silence that were added to the estimates.
    n_added = max(len(clip.order) - len(estimates), 0)
    added = np.zeros((n_added, estimates.shape[-1]), estimates.dtype)
    ordered = np.concatenate([estimates, added])[clip.order][: len(sources)]
    rates = []
    for estimate, source, counts in zip(ordered, sources, clip.pairs, strict=False):
        if counts:
            rates.append(spectral_holes(estimate, source))
    row = fuss.row(clip)
    row |= pd.DataFrame(rates, columns=HOLES).mean().to_dict()
    row["permutation"] = " ".join(str(k + 1) for k in clip.order)
    return Scored(row, ordered[:, None])


def _fuss_summary(scores: pd.DataFrame) -> dict:
    result = {**fuss.summary(scores), **statistics(scores, HOLES)}
    # Over mixtures, while the official mean is over pairs of sources.
    improvement = scores.msi[scores.pairs > 0]
    result["msi"]["median"] = improvement.median()
    result["msi"]["standard_error"] = improvement.sem()
    result["share_below_0_db"] = float((improvement < 0).mean())
    result["silent_mixture"] = result["skipped"]
    return result


# ---- music: BSS Eval v4 of stems that have names


def _music(mixture, sources, estimates, sample_rate, extra=(), oracle=None) -> Scored:
    """The first stem is the target, usually the vocals."""
    mixture = mixture[: sources.shape[1]]
    unprocessed = np.broadcast_to(mixture, sources.shape)
    frames = bss_eval_v4.frame_scores(estimates, sources, sample_rate)
    frames_input = bss_eval_v4.frame_sdr(unprocessed, sources, sample_rate)
    by_source = bss_eval_v4.track_medians(frames)
    share = by_source.pop("nan_share")
    # Of a song without one of its stems uSDR is -100 dB for this and up to 100 for the other: nothing for a mean.
    complete = sources.any(axis=(1, 2)).all()
    usdr = np.where(complete, bss_eval_v4.usdr(estimates, sources), np.nan)
    by_source |= {"usdr": usdr, "sdr_mean": _row_means(frames["sdr"])}
    by_source["input_sdr"] = bss_eval_v4.track_medians({"sdr": frames_input})["sdr"]
    if "gnsdr" in extra:
        by_source |= _karaoke(mixture, sources, estimates)
    row = {"nan_share": float(share[0])} | numbered(by_source)
    names = [f"source {k + 1}" for k in range(len(sources))]
    if len(sources) == 2:
        names = ["vocals", "accompaniment"]
    museval = json.dumps(bss_eval_v4.museval_json(frames, names))
    return Scored(row, estimates, {"museval/test": museval})


def _row_means(frames: np.ndarray) -> np.ndarray:
    return np.array([mean(values) for values in frames])


def _karaoke(mixture, sources, estimates) -> dict[str, np.ndarray]:
    """BSS Eval v3 of mono clips; NSDR is the improvement of the SDR over the mixture's."""
    if sources.shape[1] != 1:
        raise ValueError("GNSDR, GSIR and GSAR are defined for mono")
    sources = sources[:, 0]
    ratios = bss_eval(estimates[:, 0], sources, permute=False)
    scores = dict(zip(("v3_sdr", "v3_sir", "v3_sar"), ratios[:3], strict=True))
    unprocessed = np.broadcast_to(mixture[0], sources.shape)
    scores["v3_nsdr"] = scores["v3_sdr"] - sdr(unprocessed, sources)
    return scores


def _music_summary(scores: pd.DataFrame) -> dict:
    kinds = {"sdr", "isr", "sir", "sar", "usdr", "sdr_mean", "input_sdr"}
    kinds |= {"v3_sdr", "v3_sir", "v3_sar"}
    # Columns are named KIND_k, for source k.
    result = statistics(scores, [name for name in scores if name.rpartition("_")[0] in kinds])
    # GNSDR, GSIR, GSAR: means over the clips, weighted by their length.
    for k in (1, 2):
        for name in ("nsdr", "sir", "sar"):
            column = f"v3_{name}_{k}"
            if column in scores:
                known = scores[scores[column].notna()]
                weighted = (known[column] * known.length).sum()
                result[f"g{name}_{k}"] = float(weighted / known.length.sum())
    result["nan_share"] = float(scores.nan_share.mean())
    result["share_below_0_db"] = float((scores.sdr_1.dropna() < 0).mean())
    return result


SUITES = {
    "speech": Suite(
        name="speech",
        score=_speech,
        summary=_speech_summary,
        primary="si_sdri",
        label="SI-SDRi (dB)",
        input="input_si_sdr",
        failure="si_sdr",
        extra=("sdr", "bss_eval", "stoi", "estoi", "pesq"),
        columns=(
            Metric("si_sdr", "SI-SDR (dB)"),
            Metric("sdr", "SDR (dB)"),
            Metric("sir", "SIR (dB)"),
            Metric("sar", "SAR (dB)"),
            Metric("stoi", "STOI", "", 3),
            Metric("estoi", "ESTOI", "", 3),
            Metric("pesq", "PESQ", ""),
            Metric("inverted_share", "inverted", "%", 1),
            Metric("oracle_si_sdri", "oracle SI-SDRi"),
        ),
        legend="SI-SDRi: improvement of the SI-SDR over the unprocessed mixture, mean over the sources of a mixture. "
        "`inverted`: share of estimates of the wrong sign. `oracle SI-SDRi`: of the system's own front end with oracle "
        "masks. SDR, SIR, SAR: BSS Eval v3.",
    ),
    "fuss": Suite(
        name="fuss",
        score=_fuss,
        summary=_fuss_summary,
        primary="msi",
        label="MSi (dB)",
        weight="pairs",
        input="input_si_snr",
        failure="msi",
        columns=(
            Metric("msi_all", "MSi, none excluded"),
            *(Metric(f"msi_{count}", f"{count} sources") for count in (2, 3, 4)),
            Metric("si_snr_1s", "1S (dB)"),
            *(Metric(name, name, "%", 1) for name in ("under", "equal", "over")),
            Metric("hole_rate_30", "holes", "%", 1),
            Metric("leak_rate", "leaks", "%", 1),
        ),
        legend="MSi: improvement of the SI-SNR over the mixture, mean over the pairs of an active reference and an "
        "active estimate in mixtures of 2 to 4 sources, all pairs weighted alike; `none excluded`: over all active "
        "references. 1S: SI-SNR of single sources. `under`, `equal`, `over`: share of mixtures with fewer, as many, "
        "more active estimates than references. Holes: share of the bins of a source in which the estimate is 30 dB "
        "weaker; leaks: share of its other bins in which the estimate is heard; of pairs. Confidence intervals, median "
        "and `< 0 dB` are over mixtures.",
    ),
    "music": Suite(
        name="music",
        score=_music,
        summary=_music_summary,
        primary="sdr_1",
        label="vocals SDR (dB)",
        statistic="median",
        input="input_sdr_1",
        failure="sdr_1",
        extra=("gnsdr",),
        columns=(
            *(Metric(f"{name}_1", f"vocals {name.upper()}") for name in ("isr", "sir", "sar")),
            Metric("sdr_2", "accomp. SDR"),
            Metric("sdr_mean_1", "vocals mean SDR", statistic="mean"),
            Metric("usdr_1", "vocals uSDR", statistic="mean"),
            Metric("usdr_2", "accomp. uSDR", statistic="mean"),
            *(Metric(f"g{name}_1", f"G{name.upper()}") for name in ("nsdr", "sir", "sar")),
            Metric("nan_share", "NaN", "%", 1),
        ),
        legend="BSS Eval v4: median over tracks of the median over frames of 1 s. Mean SDR: mean over tracks of the "
        "mean over frames; uSDR: of the whole track, mean over tracks in which all stems are heard. GNSDR, GSIR, GSAR: "
        "BSS Eval v3 of the vocals of whole clips, mean weighted by length. NaN: share of frames in which a reference "
        "or an estimate is silent.",
    ),
}
