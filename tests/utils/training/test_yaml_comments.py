"""What the comments of the configurations promise is what they resolve to."""

import pytest

from tests.support import ROOT
from utils.training import config

INIT = "system.init_args"
JOINT = "steps.joint"
DISCRIMINATORS = f"{INIT}.discriminators"
PUBLISHED_ISS = {"n_bottleneck": 128, "n_sublayers": 3, "dropout": 0.5, "update": "iss"}

# (file, words of its comment, what they say of its keys)
PROMISES = [
    ("fuss/pit_tdcnpp", "Adam\n# 1e-4", {"steps.pit.optim.lr": 1e-4}),
    (
        "fuss/pit_tdcnpp",
        "batches of 3 whole clips",
        {"steps.pit.batch_size": 3, "data.segment": 10},
    ),
    ("fuss/pit_tdcnpp", "no clipping of gradients", {"steps.pit.gradient_clip": 0}),
    ("fuss/adversarial_band_split", "no faded edges", {f"{INIT}.edges": "padded"}),
    ("fuss/small_pit", "at 10 dB", {f"{INIT}.snr_max": 10}),
    ("fuss/mini_adversarial", "first 40 are the", {f"{INIT}.game.warm_up": 40}),
    (
        "fuss/small_pit",
        "never remixed",
        {"data.dataset": {"class_path": "utils.data.scenes.Scenes"}},
    ),
    ("fuss/small_continued", "its last model", {"steps.continued.keep": "last"}),
    ("musdb18/asteroid_convtasnet", "for voice and", {"data.dataset.init_args.channels": 2}),
    ("musdb18/asteroid_xumx", "segments of 6 s", {"data.segment": 6}),
    ("musdb18/asteroid_xumx", "Adam, rate 1e-3", {f"{JOINT}.optim.lr": 1e-3}),
    ("musdb18/asteroid_xumx", "decay 1e-5", {f"{JOINT}.optim.weight_decay": 1e-5}),
    ("musdb18/asteroid_xumx", "1000 epochs", {f"{JOINT}.epochs": 1000}),
    ("musdb18/asteroid_xumx", "in the 81st", {f"{JOINT}.optim.halve_after": 81}),
    ("musdb18/asteroid_xumx", "0.25 to 1.25", {"data.dataset.init_args.gain": [0.25, 1.25]}),
    ("musdb18/asteroid_xumx", "swapped channels", {"data.dataset.init_args.swap": True}),
    ("musdb18/mad", "up to 10 passes", {f"{INIT}.network.iterations": 10}),
    ("musdb18/mdl1", "2e-7 times", {f"{INIT}.objective.hidden_norm": 2e-7}),
    ("musdb18/mdl1", "mean of both channels", {"data.dataset.init_args.channels": 1}),
    ("musdb18/mir1k_mdl1", "1024 samples", {f"{INIT}.n_fft": 1024, f"{INIT}.network.n_heard": 513}),
    ("musdb18/modern", "random gains", {"data.dataset.init_args.gain": [0.25, 1.25]}),
    ("musdb18/modern", "standardised\n# input", {f"{INIT}.network.standardise": True}),
    ("musdb18/modern", "magnitude of the voice", {f"{INIT}.objective.target": "magnitude"}),
    ("musdb18/modern", "multichannel Wiener", {f"{INIT}.wiener": 1, f"{INIT}.n_mics": 2}),
    ("musdb18/small_modern", "at most 3 further", {f"{INIT}.network.iterations": 3}),
    ("musdb18/small_modern", "on mono files", {f"{INIT}.n_mics": 1}),
    ("multichannel/surrogate_iss", "The published network", {INIT: PUBLISHED_ISS}),
    ("multichannel/surrogate_ip2", "pairwise updates", {f"{INIT}.update": "ip2"}),
    ("multichannel/surrogate_ip2", "few iterations", {f"{INIT}.n_iter": 5}),
    ("multichannel/surrogate_ip2", "heavy-tailed", {f"{INIT}.prior": "student"}),
    ("multichannel/small_surrogate_iss", "heavy-tailed", {f"{INIT}.prior": "student"}),
    ("multichannel/surrogate_tiss", "dereverberation taps", {f"{INIT}.taps": 5}),
    ("multichannel/surrogate_tiss", "anechoic", {"data.dataset.init_args.reference": "anechoic"}),
    ("wsj0-2mix/asteroid_convtasnet", "batch 8", {f"{JOINT}.batch_size": 8}),
    ("wsj0-2mix/asteroid_convtasnet", "segments of 4 s", {"data.segment": 4}),
    (
        "wsj0-2mix/asteroid_dprnn",
        "windows of 2 samples",
        {f"{INIT}.model.init_args.kernel_size": 2},
    ),
    ("wsj0-2mix/asteroid_dprnn", "batch 4, 4 s", {f"{JOINT}.batch_size": 4, "data.segment": 4}),
    ("wsj0-2mix/two_step_tdcn", "N = 256", {f"{INIT}.n_basis": 256}),
    ("wsj0-2mix/sounds_two_step_tdcn", "4 s long", {"data.segment": 4}),
    (
        "wsj0-2mix/sounds_two_step_tdcn",
        "-2.5 to 2.5 dB (uniformly)",
        {"data.dynamic_mixing": {"max_gain": 2.5, "levels": "opposite"}},
    ),
    (
        "wsj0-2mix/sounds_two_step_tdcn",
        "20,000 mixtures an epoch and 120 epochs",
        {"data.epoch_size": 20000, "steps.separator.epochs": 120},
    ),
]


