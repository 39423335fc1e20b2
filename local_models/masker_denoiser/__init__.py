"""Masker and Denoiser, and its SiSEC 2018 form MDL1 (Mimilakis et al., ICASSP 2018).

system.py: the networks and their losses; overlapping_frames.py: sequences of frames; recurrence.py: GRUs;
wiener.py: the multichannel Wiener filter.
"""

from local_models.masker_denoiser.system import MaD

__all__ = ["MaD"]
