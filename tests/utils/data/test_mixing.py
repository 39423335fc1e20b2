"""Active speech level against a naive P.56, and mixtures with the properties of MERL's script."""

import cmath
import math
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.signal import cheby2, freqs_zpk

from utils.data import audio, mixing
from utils.data.speech_level import active_speech_level
from utils.errors import UserError


def speechlike(seconds, rate, seed=0):
    """Noise bursts with pauses, an offset and low-frequency hum."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    bursts = np.clip(np.sin(2 * np.pi * 1.3 * time + rng.uniform(0, 6)), 0, None) ** 2
    return (
        0.1 * bursts * rng.standard_normal(len(time)) + 0.01 + 0.02 * np.sin(2 * np.pi * 50 * time)
    )


def naive_filter(numerator, denominator, signal):
    """Direct form, one sample at a time."""
    x, y, output = [0.0] * len(numerator), [0.0] * (len(denominator) - 1), []
    for sample in signal:
        x = [sample, *x[:-1]]
        value = sum(b * v for b, v in zip(numerator, x, strict=True)) - sum(
            a * v for a, v in zip(denominator[1:], y, strict=True)
        )
        y = [value, *y[:-1]]
        output.append(value)
    return output


def naive_highpass(signal, rate):
    """Analogue Chebyshev 2 high-pass of order 5, -50 dB, -0.25 dB at 1 rad/s, moved to 200 Hz bilinearly."""

    def excess(stop):
        return (
            20
            * math.log10(
                abs(freqs_zpk(*cheby2(5, 50, stop, "high", analog=True, output="zpk"), [1.0])[1][0])
            )
            + 0.25
        )

    zeros, poles, _ = cheby2(5, 50, brentq(excess, 0.1, 0.9), "high", analog=True, output="zpk")
    scale = math.tan(math.pi * 200 / rate)
    numerator, denominator = (
        np.poly([(1 + root * scale) / (1 - root * scale) for root in roots]).real
        for roots in (zeros, poles)
    )
    nyquist = sum(b * (-1) ** i for i, b in enumerate(numerator)) / sum(
        a * (-1) ** i for i, a in enumerate(denominator)
    )
    assert cmath.isfinite(nyquist)
    return naive_filter(numerator / nyquist, denominator, signal)


def naive_level(signal, rate):
    """ITU-T P.56, method B, from its text; thresholds are powers of two in squared amplitude."""
    signal = naive_highpass([*signal, *[0.0] * math.ceil(0.35 * rate)], rate)
    g = math.exp(-1 / (0.03 * rate))
    p = q = 0.0
    envelope = []
    for sample in signal:
        p = g * p + (1 - g) * abs(sample)
        q = g * q + (1 - g) * p
        envelope.append(q)
    top = math.floor(math.log2(max(envelope) ** 2)) + 1
    hangover = math.ceil(0.2 * rate) + 1
    energy = sum(sample**2 for sample in signal)
    previous = None
    for step in range(1, 21):
        threshold = 2.0 ** (top - step)
        active, since = 0, hangover
        for value in envelope:
            since = 0 if value**2 >= threshold else since + 1
            active += since < hangover
        level = 10 * math.log10(energy / active)
        margin = level - 10 * math.log10(threshold) - 15.9
        if previous and previous[1] < 0 <= margin:
            part = previous[1] / (previous[1] - margin)
            return previous[0] + part * (level - previous[0])
        previous = (level, margin)
    raise AssertionError("no level")


def decibels(signal, rate=8000):
    return 10 * math.log10(active_speech_level(signal, rate)[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_level_is_that_of_a_naive_p56(seed):
    signal = speechlike(1.5, 8000, seed)
    assert decibels(signal) == pytest.approx(naive_level(signal, 8000), abs=1e-4)


def test_level_follows_the_scale():
    signal = speechlike(2, 8000)
    for factor in (2.0, 0.37, 1e-3):
        # Thresholds lie on fixed powers of two: only they are exactly covariant.
        tolerance = 1e-9 if factor == 2.0 else 0.05
        assert decibels(factor * signal) - decibels(signal) == pytest.approx(
            20 * math.log10(factor), abs=tolerance
        )


@pytest.mark.parametrize("rate", [8000, 16000])
def test_level_of_a_tone_counts_only_the_time_it_sounds(rate):
    time = np.arange(20 * rate) / rate
    tone = math.sqrt(2) * np.sin(2 * np.pi * 1000 * time)
    assert decibels(tone, rate) == pytest.approx(0, abs=0.1)
    gated = tone * (time % 4 < 2)
    level, activity = active_speech_level(gated, rate)
    # The hangover and the decay of the envelope lengthen each burst of 2 s by some 0.3 s.
    assert activity == pytest.approx(2.3 / 4, abs=0.02)
    assert 10 * math.log10(level) == pytest.approx(-10 * math.log10(2.3 / 2), abs=0.15)


def test_level_ignores_hum_and_offset_and_at_16_khz_what_lies_above_the_band():
    time = np.arange(64000) / 16000
    tone = np.sin(2 * np.pi * 1000 * time)
    disturbed = tone + 0.5 + np.sin(2 * np.pi * 50 * time) + np.sin(2 * np.pi * 7900 * time)
    assert decibels(disturbed, 16000) == pytest.approx(decibels(tone, 16000), abs=0.1)


def test_one_sample_has_a_level_and_silence_has_none():
    assert np.isfinite(active_speech_level(np.ones(1), 8000)[0])
    with pytest.raises(UserError, match="silent"):
        active_speech_level(np.zeros(800), 8000)


def test_level_differences_in_the_mixture_are_the_gains():
    signals = [speechlike(2, 8000, seed) for seed in (0, 1, 2)]
    levels = [active_speech_level(signal, 8000)[0] for signal in signals]
    mixture, sources = mixing.mix_utterances(signals, levels, (2.0, -2.0, 0.5), "max")
    mixed = [decibels(source) for source in sources]
    assert mixed[0] - mixed[1] == pytest.approx(4.0, abs=0.05)
    assert mixed[0] - mixed[2] == pytest.approx(1.5, abs=0.05)
    assert max(np.abs(mixture).max(), np.abs(sources).max()) == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize("gain", [0.0, 30.0])
def test_the_greatest_of_mixture_and_sources_is_at_the_peak(gain):
    signals = [speechlike(1, 8000, 0), -speechlike(1, 8000, 0)]
    mixture, sources = mixing.mix_utterances(signals, (1, 1), (gain, 0), "min")
    assert max(np.abs(mixture).max(), np.abs(sources).max()) == pytest.approx(0.9, abs=1e-12)
    assert np.abs(mixture - sources.sum(0)).max() < 1e-12


def test_min_cuts_and_max_pads():
    signals = [np.ones(5), np.ones(8)]
    assert mixing.mix_utterances(signals, (1, 1), (0, 0), "min")[1].shape == (2, 5)
    sources = mixing.mix_utterances(signals, (1, 1), (0, 0), "max")[1]
    assert sources.shape == (2, 8) and not sources[0, 5:].any()


def test_a_mixture_of_silence_is_refused():
    with pytest.raises(UserError, match="silent over the length"):
        mixing.mix_utterances([np.array([0.0, 1.0]), np.zeros(1)], (1, 1), (0, 0), "min")


def test_names_write_gains_as_num2str():
    labels = ("01ao0306", "01xo031b", "c", "d", "e")
    name = mixing.mixture_name(labels, (0.69461, -0.69461, 0.0, 12.34567, 1.5))
    assert name == "01ao0306_0.69461_01xo031b_-0.69461_c_0_d_12.3457_e_1.5"


@pytest.fixture
def corpus(tmp_path):
    for index, name in enumerate(("a/a1", "b/b1", "c/c1")):
        audio.write(
            tmp_path / "wsj0" / "si_tr_s" / f"{name}.wav",
            speechlike(1 + 0.2 * index, 16000, index),
            16000,
        )
    return tmp_path


LINE = "wsj0/si_tr_s/a/a1.wav 1.5 wsj0/si_tr_s/b/b1.wav -1.5"


def write_list(corpus, *lines):
    path = corpus / "mix_2_spk_tr.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_list_is_read_from_inside_and_outside_wsj0(corpus):
    path = write_list(corpus, LINE, "", LINE.replace("1.5", "0.1"))
    for root in (corpus, corpus / "wsj0"):
        entries = mixing.parse_list(path, root, 2)
        assert [entry.name for entry in entries] == ["a1_1.5_b1_-1.5", "a1_0.1_b1_-0.1"]
        assert entries[0].gains == (1.5, -1.5)


@pytest.mark.parametrize(
    "lines, message",
    [
        ([LINE, "a.wav 1"], "line 2: expected 2 pairs"),
        ([LINE + " c.wav 0"], "line 1: expected 2 pairs"),
        ([LINE.replace("-1.5", "loud")], "line 1: expected 2 pairs"),
        ([LINE.replace("-1.5", "nan")], "line 1: expected 2 pairs"),
        (
            [LINE, LINE.replace("-1.5", "0"), LINE],
            "line 3: the mixture .*a1.wav 1.5 .*b1.wav -1.5 is already in line 1",
        ),
        ([LINE, "x.wav 0 y.wav 0"], "2 of its files are not in .*\n  line 2: x.wav"),
        ([], "is empty"),
    ],
)
def test_faults_of_a_list_are_messages_with_line_numbers(corpus, lines, message):
    with pytest.raises(UserError, match=message):
        mixing.parse_list(write_list(corpus, *lines), corpus, 2)


def test_a_list_that_is_not_there_and_sphere_files_are_told(corpus):
    with pytest.raises(UserError, match="no such mixing list"):
        mixing.parse_list(corpus / "absent.txt", corpus, 2)
    (corpus / "wsj0/si_tr_s/a/a1.wav").rename(corpus / "wsj0/si_tr_s/a/a1.wv1")
    with pytest.raises(UserError, match="line 1: .*a1.wav[^$]*sph2pipe"):
        mixing.parse_list(write_list(corpus, LINE), corpus, 2)


@pytest.mark.parametrize(
    "rate, mode, length", [(8000, "min", 8000), (8000, "max", 9600), (16000, "max", 19200)]
)
def test_mixture_files_sum_up_at_both_rates(corpus, rate, mode, length):
    entries = mixing.parse_list(write_list(corpus, LINE), corpus, 2)
    row = mixing.mix_list(entries, corpus / "out", rate, mode, n_jobs=1)[0].iloc[0]
    mixture, one, two = (
        audio.read(row[key], sample_rate=rate)
        for key in ("mixture_path", "source_1_path", "source_2_path")
    )
    assert len(mixture) == row["length"] == length
    assert np.abs(mixture - one - two).max() <= 1.5 * audio.LSB + 1e-7
    assert max(np.abs(signal).max() for signal in (mixture, one, two)) == pytest.approx(
        29491 / 32768, abs=1e-7
    )


def test_gains_at_16_khz_are_those_measured_at_8_khz(corpus):
    entries = mixing.parse_list(write_list(corpus, LINE), corpus, 2)
    row = mixing.mix_list(entries, corpus / "out", 16000, "min", n_jobs=1)[0].iloc[0]
    ratio = []
    for path, key in zip(entries[0].paths, ("source_1_path", "source_2_path"), strict=True):
        recording = audio.read(path).astype(float)
        level = active_speech_level(mixing.resample(recording, 16000, 8000), 8000)[0]
        ratio.append(
            np.std(audio.read(row[key])) / np.std(recording[: row["length"]]) * math.sqrt(level)
        )
    assert 20 * math.log10(ratio[0] / ratio[1]) == pytest.approx(3.0, abs=0.01)


def test_three_speakers_are_mixed(corpus):
    entries = mixing.parse_list(write_list(corpus, LINE + " wsj0/si_tr_s/c/c1.wav 0"), corpus, 3)
    frame, _ = mixing.mix_list(entries, corpus / "out", 8000, "min", n_jobs=1)
    assert list(frame.columns)[2:5] == ["source_1_path", "source_2_path", "source_3_path"]
    assert (corpus / "out" / "s3" / "a1_1.5_b1_-1.5_c1_0.wav").is_file()


def test_mixtures_that_exist_are_kept_and_missing_ones_made(corpus):
    entries = mixing.parse_list(write_list(corpus, LINE, LINE.replace("1.5", "1")), corpus, 2)
    frame, _ = mixing.mix_list(entries, corpus / "out", 8000, "min", n_jobs=1)
    files = list((corpus / "out").rglob("*.wav"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    (corpus / "out" / "s2" / f"{entries[1].name}.wav").unlink()
    again, _ = mixing.mix_list(entries, corpus / "out", 8000, "min", n_jobs=1)
    assert again.equals(frame)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_another_list_rate_or_recording_is_not_mixed_with_old_output(corpus):
    entries = mixing.parse_list(write_list(corpus, LINE), corpus, 2)
    mixing.mix_list(entries, corpus / "out", 8000, "min", n_jobs=1)
    frame, _ = mixing.mix_list(entries, corpus / "out", 16000, "min", n_jobs=1)
    assert audio.info(frame["source_1_path"][0])[1] == 16000
    before = audio.read(frame["source_1_path"][0])
    audio.write(corpus / "wsj0/si_tr_s/a/a1.wav", speechlike(1, 16000, 9), 16000)
    frame, _ = mixing.mix_list(entries, corpus / "out", 16000, "min", n_jobs=1)
    assert not np.array_equal(audio.read(frame["source_1_path"][0]), before)


def test_a_source_that_min_cuts_before_it_begins_leaves_its_mixture_out(corpus):
    late = np.concatenate([np.zeros(20000), speechlike(1, 16000)])
    audio.write(corpus / "wsj0/si_tr_s/b/b1.wav", late, 16000)
    lines = [LINE, "wsj0/si_tr_s/a/a1.wav 0 wsj0/si_tr_s/c/c1.wav 0"]
    entries = mixing.parse_list(write_list(corpus, *lines), corpus, 2)
    frame, warnings = mixing.mix_list(entries, corpus / "out", 8000, "min", n_jobs=1)
    assert frame["mixture_ID"].tolist() == ["a1_0_c1_0"]
    assert len(warnings) == 1
    assert "b1.wav is silent in the 1.00 s" in warnings[0] and "--mode max" in warnings[0]
    frame, warnings = mixing.mix_list(entries, corpus / "max", 8000, "max", n_jobs=1)
    assert len(frame) == 2 and not warnings
    with pytest.raises(UserError, match="no mixture of the list is left.*b1.wav is silent"):
        mixing.mix_list(entries[:1], corpus / "none", 8000, "min", n_jobs=1)


def test_all_bad_recordings_are_named_at_once(corpus):
    audio.write(corpus / "wsj0/si_tr_s/b/b1.wav", np.zeros(16000), 16000)
    (corpus / "wsj0/si_tr_s/c/c1.wav").write_bytes(b"no audio")
    lines = ["wsj0/si_tr_s/a/a1.wav 0 wsj0/si_tr_s/c/c1.wav 0", LINE, LINE.replace("1.5", "1")]
    entries = mixing.parse_list(write_list(corpus, *lines), corpus, 2)
    with pytest.raises(UserError, match="2 problems:\n.*c1.wav: is not.*\n.*b1.wav: the signal is"):
        mixing.mix_list(entries, corpus / "out", 8000, "min", n_jobs=1)


def test_numbered_files_of_different_speakers_are_different_recordings(tmp_path):
    for speaker in "ABCD":
        audio.write(tmp_path / speaker / "1.wav", speechlike(1, 8000), 8000)
    audio.write(tmp_path / "D" / "other.wav", speechlike(1, 8000), 8000)
    lines = ["A/1.wav 0 B/1.wav 0", "C/1.wav 0 D/1.wav 0", "A/1.wav 0 D/other.wav 0"]
    entries = mixing.parse_list(write_list(tmp_path, *lines), tmp_path, 2)
    names = [entry.name for entry in entries]
    assert names == ["A-1_0_B-1_0", "C-1_0_D-1_0", "A-1_0_other_0"]


def test_a_list_may_begin_with_a_byte_order_mark(corpus):
    path = write_list(corpus, LINE)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert mixing.parse_list(path, corpus, 2)[0].name == "a1_1.5_b1_-1.5"


def test_names_that_are_too_long_for_a_file_are_shortened_and_differ(tmp_path):
    lines = []
    for letter in "xy":
        for name in (f"{'p' * 150}{letter}", f"{'q' * 150}{letter}"):
            audio.write(tmp_path / f"{name}.wav", speechlike(1, 8000), 8000)
        lines.append(f"{'p' * 150}{letter}.wav 0 {'q' * 150}{letter}.wav 0")
    entries = mixing.parse_list(write_list(tmp_path, *lines), tmp_path, 2)
    frame, _ = mixing.mix_list(entries, tmp_path / "out", 8000, "min", n_jobs=1)
    assert frame["mixture_ID"].nunique() == 2 and frame["mixture_ID"].str.len().max() <= 200


def test_a_silent_recording_is_named(corpus):
    audio.write(corpus / "wsj0/si_tr_s/b/b1.wav", np.zeros(16000), 16000)
    entries = mixing.parse_list(write_list(corpus, LINE), corpus, 2)
    with pytest.raises(UserError, match="b1.wav: the signal is silent"):
        mixing.mix_list(entries, corpus / "out", 8000, "min", n_jobs=1)


def test_drawn_lists_repeat_nothing():
    text = mixing.draw_list([{"a": ["a/1.wav"], "b": ["b/1.wav"]}], 2, 2000, seed=2)
    assert len(set(text.splitlines())) == 2000


def test_drawn_lists_have_different_speakers_and_opposite_gains():
    recordings = {name: [f"{name}/1.wav", f"{name}/2.wav"] for name in "abcd"}
    text = mixing.draw_list([recordings], 3, 50, seed=1)
    assert (
        text
        == mixing.draw_list([recordings], 3, 50, seed=1)
        != mixing.draw_list([recordings], 3, 50, seed=2)
    )
    for line in text.splitlines():
        one, gain, two, opposite, three, zero = line.split()
        assert len({one[0], two[0], three[0]}) == 3
        assert 0 <= float(gain) == -float(opposite) <= 2.5 and float(zero) == 0


def test_drawn_lists_take_each_group_with_the_same_probability_and_no_name_twice():
    few = {name: [f"1/{name}/1.wav"] for name in "abc"}
    many = {name: [f"2/{name}/1.wav"] for name in "cdefghijkl"}
    text = mixing.draw_list([few, many], 2, 4000, seed=1, largest_difference=2.5)
    kinds = Counter()
    for line in text.splitlines():
        one, gain, two, opposite = line.split()
        kinds[one[0] + two[0]] += 1
        # Both groups have a class c, which nobody could tell from itself.
        assert one.split("/")[1] != two.split("/")[1]
        assert 0 <= float(gain) == -float(opposite) <= 1.25
    shares = {kind: count / 4000 for kind, count in kinds.items()}
    # Four standard errors of a share of a quarter are 0.027.
    assert shares == pytest.approx(dict.fromkeys(("11", "12", "21", "22"), 0.25), abs=0.027)


def test_levels_by_power_are_those_of_what_the_mixture_holds(tmp_path):
    # A rumble below the band of speech, loud where the shorter one has ended.
    time = np.arange(24000) / 8000
    rumble = np.sin(2 * np.pi * 30 * time) * np.where(time < 1, 0.05, 0.5)
    audio.write(tmp_path / "rumble.wav", rumble, 8000)
    audio.write(tmp_path / "voice.wav", speechlike(1, 8000), 8000)
    path = write_list(tmp_path, "rumble.wav 1 voice.wav -1")
    entries = mixing.parse_list(path, tmp_path, 2)
    differences = {}
    for level in ("power", "speech"):
        folder = tmp_path / level
        frame, _ = mixing.mix_list(entries, folder, 8000, "min", 1, level)
        [row] = frame.itertuples()
        powers = [np.mean(audio.read(path) ** 2) for path in (row.source_1_path, row.source_2_path)]
        differences[level] = 10 * np.log10(powers[0] / powers[1])
    assert differences["power"] == pytest.approx(2, abs=0.01)
    assert differences["speech"] > 10
