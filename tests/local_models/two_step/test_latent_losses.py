import numpy as np
import pytest
import torch

from local_models.two_step import latent_losses


def latents(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n_src", [2, 3])
def test_the_pairwise_loss_equals_the_textbook(n_src):
    estimates = latents(0, 4, n_src, 5, 7)
    targets = latents(1, 4, n_src, 5, 7)
    computed = latent_losses.si_sdr(estimates, targets)
    for b in range(4):
        for i in range(n_src):
            for j in range(n_src):
                # One pair at a time, in numpy.
                estimate = estimates[b, i].numpy().ravel()
                target = targets[b, j].numpy().ravel()
                wanted = (estimate @ target) / (target @ target) * target
                error = estimate - wanted
                expected = -10 * np.log10((wanted @ wanted) / (error @ error))
                assert computed[b, i, j] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("case", ["silent targets", "identical", "one frame", "loud"])
def test_degenerate_latents_give_finite_losses_and_gradients(case):
    targets = latents(0, 2, 2, 5, 1 if case == "one frame" else 9).float()
    estimates = latents(1, *targets.shape).float()
    if case == "silent targets":
        targets = torch.zeros_like(targets)
    if case == "identical":
        estimates = targets.clone()
    if case == "loud":
        estimates = estimates * 1e6
        targets = targets * 1e6
    estimates.requires_grad_(True)
    loss = latent_losses.si_sdr(estimates, targets)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(estimates.grad).all()
