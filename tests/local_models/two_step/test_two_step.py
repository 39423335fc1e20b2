import pytest
import pytorch_lightning as pl
import torch
from asteroid.losses import pairwise_neg_sisdr
from asteroid.masknn import DPRNN, TDConvNet

from local_models.system import Optimisation
from local_models.two_step import latent_losses
from local_models.two_step.system import TwoStep


def small_separator(in_chan, n_src):
    return TDConvNet(
        in_chan,
        n_src,
        n_blocks=2,
        n_repeats=1,
        bn_chan=8,
        hid_chan=16,
        skip_chan=0,
        mask_act="softmax",
    )


def system(n_src=2, seed=0, **options):
    torch.manual_seed(seed)
    return TwoStep(small_separator, n_src=n_src, **{"n_basis": 16, "kernel_size": 20} | options)


def batch(n_src=2, seed=1, time=2000):
    draw = torch.Generator().manual_seed(seed)
    sources = torch.randn(3, n_src, 1, time, generator=draw) * 0.1
    return {"mixture": sources.sum(1), "sources": sources, "id": ["a", "b", "c"]}


def train(model, step, updates=3, lr=1e-2, data=None):
    model.begin_step(step, Optimisation(lr=lr, halve_after=0))
    optimizer = model.configure_optimizers()
    model.train()
    for _ in range(updates):
        loss = model.step.losses(data or batch(model.n_src))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def validate(model, data):
    model.eval()
    # The gains of the decoders are added up over the devices of a trainer.
    model.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    model.on_validation_epoch_start()
    values = model.step.losses(data)
    model.on_validation_batch_end(None, data, 0)
    return {name: value.item() for name, value in values.items()}


PAIRS = {"filterbank": "analytic_free", "bias": False, "oracle_mask": "ratio"}
FRONT_ENDS = {
    "published": {},
    "ratio": {"bias": False, "oracle_mask": "ratio"},
    "tied": {"bias": False, "oracle_mask": "ratio", "decoder": "tied"},
    "pairs": PAIRS | {"decoder": "tied", "log_features": True},
    "clean codes": PAIRS | {"target": "source"},
    "stft": {"filterbank": "stft", "n_basis": 20, "bias": False, "oracle_mask": "power"},
}


@pytest.mark.fast_every(5)
@pytest.mark.parametrize("n_src", [2, 3])
@pytest.mark.parametrize("latent_loss", ["si_sdr", "heard", "decoder_metric"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_separator_step_learns_on_every_latent_loss_and_leaves_the_front_end_alone(
    n_src, latent_loss, front_end
):
    model = system(n_src, latent_loss=latent_loss, **FRONT_ENDS[front_end])
    before = {name: value.clone() for name, value in model.frontend.state_dict().items()}
    data = batch(n_src)
    model.begin_step("separator", Optimisation())
    start = validate(model, data)["loss"]
    train(model, "separator", 12, data=data)
    assert validate(model, data)["loss"] < start
    for name, value in model.frontend.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_target_is_the_clean_code_if_asked_for():
    model = system(target="source", **PAIRS)
    model.begin_step("separator", Optimisation())
    data = batch()
    with torch.no_grad():
        mixture, sources, _ = model.normalised(data)
        code = model.frontend.encode(mixture)
        masks = model.separator(model.frontend.features(code))
        latents = model.frontend.masked(masks, code)
        pairwise = latent_losses.si_sdr(latents, model.frontend.encode(sources))
    # The better of two orders.
    same = pairwise.diagonal(dim1=1, dim2=2).mean(1)
    swapped = pairwise.flip(2).diagonal(dim1=1, dim2=2).mean(1)
    expected = torch.minimum(same, swapped).mean()
    assert validate(model, data)["loss"] == pytest.approx(expected.item(), abs=1e-4)


def test_clean_codes_of_a_relu_are_refused_as_targets():
    with pytest.raises(ValueError, match="target source"):
        system(target="source")


def test_a_front_end_that_codes_silence_is_told_of(capsys):
    for bias, told in ((2.0, True), (0.0, False)):
        model = system()
        with torch.no_grad():
            model.frontend.encoder_bias.fill_(bias)
        model.begin_step("frontend", Optimisation())
        share = validate(model, batch())["silence_share"]
        assert (share > 0.1) == told
        model.step.after_training({"val_silence_share": torch.tensor(share)})
        assert ("silence" in capsys.readouterr().out) == told


def test_frontend_step_trains_the_front_end_only():
    model = system()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, "frontend")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("separator", "gain")), name


