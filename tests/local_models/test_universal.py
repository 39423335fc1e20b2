"""Scores in validation against the official ones, and Asteroid's networks on mixtures with silent slots."""

import pandas as pd
import pytest
import torch
from asteroid.models import ConvTasNet

from local_models.asteroid.universal import UniversalAsteroid
from local_models.log_mse import LogMSE, best_order
from local_models.scores import si_snr
from utils.evaluation.metrics import fuss


class Logged(UniversalAsteroid):
    def __init__(self):
        super().__init__(
            lambda n_src, **options: ConvTasNet(
                n_src,
                n_filters=8,
                bn_chan=4,
                hid_chan=4,
                skip_chan=4,
                n_blocks=1,
                n_repeats=1,
                **options,
            )
        )
        self.logged, self.weights = {}, {}

    def log(self, name, value, batch_size, **_):
        self.logged[name], self.weights[name] = value.item(), batch_size


def validate(model, *examples):
    """What is logged for (estimates, sources), (batch, n_src, time), of single batches."""
    model.eval()
    model.on_validation_epoch_start()
    for estimates, sources in examples:
        batch = {"sources": sources[:, :, None], "mixture": sources.sum(1, keepdim=True)}
        model.pit_losses(estimates[:, :, None], batch)
    model.on_validation_epoch_end()
    return model.logged


def tones():
    time = torch.arange(16000, dtype=torch.float64) / 16000
    return (
        torch.sin(2 * torch.pi * 440 * time),
        0.5 * torch.sin(2 * torch.pi * 1000 * time),
        torch.zeros(16000),
    )


def test_si_snr_has_the_golden_values():
    a, b, silence = tones()
    assert si_snr(a, a).item() == pytest.approx(80, abs=1e-3)
    assert si_snr(-3 * a, a).item() == pytest.approx(80, abs=1e-3)
    assert [
        si_snr(*pair).item() for pair in ((a, silence), (silence, a), (silence, silence))
    ] == pytest.approx([-80] * 3)
    assert si_snr(a + b, a).item() == pytest.approx(6.021, abs=1e-3)
    assert si_snr(32768 * (a + b).float(), a.float()).item() == pytest.approx(6.021, abs=1e-3)


def test_validation_scores_are_the_official_ones():
    a, b, silence = tones()
    sources = torch.stack([a, b, silence, silence])[None]
    logged = validate(Logged(), (torch.stack([silence, b, silence, a])[None], sources))
    assert (
        logged["val_msi"] == logged["val_si_sdri"] == pytest.approx((73.979 + 86.021) / 2, abs=1e-2)
    )
    logged = validate(Logged(), (torch.stack([a + b, silence, silence, silence])[None], sources))
    assert logged["val_msi"] == pytest.approx(
        0, abs=1e-3
    )  # the pair of the silent estimate is left out
    assert logged["val_si_sdri"] < -30


def test_single_sources_are_scored_apart_and_batches_together():
    a, b, silence = tones()
    pair, single = (
        torch.stack([a, b, silence, silence])[None],
        torch.stack([silence, a, silence, silence])[None],
    )
    logged = validate(Logged(), (pair, pair), (single, single))
    assert logged["val_si_sdr_single"] == pytest.approx(80, abs=1e-2)
    assert logged["val_msi"] == pytest.approx(80, abs=1e-2)
    assert validate(Logged(), (single, single))["val_msi"] == 0
    nothing = torch.zeros(1, 4, 100)
    assert validate(Logged(), (nothing, nothing)) == {
        "val_si_sdri": 0,
        "val_msi": 0,
        "val_si_sdr_single": 0,
        "val_under": 0,
        "val_over": 0,
    }


def test_a_validation_scores_as_the_evaluation_does():
    """Of estimates so poor that the order of the loss is another one than that of the score."""
    draw = torch.Generator().manual_seed(0)
    examples, rows, orders = [], [], []
    for n_active in (1, 2, 3, 4, 2, 4):
        sources = torch.zeros(4, 800)
        gains = 10 ** torch.randn(n_active, 1, generator=draw)
        sources[:n_active] = gains * torch.randn(n_active, 800, generator=draw)
        estimates = sources[torch.randperm(4, generator=draw)]
        estimates = estimates + 0.3 * torch.randn(4, 1, generator=draw) * sources.sum(0)
        examples.append((estimates[None], sources[None]))
        clip = fuss.clip_score(estimates.numpy(), sources.numpy(), sources.sum(0).numpy())
        rows.append(fuss.row(clip))
        orders.append(clip.order[:n_active].tolist())
    of_loss = [best_order(*example)[0].tolist() for example in examples]
    assert any(a != b[: len(a)] for a, b in zip(orders, of_loss, strict=True))
    expected = fuss.summary(pd.DataFrame(rows))
    logged = validate(Logged(), *examples)
    assert logged["val_msi"] == pytest.approx(expected["msi"]["mean"], abs=1e-4)
    assert logged["val_si_sdri"] == pytest.approx(expected["msi_all"]["mean"], abs=1e-4)
    single = expected["si_snr_1s_all"]["mean"]
    assert logged["val_si_sdr_single"] == pytest.approx(single, abs=1e-4)
    assert logged["val_under"] == pytest.approx(expected["under"])
    assert logged["val_over"] == pytest.approx(expected["over"])
    assert 0 < logged["val_over"] < 1


def test_devices_weigh_in_by_the_number_of_their_sources():
    """The scores of a set must not depend on how its mixtures are dealt out."""
    a, b, silence = tones()
    pair, single = (
        torch.stack([a, b, silence, silence])[None],
        torch.stack([silence, a, silence, silence])[None],
    )
    examples = [
        (pair, pair),
        (single, single),
        (torch.stack([a + b, silence, silence, silence])[None], pair),
    ]
    devices = [Logged(), Logged()]
    validate(devices[0], examples[0], examples[2])
    validate(devices[1], examples[1])
    for name, value in validate(Logged(), *examples).items():
        weights = [device.weights[name] for device in devices]
        assert all(isinstance(weight, float) for weight in weights)
        mean = sum(
            device.logged[name] * weight for device, weight in zip(devices, weights, strict=True)
        ) / sum(weights)
        assert mean == pytest.approx(value, abs=1e-4)


def test_an_asteroid_network_trains_on_silent_slots():
    torch.manual_seed(0)
    model = Logged().train()
    sources = torch.zeros(2, 4, 2000)
    sources[:, 0] = 0.1 * torch.randn(2, 2000)
    mixture = sources.sum(1)
    data = {"mixture": mixture[:, None], "sources": sources[:, :, None]}
    expected, _ = LogMSE()(model.separate(data["mixture"])[:, :, 0], sources, mixture)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model.losses(data)["loss"]
    assert first.item() == pytest.approx(expected.item(), abs=1e-4)
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.losses(data)["loss"]
        loss.backward()
        optimizer.step()
    assert loss < first - 2
    assert {"model_name", "state_dict"} <= model.pack().keys()
