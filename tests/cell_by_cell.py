"""The published Masker and Denoiser as its programs step through it: a cell at a time, each state put into its slot."""

import torch
from torch import nn
from torch.nn import functional as F


class CellByCell(nn.Module):
    """MDL1 (`mdl1`): encoder residuals beside the recurrence, encoded input added to the decoder's state.

    Or the ICASSP system: encoder residuals inside the recurrence, recurrent inference of the decoder.
    The backward half is put together in the order in which it was read. Attribute names are those of
    local_models.masker_denoiser.network, so that weights can be copied.
    """

    def __init__(
        self,
        n_bins,
        n_heard,
        denoiser_size,
        mdl1,
        frames=60,
        context=10,
        iterations=0,
        tolerance=1e-3,
    ):
        super().__init__()
        self.n_heard, self.frames, self.context, self.mdl1 = n_heard, frames, context, mdl1
        self.iterations, self.tolerance = iterations, tolerance
        self.ahead, self.behind = nn.GRUCell(n_heard, n_heard), nn.GRUCell(n_heard, n_heard)
        self.decoder = nn.GRUCell(2 * n_heard, 2 * n_heard)
        self.mask = nn.Linear(2 * n_heard, n_bins)
        self.denoiser = nn.Sequential(
            nn.Linear(n_bins, denoiser_size), nn.ReLU(), nn.Linear(denoiser_size, n_bins), nn.ReLU()
        )

    def load(self, network):
        """Take over the weights of a `MaskerDenoiser`."""
        state = {name.removesuffix("_l0"): value for name, value in network.state_dict().items()}
        self.load_state_dict(state)
        return self

    def encode(self, x):
        batch, heard, context = len(x), self.n_heard, self.context
        encoded = x.new_zeros(batch, self.frames - 2 * context, 2 * heard)
        ahead = behind = x.new_zeros(batch, heard)
        for t in range(self.frames):
            first, last = x[:, t, :heard], x[:, self.frames - 1 - t, :heard]
            ahead, behind = self.ahead(first, ahead), self.behind(last, behind)
            out = [ahead + first, behind + last]
            if not self.mdl1:
                ahead, behind = out
            if context <= t < self.frames - context:
                encoded[:, t - context] = torch.cat(out, dim=1)
        return encoded

    def decode(self, encoded):
        state = torch.zeros_like(encoded[:, 0])
        decoded = torch.zeros_like(encoded)
        for t in range(encoded.shape[1]):
            state = self.decoder(encoded[:, t], state)
            if self.mdl1:
                state = state + encoded[:, t]
            decoded[:, t] = state
        return decoded

    def forward(self, x):
        """(batch, frames, bin) to masked and denoised spectra and decoder states; stops by the mean of the batch."""
        if self.training:
            x = (
                x.detach().requires_grad_()
            )  # as the programs do, though they do not use this gradient
        hidden = self.decode(self.encode(x))
        for _ in range(self.iterations):
            before, hidden = hidden, self.decode(hidden)
            if F.mse_loss(hidden, before) < self.tolerance:
                break
        masked = F.relu(self.mask(hidden)) * x[:, self.context : self.frames - self.context]
        return masked, self.denoiser(masked) * masked, hidden
