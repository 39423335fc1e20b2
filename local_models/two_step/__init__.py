"""Two-step training on learnt latent targets (Tzinis et al., ICASSP 2020).

Start with system.py: the system, and a class for each step of its training. front_end.py: encoder, oracle masks and
decoders, which step 1 trains; instruments.py: whether its masks mask; latent_losses.py: the loss of step 2; tdcn.py:
the mask networks TDCN and RTDCN.
"""

from local_models.two_step.system import TwoStep
from local_models.two_step.tdcn import RTDCN, TDCN

__all__ = ["RTDCN", "TDCN", "TwoStep"]