@pytest.mark.parametrize("step", ["joint", "finetune"])
def test_joint_training_moves_front_end_and_separator(step):
    model = system()
    before = {name: value.clone() for name, value in model.named_parameters()}
    train(model, step)
    moved = {
        name.split(".")[0]
        for name, value in model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == {"frontend", "separator"}


def test_front_end_loss_knows_the_order_of_the_sources(monkeypatch):
    model, data = system(), batch()
    train(model, "frontend", 150, data=data)
    assert validate(model, data)["si_sdr"] > 0
    masks = model.frontend.oracle_masks
    monkeypatch.setattr(model.frontend, "oracle_masks", lambda sources: masks(sources.flip(1)))
    assert validate(model, data)["si_sdr"] < 0


def test_separation_loss_ignores_the_order_of_the_sources():
    model, data = system(), batch()
    for step in ("separator", "joint"):
        model.begin_step(step, Optimisation())
        swapped = data | {"sources": data["sources"].flip(1)}
        assert validate(model, data)["loss"] == pytest.approx(
            validate(model, swapped)["loss"], abs=1e-4
        )


def test_estimates_have_sign_and_level_of_the_sources_even_if_a_decoder_is_inverted():
    model, data = system(n_basis=64), batch()
    train(model, "frontend", 150, data=data)
    with torch.no_grad():
        inverted, quiet = model.frontend.decoders
        inverted.filterbank._filters *= -3
        model.frontend.decoder_bias[0] *= -3
        quiet.filterbank._filters *= 0.2
        model.frontend.decoder_bias[1] = 5.0
        validate(model, data)
        estimates = model.oracle(data["mixture"], data["sources"])
    assert estimates.mean(-1).abs().max() < 1e-5
    cross = (estimates * data["sources"]).sum((0, 2, 3))
    assert (cross > 0).all()
    torch.testing.assert_close(
        cross / estimates.square().sum((0, 2, 3)), torch.ones(2), atol=0.02, rtol=0
    )


def test_estimates_follow_the_level_of_the_mixture():
    model, data = system().eval(), batch()
    with torch.no_grad():
        reference = model.separate(data["mixture"])
        for gain in (1e-4, 30.0):
            torch.testing.assert_close(
                model.separate(gain * data["mixture"]) / gain, reference, atol=1e-5, rtol=1e-3
            )


@pytest.mark.parametrize("time", [1, 9, 4001])
def test_silence_and_short_signals_are_separated_without_nan(time):
    model = system().eval()
    for mixture in (torch.zeros(2, 1, time), torch.ones(2, 1, time)):
        estimates = model.separate(mixture)
        assert estimates.shape == (2, 2, 1, time)
        assert torch.isfinite(estimates).all()
        assert estimates.abs().max() < 1e-5


@pytest.mark.parametrize("step", ["frontend", "separator", "joint"])
def test_silent_training_examples_do_no_harm(step):
    model, data = system(), batch()
    for signal in data.values():
        if torch.is_tensor(signal):
            signal[0] = 0
    train(model, step, 2, data=data)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_validation_shows_time_scores_latent_scores_and_instruments():
    model = system()
    model.begin_step("frontend", Optimisation())
    values = validate(model, batch())
    assert values.keys() == {
        "loss",
        "si_sdr",
        "si_sdri",
        "constant_mask_latent_si_sdr",
        "latent_cosine",
        "silence_share",
        "heard_share",
        "masks_alone_si_sdr",
    }
    assert values["constant_mask_latent_si_sdr"] > 3
    model.begin_step("separator", Optimisation())
    assert validate(model, batch()).keys() == {"loss", "si_sdr", "si_sdri", "latent_si_sdr"}


def test_validation_matches_three_sources_each_with_its_own_estimate(monkeypatch):
    # A cycle of three is not its own inverse, as a swap of two is.
    model, data = system(3).eval(), batch(3)
    sources = data["sources"][:, :, 0]
    estimates = sources[:, [1, 2, 0]] + 0.01 * torch.randn(sources.shape)
    monkeypatch.setattr(model, "estimate", lambda mixture: estimates)
    model.begin_step("joint", Optimisation())
    expected = -pairwise_neg_sisdr(estimates.roll(1, 1), sources).diagonal(dim1=1, dim2=2)
    assert validate(model, data)["si_sdr"] == pytest.approx(expected.mean().item(), abs=1e-3)
    # The gains are of each estimate and the source that it was matched with.
    _, sources, _ = model.normalised(data)
    cross = (estimates * sources[:, [1, 2, 0]]).sum((0, 2))
    gains = model.gain_cross / model.gain_power
    torch.testing.assert_close(gains, cross / estimates.square().sum((0, 2)), atol=0, rtol=0.01)


def latents_and_targets(loss):
    """A step with latents of more bases than a frame has samples, so that decoders do not hear all of them."""
    model = system(n_basis=32, kernel_size=10, latent_loss=loss)
    model.begin_step("separator", Optimisation())
    latents, targets = torch.randn(2, 3, 2, 32, 40, generator=torch.Generator().manual_seed(3))
    return model, latents, targets


@pytest.mark.parametrize("loss", ["heard", "decoder_metric"])
def test_what_decoders_do_not_hear_is_no_part_of_a_loss_that_listens(loss):
    model, latents, targets = latents_and_targets(loss)
    with torch.no_grad():
        expected = model.step.pairwise(latents, targets, loss)
        silent = [signal - model.frontend.heard(signal) for signal in (latents, targets)]
        for other in ((latents + silent[0], targets), (latents, targets + silent[1])):
            torch.testing.assert_close(
                model.step.pairwise(*other, loss), expected, atol=1e-3, rtol=1e-3
            )
        # Of the paper's loss it is a part.
        plain = model.step.pairwise(latents, targets, "si_sdr")
        assert (model.step.pairwise(latents, targets + silent[1], "si_sdr") - plain).abs().max() > 1


def test_the_decoder_metric_is_the_si_sdr_of_decoded_latents_against_decoded_targets():
    model, latents, targets = latents_and_targets("decoder_metric")
    with torch.no_grad():
        given = model.step.pairwise(latents, targets, "decoder_metric")
        # 40 frames that begin 5 samples apart.
        estimates = model.frontend.decode(latents, 200)
        references = model.frontend.decode(targets, 200)
    torch.testing.assert_close(given, pairwise_neg_sisdr(estimates, references))


def test_another_mask_network_of_asteroid_is_a_separator_too():
    model = TwoStep(
        lambda n, s: DPRNN(
            n, s, bn_chan=8, hid_size=8, chunk_size=10, n_repeats=1, mask_act="softmax"
        ),
        n_basis=16,
    )
    assert model.separate(torch.randn(1, 1, 801)).shape == (1, 2, 1, 801)


def test_a_single_source_is_refused():
    with pytest.raises(ValueError, match="n_src 1"):
        TwoStep(small_separator, n_src=1)


@pytest.mark.parametrize("step", ["frontend", "separator", "joint"])
def test_encoder_decoder_and_losses_stay_in_32_bit_under_mixed_precision(step):
    model, data = system(), batch()
    model.begin_step(step, Optimisation())
    plain = validate(model, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = validate(model, data)
        assert model.frontend.encoder(data["mixture"]).dtype == torch.bfloat16
    assert mixed["loss"] == pytest.approx(plain["loss"], abs=1e-5 if step == "frontend" else 0.5)
