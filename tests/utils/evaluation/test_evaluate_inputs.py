"""Evaluation of several channels, of sources that are not there, of lists of references, and on a cluster."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from dask.distributed import Client, LocalCluster

from local_models.oracles.masks import StftOracle
from local_models.system import without_offset
from tests.support import RATE, Bands, noise_set, read_final, read_rows, two_step_model, write_set
from utils.errors import UserError
from utils.evaluate import main
from utils.evaluation import methods
from utils.evaluation.methods import Method, references, trained_system
from utils.evaluation.options import Blocks
from utils.evaluation.run import evaluate
from utils.evaluation.scoring import How, estimate


@pytest.fixture
def bands(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "load_system", lambda path, trust: Bands().eval())
    methods._trained.cache_clear()
    yield Method(tmp_path / "exp", model=tmp_path / "model.pth", model_sha256="0")
    methods._trained.cache_clear()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def references_file(path, *entries):
    path.write_text(yaml.safe_dump(list(entries), sort_keys=False))
    return path


def test_a_source_that_is_not_there_has_no_score(tmp_path):
    sources = noise(2, 4000)
    manifest = write_set(tmp_path / "set", [(sources.sum(0), [sources[0], None, sources[1]])])
    method = Method(tmp_path / "mixture", kind="mixture")
    evaluate(method, manifest)
    row = read_rows(method).iloc[0]
    assert np.isnan(row.si_sdr_2) and row.si_sdri == 0 and row.silent_sources == 1
    assert read_final(method)["silent_sources"] == 1


def test_a_system_of_one_channel_hears_stereo_channel_by_channel(bands):
    mixture, sources = noise(2, 4000), noise(2, 2, 4000)
    together = estimate(bands, How(), mixture, sources, RATE)[0]
    assert together.shape == (2, 2, 4000)
    for channel in range(2):
        alone = estimate(bands, How(), mixture[[channel]], sources[:, [channel]], RATE)[0]
        np.testing.assert_allclose(together[:, [channel]], alone, atol=1e-6)


def test_a_system_of_one_channel_hears_the_first_microphone_if_the_sources_are_mono(bands):
    mixture, sources = noise(3, 4000), noise(2, 1, 4000)
    first = estimate(bands, How(), mixture[:1], sources, RATE)[0]
    np.testing.assert_array_equal(estimate(bands, How(), mixture, sources, RATE)[0], first)
    unprocessed = estimate(Method(bands.folder, kind="mixture"), How(), mixture, sources, RATE)[0]
    np.testing.assert_array_equal(unprocessed[:, 0], mixture[[0, 0]])


def test_oracle_masks_of_stereo_are_those_of_each_channel(tmp_path):
    method = references(tmp_path)[3]
    sources = noise(2, 2, 4000)
    estimates = estimate(method, How(), sources.sum(0), sources, RATE)[0]
    for channel in range(2):
        truth = without_offset(torch.from_numpy(sources[:, [channel]]))[None]
        expected = StftOracle("wiener", 32, RATE)(truth.sum(1), truth)[0, :, 0]
        np.testing.assert_allclose(estimates[:, channel], expected, atol=1e-6)


def test_long_mixtures_are_separated_in_segments_even_by_oracles(tmp_path):
    method, sources = references(tmp_path)[3], noise(2, 1, 3 * RATE)
    whole = estimate(method, How(), sources.sum(0), sources, RATE)[0]
    parts = estimate(method, How(blocks=Blocks(1.0, 0.25)), sources.sum(0), sources, RATE)[0]
    # The frames of a later segment stand elsewhere, so it differs a little; its ends would differ a lot.
    assert np.abs(parts - whole).max() < 0.5 * np.abs(whole).max() and not np.array_equal(
        parts, whole
    )
    assert np.sum((parts - sources) ** 2) == pytest.approx(np.sum((whole - sources) ** 2), rel=0.03)


def test_methods_that_need_no_training_are_listed_in_a_file(tmp_path):
    sources = noise(2, 4000)
    manifest = write_set(
        tmp_path / "set", [(np.stack([sources[0] + 0.5 * sources[1], sources[1]]), sources)]
    )
    entry = {"name": "beams", "description": "each microphone", "class_path": "tests.support.Beams"}
    listed = references_file(
        tmp_path / "list.yml",
        {"name": "unprocessed", "kind": "mixture"},
        entry | {"init_args": {"gain": 2.0}},
    )
    main(
        [
            "--exp",
            str(tmp_path / "exp/none"),
            "--manifest",
            str(manifest),
            "--references",
            str(listed),
            "--no_system",
        ]
    )
    folder = tmp_path / "exp/reference-set"
    unprocessed, beams = Method(folder / "unprocessed"), Method(folder / "beams")
    assert read_rows(unprocessed).si_sdri[0] == 0
    assert read_rows(beams).si_sdr_2[0] == 100 and read_rows(beams).snr_2[0] == pytest.approx(
        0, abs=1e-4
    )
    assert read_final(beams)["description"] == "each microphone"


def test_a_mixture_that_a_method_refuses_is_explained(tmp_path):
    listed = references_file(
        tmp_path / "list.yml", {"name": "refuses", "class_path": "tests.support.Refusing"}
    )
    [method] = references(tmp_path, listed)
    with pytest.raises(UserError, match="m?ix.wav cannot be separated by refuses: no voice in it"):
        evaluate(method, noise_set(tmp_path / "set", 1))


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"kind": "classic"}, "entry 1: name: None; it needs name"),
        ({"name": "a", "klass": "x"}, "klass: x"),
        ({"name": "a", "kind": "magic"}, "kind: magic"),
        (
            {"name": "a", "class_path": "tests.support.Nothing"},
            "a: tests.support.Nothing: there is no such class",
        ),
        ({"name": "a", "class_path": "tests.support.Beams", "init_args": {"gian": 1}}, "gian"),
    ],
)
def test_a_wrong_entry_of_the_list_is_explained(entry, words, tmp_path):
    with pytest.raises(UserError, match=words):
        for method in references(tmp_path, references_file(tmp_path / "list.yml", entry)):
            evaluate(method, noise_set(tmp_path / "set", 1))


GRID = {
    "name": "iva_{update}_{n}",
    "description": "IVA {update}, {n} iterations",
    "class_path": "tests.support.Beams",
    "init_args": {"gain": 1},
    "grid": {"update": {"ip": "IP", "iss": "ISS"}, "n": [5, 10]},
}


def test_a_grid_stands_for_all_combinations_of_its_values(tmp_path):
    methods = references(tmp_path, references_file(tmp_path / "list.yml", GRID))
    assert [method.folder.name for method in methods] == [
        "iva_ip_5",
        "iva_ip_10",
        "iva_iss_5",
        "iva_iss_10",
    ]
    assert methods[1].description == "IVA IP, 10 iterations"
    assert methods[2].init_args == {"gain": 1, "update": "iss", "n": 5}
    assert {method.class_path for method in methods} == {"tests.support.Beams"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"grid": [1]}, "does not give arguments their values"),
        ({"grid": {}}, "does not give arguments their values"),
        ({"grid": {"update": [], "n": [5]}}, r"update: \[\] is not a list of values"),
        ({"grid": {"update": ["ip"], "n": [5], "gain": [1]}}, "gain stands in init_args and in"),
        ({"name": "iva_{update}"}, r"does not tell all .* apart; use \{update\}, \{n\}"),
        ({"name": "iva_{update}_{m}"}, "cannot be filled in from grid .'m'"),
        ({"grid": {"update": ["a/b"], "n": [5]}}, "name: iva_a/b_5"),
    ],
)
def test_a_wrong_grid_is_explained(change, words, tmp_path):
    listed = references_file(tmp_path / "list.yml", GRID | change)
    with pytest.raises(UserError, match=f"entry 1: .*{words}"):
        references(tmp_path, listed)


def test_a_cluster_of_two_processes_gives_the_rows_of_one_process(tmp_path):
    manifest = noise_set(tmp_path / "set", 12, seconds=0.3)
    exps = [
        two_step_model(tmp_path / "exp" / name / "model.pth").parent for name in ("here", "there")
    ]
    options = ["--manifest", str(manifest), "--references", "none", "--device", "cpu", "--exp"]
    main([*options, str(exps[0]), "--nj", "1"])
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        main([*options, str(exps[1]), "--nj", "2", "--cluster", cluster.scheduler_address])
        worked = client.run(lambda: "utils.evaluation.scoring" in sys.modules)
    assert list(worked.values()) == [True, True]
    rows = [read_rows(trained_system(exp)) for exp in exps]
    pd.testing.assert_frame_equal(*rows)


def test_a_cluster_that_is_not_there_is_explained(tmp_path, capsys):
    manifest = noise_set(tmp_path / "set", 1)
    exp = two_step_model(tmp_path / "exp/here/model.pth").parent
    with pytest.raises(SystemExit):
        main(["--exp", str(exp), "--manifest", str(manifest), "--cluster", "127.0.0.1:9"])
    assert "no Dask scheduler answers" in capsys.readouterr().err
