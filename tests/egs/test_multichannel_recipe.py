import json
import sys
from pathlib import Path

import jiwer
import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from local_models.auxiva import BlindSeparation
from tests.support import ROOT, recipe_scripts, two_step_model, write_scores
from utils import files
from utils.data import audio
from utils.data.manifest import read_manifest
from utils.data.recordings import read_listed
from utils.data.walking import walk
from utils.errors import UserError
from utils.evaluation.apply import apply
from utils.evaluation.methods import Method
from utils.evaluation.metrics.si_sdr import match, si_sdr
from utils.evaluation.scoring import How, estimate, read_example
from utils.evaluation.separate_files import separate_file
from utils.separate import main as separate
from utils.training import config
from utils.training.model_files import load_system

RECIPE = ROOT / "egs" / "multichannel"
STAGES = (
    "prepare_corpus",
    "ready_sets",
    "make_mixtures",
    "evaluate_all",
    "convergence",
    "score_wer",
    "make_model",
)
STAGES += ("breakdown",)
RATE = 8000


@pytest.fixture(scope="module")
def local():
    with recipe_scripts(RECIPE / "local", STAGES) as modules:
        modules["make_mixtures"].RoomRules = lambda: modules["make_mixtures"].MINI_ROOMS
        modules["make_mixtures"].N_VALID = {"mini": 2, "other": 2}
        yield modules


def write_corpus(folder, texts=False):
    rng = np.random.default_rng(0)
    for part, speakers in (("train", "abc"), ("test", "defg")):
        rows = []
        for speaker in speakers:
            for number in range(3):
                path = folder / part / speaker / f"{number}.wav"
                audio.write(path, 0.3 * rng.uniform(-1, 1, RATE + 100 * number), RATE)
                rows.append(
                    {"speaker": speaker, "path": str(path), "text": f"{speaker} says {number}"}
                )
        if texts:
            pd.DataFrame(rows).to_csv(folder / f"{part}.csv", index=False)


@pytest.fixture(scope="module")
def made(local, tmp_path_factory):
    """The data folder of a small corpus with texts."""
    folder = tmp_path_factory.mktemp("recipe")
    write_corpus(folder / "corpus", texts=True)
    run(local, folder, str(folder / "corpus"))
    return folder / "data" / "corpus"


def run(local, folder, corpus, first=0):
    options = [
        "--corpus",
        corpus,
        "--out",
        str(folder / "data"),
        "--nj",
        "1",
        "--sample_rate",
        str(RATE),
    ]
    for stage in ("prepare_corpus", "make_mixtures")[first:]:
        local[stage].main([*options, "--n_rooms", "3", "--n_test", "2"])


def message(capsys, function, *args):
    with pytest.raises(SystemExit):
        function(*args)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "conf", sorted((RECIPE / "conf").glob("*.yml")), ids=lambda path: path.stem
)
def test_every_yaml_is_built(conf):
    parsed = config.parse(config.read_yaml(conf), conf)
    # Any number of microphones, but for the networks that are made for two.
    n_mics = 2 if conf.stem.endswith("tf_gridnet") else None
    assert parsed.build_system().n_mics == n_mics


def test_finished_sets_train_by_the_documented_option():
    for conf in sorted((RECIPE / "conf").glob("*.yml")):
        values = config.override(
            config.read_yaml(conf), ["data.dataset.class_path=utils.data.spatial.ArrayMixtures"]
        )
        if (
            conf.stem != "surrogate_tiss"
        ):  # its anechoic references are not in the manifests of finished sets
            dataset = config.parse(values, conf).plain()["data"]["dataset"]
            assert dataset["class_path"] == "utils.data.spatial.ArrayMixtures"


@pytest.mark.parametrize("n_mics", [2, 4])
def test_another_number_of_sources_than_microphones_is_told(tmp_path, n_mics):
    method = Method(tmp_path, model=surrogate(tmp_path) / "model.pth", model_sha256="")
    mixture = np.ones((n_mics, 800), np.float32)
    sources = np.ones((3, 1, 800), np.float32)
    with pytest.raises(
        ValueError, match=f"as many sources as microphones, {n_mics}, but there are 3"
    ):
        estimate(method, How(), mixture, sources, RATE)


