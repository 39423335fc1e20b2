"""Suites of metrics: what evaluation writes about an utterance and a set, and how the report shows it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from utils.metrics.si_sdr import LIMIT, inverted, match, si_sdr, snr


@dataclass(frozen=True)
class Metric:
    """One more column of the tables."""

    key: str
    """Of final_metrics.json: a number, or a dict with mean, median and standard_error."""
    label: str
    unit: str = "dB"
    """dB, % (the number is a share) or nothing."""
    digits: int = 2


@dataclass
class Scored:
    """What a suite says about one utterance."""

    row: dict
    """Of all_metrics.csv."""
    estimates: np.ndarray
    """In the order of the sources."""
    files: dict[str, str] = field(default_factory=dict)
    """Texts to be kept beside the table, by name."""


@dataclass(frozen=True)
class Suite:
    name: str
    score: Callable[..., Scored]
    """(mixture, sources, estimates, sample_rate, extra, oracle) to `Scored`; shapes as in `utils.scoring`."""
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


def _speech(mixture, sources, estimates, sample_rate, extra=(), oracle=None) -> Scored:
    """Scores in dB of estimates (source, time); means over the sources that have a score, then one at a time."""
    order = match(estimates, sources)
    estimates, mixture = estimates[order], mixture if mixture.ndim == 1 else mixture[0]
    by_source = {
        "input_si_sdr": si_sdr(mixture[None], sources) if np.ptp(mixture) > 0 else np.full(len(sources), np.nan),
        "si_sdr": si_sdr(estimates, sources),
        "snr": snr(estimates, sources),
    }
    by_source["si_sdri"] = by_source["si_sdr"] - by_source["input_si_sdr"]
    if oracle is not None:
        by_source["oracle_si_sdr"] = si_sdr(oracle, sources)
        by_source["oracle_si_sdri"] = by_source["oracle_si_sdr"] - by_source["input_si_sdr"]
    scored = ~np.isnan(by_source["si_sdr"])
    row = {name: mean(values) for name, values in by_source.items()}
    row |= {
        "inverted": int(inverted(estimates, sources)[scored].sum()),
        "sources": len(sources),
        "silent_sources": int((~scored).sum()),
        "silent_mixture": int(np.ptp(mixture) == 0),
        "failed_estimates": int((by_source["si_sdr"] <= -LIMIT).sum()),
    }
    row |= {f"{name}_{k}": float(x) for name, values in by_source.items() for k, x in enumerate(values, 1)}
    return Scored(row | {"permutation": " ".join(str(k + 1) for k in order)}, estimates)


def mean(values: np.ndarray) -> float:
    """Of what is not nan; nan of nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def statistics(scores: pd.DataFrame, names) -> dict:
    """{mean, median, standard_error} of the columns that are there."""
    present = {name: scores[name].dropna() for name in names if name in scores}
    return {n: {"mean": v.mean(), "median": v.median(), "standard_error": v.sem()} for n, v in present.items()}


def _speech_summary(scores: pd.DataFrame) -> dict:
    result = statistics(scores, ("si_sdri", "si_sdr", "input_si_sdr", "snr", "oracle_si_sdri", "oracle_si_sdr"))
    scored = (scores.sources - scores.silent_sources).sum()
    result["share_below_0_db"] = float((scores.si_sdr.dropna() < 0).mean())
    result["inverted_share"] = float(scores.inverted.sum() / scored) if scored else float("nan")
    return result | {name: int(scores[name].sum()) for name in ("silent_sources", "silent_mixture", "failed_estimates")}


SUITES = {
    "speech": Suite(
        name="speech",
        score=_speech,
        summary=_speech_summary,
        primary="si_sdri",
        label="SI-SDRi (dB)",
        input="input_si_sdr",
        failure="si_sdr",
        columns=(
            Metric("si_sdr", "SI-SDR (dB)"),
            Metric("inverted_share", "inverted", "%", 1),
            Metric("oracle_si_sdri", "oracle SI-SDRi"),
        ),
        legend="SI-SDRi: improvement of the SI-SDR over the unprocessed mixture, mean over the sources of a mixture. "
        "`inverted`: share of estimates of the wrong sign. `oracle SI-SDRi`: of the system's own front end with oracle "
        "masks.",
    )
}
