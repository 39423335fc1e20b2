"""Two-step training on learnt latent targets (Tzinis et al., ICASSP 2020).

Start with system.py: the system, and a class for each step of its training. front_end.py: encoder, oracle masks and
decoders, which step 1 trains; latent_losses.py: the losses of step 2; tdcn.py: the mask networks TDCN and RTDCN.
"""

from local_models.two_step.system import TwoStep
from local_models.two_step.tdcn import RTDCN, TDCN

__all__ = ["RTDCN", "TDCN", "TwoStep"]
