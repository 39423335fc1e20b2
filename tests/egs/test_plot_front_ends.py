"""The figure of front ends: whose codes and masks it shows, and of what."""

import pytest
import torch

from tests.support import ROOT, recipe_scripts, two_step_model

LOCAL = ROOT / "egs" / "wsj0-2mix" / "local"


@pytest.fixture(scope="module")
def plot():
    with recipe_scripts(LOCAL, ("plot_front_ends",)) as modules:
        yield modules["plot_front_ends"]


@pytest.mark.slow
def test_a_figure_has_a_row_for_each_front_end(plot, tone_manifests, tmp_path, capsys):
    models = [str(two_step_model(tmp_path / f"{seed}/model.pth", seed)) for seed in (0, 1)]
    out = tmp_path / "figure.png"
    manifest = str(tone_manifests / "test.csv")
    plot.main([*models, "--names", "one", "other", "--manifest", manifest, "--out", str(out)])
    assert "2 front ends" in capsys.readouterr().out
    height, width = plot.plt.imread(out).shape[:2]
    assert width > 2 * height


def test_what_does_not_fit_is_told(plot, tone_manifests, tmp_path, capsys):
    model = str(two_step_model(tmp_path / "model.pth"))
    manifest = ["--manifest", str(tone_manifests / "test.csv")]
    for arguments, words in (
        ([model, *manifest, "--row", "9"], "so that --row goes to 3"),
        ([model, *manifest, "--names", "a", "b"], "2 names for 1 models"),
    ):
        with pytest.raises(SystemExit, match="2"):
            plot.main(arguments)
        assert words in capsys.readouterr().err


def test_masks_are_ordered_by_the_frequency_of_their_filters(plot, tmp_path):
    system = plot.load(two_step_model(tmp_path / "model.pth"))
    size = system.frontend.encoder.get_filters().shape[-1]
    n_filters = system.frontend.n_masks
    # Tones, the highest first.
    cycles = torch.arange(n_filters, 0, -1) / 40
    tones = torch.cos(2 * torch.pi * cycles[:, None] * torch.arange(size))
    system.frontend.encoder.filterbank._filters.data[:n_filters, 0] = tones
    assert plot.by_frequency(system).tolist() == list(range(n_filters))[::-1]
