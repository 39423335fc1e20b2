"""Adversarial permutation invariant training (Postolache et al., ICASSP 2023).

system.py: the game of separator and discriminators; i_replacement.py: what a discriminator is shown; discriminators.py:
their networks; tdcnpp.py, band_split.py: separators; stft_masking.py: masks on an STFT and mixture consistency.
"""

from local_models.adversarial_pit.band_split import BandSplit
from local_models.adversarial_pit.system import AdversarialPIT
from local_models.adversarial_pit.tdcnpp import TDCNpp

__all__ = ["AdversarialPIT", "BandSplit", "TDCNpp"]
