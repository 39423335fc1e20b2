"""One way to apply a system to the channels of a recording: evaluation, separation and oracles agree."""

import numpy as np
import pytest
import soundfile as sf
import torch

from local_models.oracles import OracleBeamformer, StftOracle
from local_models.system import System, without_offset
from tests.support import RATE, evaluation_of, two_step_model, write_set
from utils.evaluation import methods
from utils.evaluation.apply import apply, apply_oracle
from utils.evaluation.methods import Method, trained_system
from utils.evaluation.options import Blocks
from utils.evaluation.overlap_add import Stitcher
from utils.evaluation.run import evaluate
from utils.evaluation.scoring import How, estimate
from utils.evaluation.separate_files import separate_file
from utils.training.model_files import load_system

SHORT = Blocks(segment=1.0, overlap=0.25)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


class Halves(System):
    """A quarter and three quarters of what it hears, of the channels that it says; notes the lengths."""

    def __init__(self, n_mics=1, images=False, broken=False):
        super().__init__(2, RATE)
        self.ordered = True
        self.n_mics = n_mics
        self.images = images
        self.broken = broken
        self.lengths = []

    def separate_centred(self, mixture):
        self.lengths.append(mixture.shape[-1])
        if self.n_mics != 1 and not self.images:
            mixture = mixture.mean(1, keepdim=True)
        estimates = torch.stack([0.25 * mixture, 0.75 * mixture], dim=1)
        if self.broken:
            estimates[..., 5] = torch.nan
        return estimates


@pytest.mark.parametrize("seconds", [0.5, 3.3])
@pytest.mark.parametrize(
    "system, channels, given",
    [
        (Halves(), 1, 1),
        (Halves(), 3, 3),
        (Halves(n_mics=None), 3, 1),
        (Halves(n_mics=2, images=True), 2, 2),
        (Halves(n_mics=2, images=True), 1, 1),
    ],
    ids=["mono", "one by one", "together", "images", "images of mono"],
)
def test_estimates_have_a_source_a_channel_and_a_time(system, channels, given, seconds):
    mixture = torch.from_numpy(noise(channels, round(seconds * RATE)))
    estimates = apply(system, mixture, SHORT)
    assert estimates.shape == (2, given, mixture.shape[1])
    heard = mixture if given == channels else mixture.mean(0, keepdim=True)
    heard = without_offset(heard)
    assert torch.allclose(estimates, torch.stack([0.25 * heard, 0.75 * heard]), atol=1e-6)
    assert max(system.lengths) <= 1.0 * RATE


@pytest.mark.parametrize(
    "system, channels, words",
    [
        (Halves(n_mics=None), 1, "it has one channel; the model separates by several microphones"),
        (Halves(n_mics=3), 2, "it has 2 channels; the model hears 3 microphones"),
        (Halves(n_mics=2, images=True), 4, "it has 4 channels; the model hears 2 microphones"),
    ],
)
def test_a_number_of_channels_that_a_system_cannot_hear_is_refused(system, channels, words):
    with pytest.raises(ValueError, match=words):
        apply(system, torch.zeros(channels, 100))


@pytest.mark.parametrize("seconds", [0.7, 3.3])
def test_what_is_scored_is_what_separate_writes(tmp_path, seconds):
    sources = noise(2, round(seconds * RATE))
    manifest = write_set(tmp_path / "set", [(sources.sum(0), sources)])
    method = trained_system(two_step_model(tmp_path / "exp/a/model.pth").parent)
    evaluate(method, manifest, how=How(blocks=SHORT), n_examples=1)
    written = separate_file(
        load_system(method.model), tmp_path / "set/test0_mix.wav", tmp_path / "out", SHORT
    )
    example = evaluation_of(method) / "examples/ex_m0"
    scored = {sf.read(example / f"s{k}_estimate.wav")[0].tobytes() for k in (1, 2)}
    assert scored == {sf.read(path)[0].tobytes() for path in written}


def test_evaluation_and_separation_cut_at_the_same_places_unless_told_otherwise():
    assert How().blocks == Blocks()


def test_oracles_never_hear_more_than_a_segment():
    lengths = []

    def noting(oracle):
        def call(mixture, sources):
            lengths.append(mixture.shape[-1])
            return oracle(mixture, sources)

        return call

    mixture = torch.from_numpy(noise(2, 4 * RATE))
    stereo = torch.from_numpy(noise(3, 2, 4 * RATE, seed=1))
    masks = noting(StftOracle("irm", 32, RATE))
    assert apply_oracle(masks, mixture, stereo, RATE, blocks=SHORT).shape == stereo.shape
    beams = noting(OracleBeamformer("mwf", RATE))
    estimates = apply_oracle(beams, mixture, stereo[:, :1], RATE, n_mics=None, blocks=SHORT)
    assert estimates.shape == (3, 1, 4 * RATE)
    assert max(lengths) == RATE


def test_estimates_of_long_files_that_are_not_finite_are_scored_as_failures(tmp_path, monkeypatch):
    system = Halves(broken=True)
    system.ordered = False
    monkeypatch.setattr(methods, "load_system", lambda path, trust: system)
    methods._trained.cache_clear()
    sources = noise(2, 3 * RATE)
    manifest = write_set(tmp_path / "set", [(sources.sum(0), sources)])
    method = Method(tmp_path / "exp", model=tmp_path / "model.pth", model_sha256="broken")
    final = evaluate(method, manifest, how=How(blocks=SHORT), n_examples=0)
    assert final["failed_estimates"] == 2 and final["si_sdr"]["mean"] == -100


def test_a_system_that_gives_other_channels_than_the_sources_have_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Method, "load", lambda *_: Halves(n_mics=2, images=True))
    method = Method(tmp_path, kind="classic")
    with pytest.raises(ValueError, match="2 sources of 2 channels, but .* 2 sources of 1 channels"):
        estimate(method, How(), noise(2, 800), noise(2, 1, 800), RATE)


def test_recordings_go_in_piece_by_piece_without_whole_copies(monkeypatch):
    lengths = []
    real = Stitcher.push

    def noting(self, signal):
        lengths.append(signal.shape[-1])
        return real(self, signal)

    monkeypatch.setattr(Stitcher, "push", noting)
    sources = torch.from_numpy(noise(2, 1, 4 * RATE))
    apply(Halves(), sources.sum(0), SHORT)
    apply_oracle(StftOracle("irm", 32, RATE), sources.sum(0), sources, RATE, blocks=SHORT)
    assert lengths == [RATE] * 8