def values_of(name: str) -> dict:
    recipe, stem = name.split("/")
    return config.read_yaml(ROOT / f"egs/{recipe}/conf/{stem}.yml")


def at(values, key: str):
    for part in key.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize(("name", "words", "promised"), PROMISES)
def test_a_comment_says_what_the_keys_hold(name, words, promised):
    recipe, stem = name.split("/")
    text = (ROOT / f"egs/{recipe}/conf/{stem}.yml").read_text()
    assert words in text, "the comment has changed: this test must follow it"
    values = values_of(name)
    for key, value in promised.items():
        held = at(values, key)
        if isinstance(value, dict):
            held = {each: held[each] for each in value}
        assert held == value, key


def test_the_small_context_yamls_differ_by_what_they_replace():
    standard, replaced = (values_of(f"fuss/small_{name}") for name in ("context0", "waveform"))
    [of_standard], [of_replaced] = (at(values, DISCRIMINATORS) for values in (standard, replaced))
    assert of_standard["n_real"] == 0 and standard["description"].endswith("I = 0")
    assert of_replaced == of_standard | {"n_real": "all_but_one"}
    [of_matching] = at(values_of("fuss/small_matching"), DISCRIMINATORS)
    assert of_matching == of_replaced | {"matching": 10}
    assert standard["steps"] == replaced["steps"]


@pytest.mark.parametrize("name", ["pit", "continued", "context0", "waveform", "matching"])
def test_yamls_of_two_sources_differ_by_their_slots(name):
    two, small = (values_of(f"fuss/{size}_{name}") for size in ("two", "small"))
    assert two["system"]["init_args"].pop("n_src") == 2
    assert two.pop("description") == f"{small.pop('description')}, two sources"
    assert two == small


def test_yamls_of_several_discriminators_have_the_ones_that_they_tell_of():
    for name, families, domains in (("adversarial_tdcnpp", ["context"] * 2, {"stft", "waveform"}),):
        discriminators = at(values_of(f"fuss/{name}"), DISCRIMINATORS)
        assert sorted(each["family"] for each in discriminators) == families
        assert {each["domain"] for each in discriminators} == domains


def test_budgets_that_comments_call_equal_are_equal():
    def epochs(name):
        return sum(step["epochs"] for step in values_of(name)["steps"].values())

    def updates(name, step, mixtures):
        step = at(values_of(name), f"steps.{step}")
        return step["epochs"] * (mixtures // step["batch_size"])

    assert updates("fuss/pit_tdcnpp", "pit", 20_000) == pytest.approx(1e6, rel=0.01)
    assert updates("fuss/mini_adversarial", "adversarial", 200) == 200
    assert updates("fuss/small_pit", "pit", 600) == 6000
    assert updates("fuss/small_continued", "continued", 600) == 3000
    for size in ("small", "mini"):
        control = at(values_of(f"fuss/{size}_continued"), "steps.continued")
        game = "adversarial" if size == "mini" else "waveform"
        assert control == at(values_of(f"fuss/{size}_{game}"), "steps.adversarial")
    assert epochs("fuss/small_asteroid_convtasnet") == epochs("fuss/small_context0")
    smallest = {"small_two_step_tdcn", "small_joint_tdcn", "small_asteroid_convtasnet"}
    smallest |= {"small_two_step_tdcn_finetune", "small_frontend_joint_tdcn"}
    assert {epochs(f"wsj0-2mix/{name}") for name in smallest} == {16}


def test_systems_that_comments_call_as_small_as_small_mdl1_are():
    sizes = ("n_heard", "denoiser_size")
    networks = [
        at(values_of(f"musdb18/{name}"), f"{INIT}.network")
        for name in ("small_mdl1", "small_mad", "small_modern")
    ]
    assert [[network[size] for size in sizes] for network in networks] == [[160, 256]] * 3
