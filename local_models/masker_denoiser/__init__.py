"""Masker and Denoiser, and its SiSEC 2018 form MDL1 (Mimilakis et al., ICASSP 2018).

Start with system.py: separation and training. network.py: the network; objective.py: its losses; sequences.py: how a
signal becomes sequences of frames; overlapping_frames.py: the transform; recurrence.py: GRUs; wiener.py: the
multichannel Wiener filter.
"""

from local_models.masker_denoiser.system import MaD

__all__ = ["MaD"]