def test_every_reference_can_be_made():
    from utils.evaluation.methods import references

    methods = references(Path("exp"), RECIPE / "references.yml")
    assert len({m.folder for m in methods}) == len(methods) == 31
    for method in methods:
        if method.class_path:
            method.load(16000)


@pytest.mark.slow
def test_stages_make_sets_of_two_three_and_four_speakers(made):
    for n_src in (2, 3, 4):
        frame = read_manifest(made / "manifests" / f"{n_src}spk_8k" / f"test_{n_src}spk.csv", n_src)
        assert len(frame) == 2 and audio.info(frame["mixture_path"][0])[2] == n_src
        assert frame["speaker_1"].isin(list("defg")).all() and f"text_{n_src}" in frame
    train = pd.read_csv(made / "manifests" / "2spk_8k" / "train_sources.csv")
    assert set(train["speaker"]) == set("abc")
    assert len(pd.read_csv(made / "manifests" / "2spk_8k" / "train_rooms.csv")) == 3


@pytest.mark.slow
def test_directories_of_recordings_are_taken_and_others_answered(local, tmp_path, capsys):
    write_corpus(tmp_path)
    run(local, tmp_path, f"{tmp_path / 'train'},{tmp_path / 'test'}")
    assert (tmp_path / "data" / "train-test" / "manifests" / "4spk_8k" / "test_4spk.csv").is_file()
    (tmp_path / "wsj" / "x").mkdir(parents=True)
    (tmp_path / "wsj" / "x" / "y.wv1").write_bytes(b"NIST_1A")
    text = message(capsys, run, local, tmp_path, str(tmp_path / "wsj"))
    assert "Accepted are" in text and "sph2pipe" in text
    assert "run stage 0 first" in message(
        capsys, run, local, tmp_path / "new", str(tmp_path / "wsj"), 1
    )
    audio.write(tmp_path / "train" / "a" / "0.wav", np.zeros(RATE), RATE)
    (tmp_path / "data" / "train-test" / "corpus.json").unlink()
    assert "is silent" in message(
        capsys, run, local, tmp_path, f"{tmp_path / 'train'},{tmp_path / 'test'}"
    )


@pytest.mark.slow
def test_speakers_behind_links_count_and_all_bad_files_are_named(local, tmp_path, capsys):
    write_corpus(tmp_path)
    (tmp_path / "train" / "c").rename(tmp_path / "far")
    (tmp_path / "train" / "c").symlink_to(tmp_path / "far")
    for name, samples, rate in (("0", np.zeros(RATE), RATE), ("1", np.ones(4000), 4000)):
        sf.write(tmp_path / "far" / f"{name}.wav", samples, rate)
    corpus = f"{tmp_path / 'train'},{tmp_path / 'test'}"
    text = message(capsys, run, local, tmp_path, corpus)
    assert "2 problems" in text and "c/0.wav: is silent" in text and "c/1.wav: sampled" in text
    for name in "01":
        (tmp_path / "far" / f"{name}.wav").unlink()
    run(local, tmp_path, corpus)
    data = tmp_path / "data" / "train-test"
    tables = [read_listed(data / f"{part}_recordings.csv") for part in ("train", "valid")]
    assert set(pd.concat(tables)["speaker"]) == set("abc")


