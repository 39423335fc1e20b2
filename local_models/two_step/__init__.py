"""Two-step training on learnt latent targets (Tzinis et al., ICASSP 2020).

system.py: the training steps; front_end.py: encoder, masks and decoder of step 1; latent_losses.py: losses of step 2;
tdcn.py: the separators.
"""

from local_models.two_step.system import TwoStep
from local_models.two_step.tdcn import RTDCN, TDCN

__all__ = ["RTDCN", "TDCN", "TwoStep"]
