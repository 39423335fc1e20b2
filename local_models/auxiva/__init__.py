"""AuxIVA with fixed and learnt source models (Scheibler and Togami, ICASSP 2021).

blind.py, surrogate.py: the systems, without and with training; array_system.py: the way from microphones to estimates
that both share; auxiva.py: the iteration; demixing_updates.py: ISS, IP, IP2; source_models.py: Laplace, Gauss, NMF (the
learnt one is in surrogate.py); audible.py: which frames and frequencies count; covariances.py, linalg2.py: sums and
2 x 2 matrices; unrolled.py: back-propagation in constant memory. The same compiled for the CPU: kernel.py, with
compiled_updates.py, compiled_linalg.py and compiled_sums.py.
"""

from local_models.auxiva.blind import BlindSeparation
from local_models.auxiva.surrogate import SurrogateIVA

__all__ = ["BlindSeparation", "SurrogateIVA"]