@pytest.mark.slow
def test_stages_see_what_has_changed_since_and_else_write_nothing(local, tmp_path, capsys):
    write_corpus(tmp_path)
    corpus = f"{tmp_path / 'train'},{tmp_path / 'test'}"
    run(local, tmp_path, corpus)
    data = tmp_path / "data" / "train-test"

    def state():
        paths = [path for path in walk(data, audio_only=False) if "corpus" not in path.parts]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    before = state()
    run(local, tmp_path, corpus)
    assert "already made" in capsys.readouterr().out and state() == before
    lost = sorted((data / "test" / "2spk_8k").rglob("*.wav"))
    lost += [data / "manifests" / "2spk_8k" / name for name in ("test_2spk_early.csv",)]
    lost += sorted((data / "rooms").rglob("*.npz"))[:1]
    lost[0].write_bytes(b"cut")
    for path in lost[1:]:
        path.unlink()
    run(local, tmp_path, corpus, first=1)
    assert {p: content for p, (content, _) in state().items()} == {
        p: content for p, (content, _) in before.items()
    }
    recording = tmp_path / "test" / "d" / "0.wav"
    audio.write(recording, audio.read(recording)[::-1], RATE)
    run(local, tmp_path, corpus, first=1)
    changed = {path for path, content in state().items() if before[path][0] != content[0]}
    assert {path.parts[-3] for path in changed if path.suffix == ".wav"} <= {
        "2spk_8k",
        "3spk_8k",
        "4spk_8k",
    }
    assert changed
    (tmp_path / "train" / "a" / "0.wav").unlink()
    text = message(capsys, run, local, tmp_path, corpus, 1)
    assert "files in train: 1 gone (corpus/train/a/0.wav)" in text and "--name" in text


def write_csvs(folder, **changed):
    """`train.csv` and `test.csv` of what `write_corpus` wrote, with other columns."""
    for part, speakers in (("train", "abc"), ("test", "defg")):
        rows = [{"speaker": s, "path": f"{part}/{s}/{n}.wav"} for s in speakers for n in range(3)]
        pd.DataFrame(rows).assign(**changed).to_csv(folder / f"{part}.csv", index=False)


@pytest.mark.slow
def test_texts_and_speakers_may_look_like_numbers_or_missing_values(local, tmp_path):
    write_corpus(tmp_path / "corpus")
    write_csvs(tmp_path / "corpus", text=lambda frame: (["07", "null", "NA"] * 4)[: len(frame)])
    text = (
        (tmp_path / "corpus" / "test.csv")
        .read_text()
        .replace("d,test", "NA,test")
        .replace("e,test", "01,test")
    )
    (tmp_path / "corpus" / "test.csv").write_text(text)
    run(local, tmp_path, str(tmp_path / "corpus"))
    frame = read_manifest(tmp_path / "data" / "corpus" / "manifests" / "4spk_8k" / "test_4spk.csv")
    assert {*frame[[f"speaker_{k}" for k in range(1, 5)]].to_numpy().ravel()} == {
        "NA",
        "01",
        "f",
        "g",
    }
    assert {*frame[[f"text_{k}" for k in range(1, 5)]].to_numpy().ravel()} <= {"07", "null", "NA"}


@pytest.mark.parametrize(
    "changed, problem",
    [({"path": ""}, "line 2: the cell of path is empty"), ({"speaker": ""}, "line 2: the cell of speaker is empty"),
     ({"speaker": "a"}, "mixtures of 2 need recordings of as many speakers"), (None, "is not a CSV file")],
)  # fmt: skip
def test_faulty_lists_are_told(local, tmp_path, capsys, changed, problem):
    write_corpus(tmp_path / "corpus")
    write_csvs(tmp_path / "corpus", **changed or {})
    if changed is None:
        (tmp_path / "corpus" / "train.csv").write_bytes(b"\xff\xfe")
    assert problem in message(capsys, run, local, tmp_path, str(tmp_path / "corpus"))


def test_speakers_of_one_recording_are_split_too(local):
    frame = pd.DataFrame({"speaker": list(map(str, range(20))), "path": "x"})
    parts = local["prepare_corpus"].split(frame)
    assert len(parts["valid"]) == 3 and len(parts["train"]) == 17
    parts = local["prepare_corpus"].split(
        pd.DataFrame({"speaker": ["a"] * 9 + ["b"] * 2, "path": "x"})
    )
    assert parts["valid"]["speaker"].tolist() == ["a", "a", "b"] and len(parts["train"]) == 8


