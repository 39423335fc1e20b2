"""What a front end's masks do: numbers that tell one that masks from one that writes waveforms onto a constant.

With softmax masks and biases, step 1 has a degenerate best solution. For E(s) = ReLU(g W s + b) with so large a b that
the ReLU never acts, the masked code of the first of two sources is

    v1 = b/2 + g W x/2 + g b W(s1 - s2)/4 + O(g^2),

which for b = 2 is 1 + g W s1: the decoder returns s1 exactly as g goes to 0, while every mask tends to 1/2. So the
SI-SDR of oracle masks alone says nothing about a front end.
"""

import torch
from torch import Tensor

from local_models.scores import si_snr
from local_models.two_step import latent_losses
from local_models.two_step.front_end import FrontEnd

# Share of the energy of the code that may be there for silence too.
LARGEST_SILENCE_SHARE = 0.1


@torch.no_grad()
def measure(frontend: FrontEnd, mixture: Tensor, sources: Tensor) -> dict[str, Tensor]:
    """Means over a batch of mixtures (batch, time) and sources (batch, n_src, time) of the level that is encoded.

    Returns:
        `constant_mask_latent_si_sdr`: SI-SDR in dB of the latents of equal masks, against those of oracle masks.
        `latent_cosine`: of the oracle latents of two sources, mean over all pairs.
        `silence_share`: energy of the code of silence, E(0), over that of the mixture's code.
        `heard_share`: share of the error of equal masks that the decoders hear (see `FrontEnd.heard`).
        `masks_alone_si_sdr`: SI-SDR in dB of what the masks say without any mixture, decode((m_i - 1/S) E(0)), against
            s_i less the mean of the sources; -80 if that is silent, as it should be.
    """
    n_src = sources.shape[1]
    code = frontend.encode(mixture)
    silence = frontend.encode(torch.zeros_like(mixture))
    masks = frontend.oracle_masks(sources)
    equal = torch.full_like(masks, 1 / n_src)
    targets = frontend.masked(masks, code)
    constant = frontend.masked(equal, code)
    # Cosines of all pairs of different sources.
    vectors = torch.nn.functional.normalize(targets.flatten(2), dim=-1)
    cosines = vectors @ vectors.mT
    pairs = torch.triu_indices(n_src, n_src, offset=1)
    # How near latents of equal masks come to those of the oracle, and what they lack.
    latent_si_sdr = -latent_losses.si_sdr(constant, targets)
    error = constant - targets
    alone, departure = without_mixture(frontend, sources)
    return {
        "constant_mask_latent_si_sdr": latent_si_sdr.diagonal(dim1=1, dim2=2).mean(),
        "latent_cosine": cosines[:, pairs[0], pairs[1]].mean(),
        "silence_share": silence.square().sum() / code.square().sum().clamp(min=1e-12),
        "heard_share": frontend.heard(error).square().sum() / error.square().sum().clamp(min=1e-12),
        "masks_alone_si_sdr": si_snr(alone, departure).mean(),
    }


@torch.no_grad()
def without_mixture(frontend: FrontEnd, sources: Tensor) -> tuple[Tensor, Tensor]:
    """What oracle masks say by themselves, where there is no mixture that they could mask.

    Args:
        sources: (batch, n_src, time).

    Returns:
        decode((m_i - 1/S) E(0)), silent if masks only mask, and what it is compared with, s_i less the mean of the
        sources; both (batch, n_src, time).
    """
    n_src = sources.shape[1]
    silence = frontend.encode(torch.zeros_like(sources[:, 0]))
    departures = frontend.oracle_masks(sources) - 1 / n_src
    alone = frontend.decode(frontend.masked(departures, silence), sources.shape[-1])
    if frontend.decoder_bias is not None:
        # A constant is nobody's sound.
        alone = alone - alone.mean(-1, keepdim=True)
    return alone, sources - sources.mean(1, keepdim=True)
