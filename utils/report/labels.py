"""The words of the report: what the metrics of each suite are called, in which unit and with how many digits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """A column of the tables."""

    key: str
    """Of final_metrics.json: a number, or a dict with mean, median and standard_error."""
    text: str
    unit: str = "dB"
    """dB, % (the number is a share) or nothing."""
    digits: int = 2
    statistic: str | None = None
    """mean or median, where it is not that of the suite."""


@dataclass(frozen=True)
class SuiteLabels:
    """The words for one suite of metrics."""

    primary: str
    """Of the score that ranks systems."""
    failure: str
    """Of the score whose share below 0 dB counts as failures."""
    input: str
    """Of the score of the unprocessed mixture, an axis of a figure."""
    columns: tuple[Label, ...]
    """Of the tables, after the primary score, its other statistic and the share of failures."""
    legend: str


# Speakers of equal rank.
SPEECH = SuiteLabels(
    primary="SI-SDRi (dB)",
    failure="SI-SDR",
    input="si_sdr (dB)",
    # Of the matched estimates.
    columns=(
        Label("si_sdr", "SI-SDR (dB)"),
        Label("sdr", "SDR (dB)"),
        Label("sir", "SIR (dB)"),
        Label("sar", "SAR (dB)"),
        Label("stoi", "STOI", "", 3),
        Label("estoi", "ESTOI", "", 3),
        Label("pesq", "PESQ", ""),
        Label("inverted_share", "inverted", "%", 1),
        Label("oracle_si_sdri", "oracle SI-SDRi"),
        Label("silence_share", "code of silence", "%", 0),
        Label("masks_alone_si_sdr", "masks alone (dB)", digits=1),
    ),
    legend="SI-SDRi: improvement of the SI-SDR over the unprocessed mixture, mean over the sources of a mixture. "
    "`inverted`: share of estimates of the wrong sign. `oracle SI-SDRi`: of the system's own front end with oracle "
    "masks; where silence has over 10 % of the energy of its code, or its masks alone, without any mixture, give the "
    "sources back, the front end hardly masks, and its oracle says nothing. SDR, SIR, SAR: BSS Eval v3.",
)

# One to four sounds of any kind.
FUSS = SuiteLabels(
    primary="MSi (dB)",
    failure="MSi",
    input="si_snr (dB)",
    columns=(
        Label("msi_all", "MSi, none excluded"),
        # By the number of active references.
        Label("msi_2", "2 sources"),
        Label("msi_3", "3 sources"),
        Label("msi_4", "4 sources"),
        Label("si_snr_1s", "1S (dB)"),
        # Whether as many estimates are active as references.
        Label("under", "under", "%", 1),
        Label("equal", "equal", "%", 1),
        Label("over", "over", "%", 1),
        # What masks leave behind.
        Label("hole_rate_30", "holes", "%", 1),
        Label("leak_rate", "leaks", "%", 1),
    ),
    legend="MSi: improvement of the SI-SNR over the mixture, mean over the pairs of an active reference and an "
    "active estimate in mixtures of 2 to 4 sources, all pairs weighted alike; `none excluded`: over all active "
    "references. 1S: SI-SNR of single sources. `under`, `equal`, `over`: share of mixtures with fewer, as many, "
    "more active estimates than references. Holes: share of the bins of a source in which the estimate is 30 dB "
    "weaker; leaks: share of its other bins in which the estimate is heard; of pairs. Confidence intervals, median "
    "and `< 0 dB` are over mixtures.",
)

# Stem 1 is the vocals, stem 2 the accompaniment.
MUSIC = SuiteLabels(
    primary="vocals SDR (dB)",
    failure="vocals SDR",
    input="sdr_1 (dB)",
    columns=(
        Label("isr_1", "vocals ISR"),
        Label("sir_1", "vocals SIR"),
        Label("sar_1", "vocals SAR"),
        Label("sdr_2", "accomp. SDR"),
        # Not medians, as their names say.
        Label("sdr_mean_1", "vocals mean SDR", statistic="mean"),
        Label("usdr_1", "vocals uSDR", statistic="mean"),
        Label("usdr_2", "accomp. uSDR", statistic="mean"),
        # Of clips in mono, as MIR-1K is scored.
        Label("gnsdr_1", "GNSDR"),
        Label("gsir_1", "GSIR"),
        Label("gsar_1", "GSAR"),
        Label("nan_share", "NaN", "%", 1),
    ),
    legend="BSS Eval v4: median over tracks of the median over frames of 1 s. Mean SDR: mean over tracks of the "
    "mean over frames; uSDR: of the whole track, mean over tracks in which all stems are heard. GNSDR, GSIR, GSAR: "
    "BSS Eval v3 of the vocals of whole clips, mean weighted by length. NaN: share of frames in which a reference "
    "or an estimate is silent.",
)

# By the name of the suite (utils/evaluation/suites.py).
LABELS = {
    "speech": SPEECH,
    "fuss": FUSS,
    "music": MUSIC,
}