@pytest.mark.parametrize("noisy", [False, True])
def test_wsj1_2345_db_is_read_with_its_noise(local, tmp_path, noisy):
    rng = np.random.default_rng(0)
    root = tmp_path / "renamed"
    for part in ("si284", "dev93", "eval92"):
        place = root / "wsj1_2_mix_m2" / part
        images, noise = 0.1 * rng.uniform(-1, 1, (2, 2, 4000)), 0.1 * rng.uniform(-1, 1, (2, 4000))
        audio.write(place / "wav_mixed_reverb" / "0.wav", images.sum(0), RATE)
        audio.write(place / "wav_mixed_noise_reverb" / "0.wav", images.sum(0) + noise, RATE)
        for k in range(2):
            audio.write(place / f"s{k}.wav", images[k], RATE)
        relative = f"wsj1_2345_db/wsj1_2_mix_m2/{part}"  # the set's own name, wherever it lies
        info = {
            "wav_dpath_mixed_reverberant": f"{relative}/wav_mixed_reverb/0.wav",
            "rir_info_t60": 0.3,
        }
        info["wav_dpath_image_reverberant"] = [f"{relative}/s{k}.wav" for k in range(2)]
        info |= {"speaker_id": ["a", "b"], "transcript_espnet": ["ONE", "TWO"]}
        info |= {"rir_info_microphone_position": [[0, 0, 1], [0, 0.2, 1]]}
        info |= {"rir_info_speaker_position": [[3, 4, 1], [0, 0, 3]]}
        files.write_text(place / "mixinfo.json", json.dumps({"00000": info}))
        if noisy:
            info |= {
                "wav_mixed_noise_reverb": f"{relative}/wav_mixed_noise_reverb/0.wav",
                "noise_snr": 12.5,
            }
            files.write_text(place / "mixinfo_noise.json", json.dumps({"00000": info}))
    run(local, tmp_path, str(root))
    frame = read_manifest(
        tmp_path / "data" / "renamed" / "manifests" / "2spk_8k" / "test_2spk.csv", 2
    )
    mixture = audio.read(frame["mixture_path"][0], channels=True)
    sources = sum(audio.read(frame[f"source_{k}_path"][0]) for k in (1, 2))
    assert (
        mixture.shape == (2, 4000) and np.abs(mixture[0] - sources - noisy * noise[0]).max() < 1e-3
    )
    described = frame[["t60", "distance_1", "distance_2", "speaker_2", "text_2"]].iloc[0].tolist()
    assert described == [0.3, 5.0, 2.0, "b", "TWO"] and (frame["noise"][0] == 12.5) == noisy


def test_sms_wsj_is_read_with_as_many_microphones_as_speakers(local, tmp_path):
    rng = np.random.default_rng(0)
    root, sets = tmp_path / "sms", {}
    for part in ("train_si284", "cv_dev93", "test_eval92"):
        early, tail = 0.1 * rng.uniform(-1, 1, (2, 2, 6, 4000))
        audio.write(root / "observation" / part / "0_a_b.wav", (early + tail).sum(0), RATE, "FLOAT")
        for k in range(2):
            audio.write(root / "early" / part / f"0_a_b_{k}.wav", early[k], RATE, "FLOAT")
            audio.write(root / "tail" / part / f"0_a_b_{k}.wav", tail[k], RATE, "FLOAT")
        places = {
            "sensor_position": np.eye(3, 6).tolist(),
            "source_position": [[1, 1], [3, 0], [4, 2]],
        }
        example = {
            "speaker_id": ["a", "b"],
            "sound_decay_time": 0.4,
            "kaldi_transcription": ["ONE", "TWO"],
            **places,
        }
        sets[part] = {"0_a_b": example}
    files.write_text(root / "sms_wsj.json", json.dumps({"datasets": sets}))
    run(local, tmp_path, str(root))
    manifests = tmp_path / "data" / "sms" / "manifests" / "2spk_8k"
    frame = read_manifest(manifests / "test_2spk.csv", 2)
    assert audio.info(frame["mixture_path"][0])[2] == 2
    assert frame[["t60", "distance_1", "distance_2", "text_2"]].iloc[0].tolist() == [
        0.4,
        5.0,
        2.0,
        "TWO",
    ]
    assert np.allclose(audio.read(frame["source_2_path"][0]), (early + tail)[1, 0], atol=1e-5)
    assert audio.info(read_manifest(manifests / "train.csv", 2)["mixture_path"][0])[2] == 6


