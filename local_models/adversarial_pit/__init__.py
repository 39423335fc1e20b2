"""Adversarial permutation invariant training (Postolache et al., ICASSP 2023).

Start with system.py: the system, and a class for each step of its training. discriminator.py: a discriminator and its
losses; discriminator_networks.py: its networks; i_replacement.py: the tuples that it is shown; balancer.py: the weight
of its gradient; tdcnpp.py, band_split.py: mask networks; stft_masking.py: masks on an STFT and mixture consistency.
"""

from local_models.adversarial_pit.band_split import BandSplit
from local_models.adversarial_pit.system import AdversarialPIT
from local_models.adversarial_pit.tdcnpp import TDCNpp

__all__ = ["AdversarialPIT", "BandSplit", "TDCNpp"]
