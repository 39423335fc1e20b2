import numpy as np
import pytest
import torch

from local_models.two_step import latent_losses

NAMES = ["si_sdr", "zero_mean", "centred_snr"]


def latents(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(name, estimates, targets):
    """Negative dB of one pair (source, basis, frame) at a time, by the textbook formulas, in numpy."""
    n_src = len(targets)
    estimates, targets = estimates.numpy(), targets.numpy()
    if name == "zero_mean":
        estimates, targets = (x - x.mean(-1, keepdims=True) for x in (estimates, targets))
    if name == "centred_snr":
        shared = targets.mean(0)
        estimates, targets = estimates - shared, targets - shared
    result = np.zeros((n_src, n_src))
    for i in range(n_src):
        for j in range(n_src):
            e, t = estimates[i].ravel(), targets[j].ravel()
            wanted = t if name == "centred_snr" else (e @ t) / (t @ t) * t
            result[i, j] = -10 * np.log10((wanted @ wanted) / ((e - wanted) @ (e - wanted)))
    return result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_src", [2, 3])
def test_pairwise_losses_equal_the_textbook(name, n_src):
    estimates, targets = latents(0, 4, n_src, 5, 7), latents(1, 4, n_src, 5, 7)
    computed = getattr(latent_losses, name)(estimates, targets)
    for b in range(4):
        np.testing.assert_allclose(
            computed[b], reference(name, estimates[b], targets[b]), atol=1e-3
        )


def test_equal_weights_leave_the_weighted_loss_as_it_is():
    estimates, targets = latents(0, 2, 2, 5, 7), latents(1, 2, 2, 5, 7)
    weighted = latent_losses.energy_weighted(estimates, targets, torch.full((1, 5), 3.0))
    torch.testing.assert_close(
        weighted, latent_losses.zero_mean(estimates, targets), atol=1e-3, rtol=0
    )


def test_weights_favour_the_bases_that_are_heard():
    targets = latents(1, 1, 2, 5, 7)
    estimates = targets.clone()
    estimates[:, :, 0] = latents(2, 1, 2, 7)
    deaf, loud = torch.ones(2, 5), torch.ones(2, 5)
    deaf[:, 0], loud[:, 0] = 1e-4, 1e4
    assert (
        (
            latent_losses.energy_weighted(estimates, targets, deaf)
            < latent_losses.energy_weighted(estimates, targets, loud)
        )
        .diagonal(dim1=1, dim2=2)
        .all()
    )


def test_a_constant_mask_scores_well_in_plain_latent_si_sdr_and_badly_without_the_shared_part():
    code = latents(0, 1, 1, 8, 50)
    masks = (latents(1, 1, 2, 8, 50) * 0.4).softmax(1)
    targets, constant = masks * code, 0.5 * code.expand(-1, 2, -1, -1)
    plain = -latent_losses.si_sdr(constant, targets).diagonal(dim1=1, dim2=2).mean()
    centred = -latent_losses.centred_snr(constant, targets).diagonal(dim1=1, dim2=2).mean()
    assert plain > 15
    assert abs(centred) < 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["silent targets", "identical", "one frame", "loud"])
def test_degenerate_latents_give_finite_losses_and_gradients(name, case):
    targets = latents(0, 2, 2, 5, 1 if case == "one frame" else 9).float()
    estimates = latents(1, *targets.shape).float()
    if case == "silent targets":
        targets = torch.zeros_like(targets)
    if case == "identical":
        estimates = targets.clone()
    if case == "loud":
        estimates, targets = estimates * 1e6, targets * 1e6
    estimates.requires_grad_(True)
    loss = getattr(latent_losses, name)(estimates, targets)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(estimates.grad).all()