@pytest.mark.slow
def test_a_classic_model_separates_files_by_the_command_line(local, tmp_path, capsys):
    options = ["--update", "iss", "--n_iter", "5", "--sample_rate", str(RATE)]
    local["make_model"].main(["--source", "gauss", *options, "--out", str(tmp_path / "gauss")])
    rng = np.random.default_rng(0)
    sources = rng.normal(size=(3, 2 * RATE)) * (
        np.sin(np.arange(2 * RATE) / [[900], [1300], [2100]]) > 0
    )
    mixture = (0.1 * rng.normal(size=(3, 3)) @ sources).astype(np.float32)
    cases = {
        "plain": mixture,
        "dead": mixture * [[1], [0], [1]],
        "swapped": mixture[[1, 0, 2]],
        "inverted": -mixture,
        "clipped": mixture.clip(-0.1, 0.1),
        "short": mixture[:, :3],
    }
    for name, signals in cases.items():
        sf.write(tmp_path / f"{name}.wav", signals.T, RATE, subtype="FLOAT")
    separate(
        [
            str(tmp_path / "gauss"),
            *(str(tmp_path / f"{name}.wav") for name in cases),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    for name, signals in cases.items():
        estimates = [audio.read(tmp_path / "out" / f"{name}_s{k}.wav") for k in (1, 2, 3)]
        # But for a constant: estimates have no offset.
        assert np.ptp(sum(estimates) - signals[0]) < 2e-3
    sf.write(tmp_path / "mono.wav", mixture[0], RATE)
    system = load_system(tmp_path / "gauss")
    with pytest.raises(UserError, match="one channel; the model separates by several microphones"):
        separate_file(system, tmp_path / "mono.wav", tmp_path / "out")


def surrogate(folder):
    """A trained surrogate, as far as the scripts can tell."""
    from utils.training.model_files import build_system, pack, save

    arguments = {
        "sample_rate": RATE,
        "n_fft": 256,
        "hop": 64,
        "n_bottleneck": 4,
        "n_sublayers": 0,
        "prior": "student",
    }
    described = {"class_path": "local_models.auxiva.SurrogateIVA", "init_args": arguments}
    save(pack(described, build_system(described).state_dict()), folder / "model.pth")
    files.write_text(folder / "config.yml", json.dumps({"system": described}))
    return folder


def test_a_trained_surrogate_is_put_into_another_update(local, tmp_path):
    trained = surrogate(tmp_path / "trained")
    local["make_model"].main(
        [
            "--source",
            str(trained),
            "--update",
            "ip2",
            "--n_iter",
            "3",
            "--out",
            str(tmp_path / "other"),
        ]
    )
    before, after = load_system(trained), load_system(tmp_path / "other")
    assert (after.separation.update, after.separation.n_iter) == ("ip2", 3)
    mixture = torch.randn(1, 2, 2000)
    assert torch.allclose(before.separation.model(mixture[:, :, None].abs().expand(1, 2, 129, 2000))[0],
                          after.separation.model(mixture[:, :, None].abs().expand(1, 2, 129, 2000))[0])  # fmt: skip


@pytest.mark.slow
def test_convergence_curves(local, made, tmp_path):
    trained = surrogate(tmp_path / "learnt")
    options = ["--exp", str(trained), "--data", str(made), "--out", str(tmp_path / "curves")]
    local["convergence"].main(
        [*options, "--iterations", "1", "2", "--updates", "iss", "ip2", "--size", "1"]
    )
    table = pd.read_csv(tmp_path / "curves.csv")
    assert set(table["n_src"]) == {2, 3, 4} and set(table["model"]) == {
        "mixture",
        "Laplace",
        "Gauss",
        "ILRMA",
        "learnt",
    }
    assert len(table) == 3 * (1 + 4 * 2 * 2) and np.isfinite(table["si_sdr"]).all()
    assert (tmp_path / "curves.png").stat().st_size > 10000


@pytest.mark.parametrize("model", ["Gauss", "learnt"])
def test_what_is_drawn_is_what_evaluation_scores(local, tmp_path, model):
    """Of a recording with an offset and with digital silence, which a transform of its own would hear otherwise."""
    learnt = surrogate(tmp_path / "learnt")
    rng = np.random.default_rng(0)
    sources = rng.uniform(-0.2, 0.2, (2, 2, RATE))
    sources[..., : RATE // 3] = 0
    mixture = sources.sum(0) + 0.3
    audio.write(tmp_path / "mixture.wav", mixture, RATE, "FLOAT")
    paths = []
    for k, source in enumerate(sources):
        paths.append(str(tmp_path / f"source{k}.wav"))
        audio.write(paths[-1], source[0], RATE, "FLOAT")
    row = {"mixture_ID": "a", "mixture_path": str(tmp_path / "mixture.wav")}
    models = {model: learnt if model == "learnt" else None}
    rows = local["convergence"].scores_of(row, paths, models, ["iss", "ip2"], [1, 4], RATE)
    for update in ("iss", "ip2"):
        for n_iter in (1, 4):
            if model == "learnt":
                system = load_system(learnt)
                system.separation.update = update
                system.separation.n_iter = n_iter
            else:
                system = BlindSeparation(RATE, "gauss", update, n_iter)
            heard, truth = read_example(row["mixture_path"], paths, RATE)
            estimates = apply(system, torch.from_numpy(heard)).numpy()[:, 0]
            references = truth[:, 0]
            expected = si_sdr(estimates[match(estimates, references)], references).mean()
            what = {"model": model, "update": update, "n_iter": n_iter}
            (drawn,) = [row for row in rows if row.items() >= what.items()]
            assert drawn["si_sdr"] == pytest.approx(expected, abs=1e-4)


def test_mixtures_called_na_or_null_count_in_the_breakdown(local, tmp_path):
    names = ["NA", "null", "nan", "None", "007"]
    rows = [
        {
            "mixture_ID": name,
            "mixture_path": "m.wav",
            "source_1_path": "s.wav",
            "length": 9,
            "t60": k,
        }
        for k, name in enumerate(names)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "test.csv", index=False)
    write_scores(tmp_path, names, {("si_sdr", 1): [1.0, 2.0, 3.0, 4.0, 5.0]})
    final = {"manifest": str(tmp_path / "test.csv"), "corpus": "c", "set": "test", "name": "x"}
    final["manifest_sha256"] = files.sha256(tmp_path / "test.csv")
    files.write_json(tmp_path / "final_metrics.json", final)
    table = local["breakdown"].by_source(tmp_path)
    assert table["si_sdr"].tolist() == [1, 2, 3, 4, 5] and table["t60"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_scores_by_number_of_speakers_and_by_condition(local, made, tmp_path, capsys):
    exp = surrogate(tmp_path / "exp" / "learnt")
    references = "[{name: mixture, kind: mixture}]"
    files.write_text(tmp_path / "references.yml", references)
    options = [
        "--exp",
        str(exp),
        "--data",
        str(made),
        "--nj",
        "1",
        "--references",
        str(tmp_path / "references.yml"),
    ]
    local["evaluate_all"].main([*options, "--device", "cpu"])
    mixture = tmp_path / "exp" / "reference-corpus-2spk_8k" / "mixture"
    out = ["--out", str(tmp_path / "breakdown"), "--parts", "2"]
    local["breakdown"].main(["--exp", str(exp), str(mixture), *out])
    table = pd.read_csv(tmp_path / "breakdown.csv", keep_default_na=False)
    whole = table[table["condition"] == "all"]
    assert list(whole["sources"]) == [4, 6, 8, 4] and set(whole["system"]) == {"learnt", "mixture"}
    for n_src in (2, 3, 4):
        final = json.loads(
            (exp / f"eval/corpus-{n_src}spk_8k/test_{n_src}spk/final_metrics.json").read_text()
        )
        row = whole[
            (whole["set"] == f"corpus-{n_src}spk_8k/test_{n_src}spk")
            & (whole["system"] == "learnt")
        ].iloc[0]
        assert all(
            row[name] == pytest.approx(final[name]["mean"], abs=1e-3)
            for name in ("si_sdr", "sdr", "sir")
        )
    scores = pd.read_csv(exp / "eval/corpus-2spk_8k/test_2spk/all_metrics.csv")
    manifest = read_manifest(made / "manifests" / "2spk_8k" / "test_2spk.csv")
    by_t60 = table[
        (table["condition"] == "t60 (s)")
        & table["set"].str.endswith("2spk")
        & (table["system"] == "learnt")
    ]
    expected = scores["si_sdr"][manifest["t60"].sort_values().index]  # a mixture in each half
    assert np.allclose(by_t60["si_sdr"], expected, atol=1e-3)  # parts in the order of the condition
    assert {"all", "t60 (s)", "distance (m)", "noise (dB)", "input_si_sdr (dB)"} == set(
        table["condition"]
    )
    assert "nothing evaluated" in message(
        capsys, local["breakdown"].main, ["--exp", str(tmp_path), *out]
    )


def test_a_system_of_a_fixed_number_of_sources_is_evaluated_on_the_set_of_that_number(
    local, made, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(local["evaluate_all"], "evaluate", calls.append)
    exp = two_step_model(tmp_path / "fixed/model.pth").parent
    local["evaluate_all"].main(["--exp", str(exp), "--data", str(made)])
    left_out = {Path(call[3]).stem: "--no_system" in call for call in calls}
    assert left_out == {"test_2spk": False, "test_3spk": True, "test_4spk": True}
    calls.clear()
    local["evaluate_all"].main(["--exp", str(exp), "--data", str(made), "--references", "none"])
    assert [Path(call[3]).stem for call in calls] == ["test_2spk"]
    calls.clear()
    local["evaluate_all"].main(["--exp", str(surrogate(tmp_path / "any")), "--data", str(made)])
    assert [("--no_system" in call) for call in calls] == [False] * 3


def stub(signal, sample_rate):
    return "d says 0" if sample_rate == RATE and signal.ndim == 1 else ""


def test_word_error_rate_by_a_recogniser_of_the_user(local, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_recogniser", sys.modules[__name__])
    manifest = made / "manifests" / "2spk_8k" / "test_2spk.csv"
    options = [
        "--exp",
        str(surrogate(tmp_path / "model")),
        "--manifest",
        str(manifest),
        "--out",
        str(tmp_path / "wer.csv"),
    ]
    local["score_wer"].main([*options, "--recogniser", "my_recogniser:stub"])
    frame = read_manifest(manifest)
    texts = frame[["text_1", "text_2"]].to_numpy().ravel().tolist()
    expected = 100 * jiwer.wer(texts, ["d says 0"] * len(texts))
    assert f"estimates {expected:6.1f} %" in capsys.readouterr().out
    assert "no_such_module" in message(
        capsys, local["score_wer"].main, [*options, "--recogniser", "no_such_module:f"]
    )
    assert "whisper:NAME" in message(
        capsys, local["score_wer"].main, [*options, "--recogniser", "whisper"]
    )
    frame.assign(text_2="").to_csv(manifest.with_name("partly.csv"), index=False)
    options[3] = str(manifest.with_name("partly.csv"))
    told = message(
        capsys, local["score_wer"].main, [*options, "--recogniser", "my_recogniser:stub"]
    )
    assert "2 mixtures lack a text" in told
