"""AuxIVA with fixed and learnt source models (Scheibler and Togami, ICASSP 2021).

auxiva.py: the iteration; demixing_updates.py: ISS, IP, IP2 in torch; kernel.py: the same compiled for the CPU, on the
sums of compiled_sums.py; source_models.py: Laplace, Gauss, NMF; surrogate.py: the learnt one and its training;
unrolled.py: back-propagation in constant memory; blind.py: the system that needs no training.
"""

from local_models.auxiva.blind import BlindSeparation
from local_models.auxiva.surrogate import SurrogateIVA

__all__ = ["BlindSeparation", "SurrogateIVA"]
