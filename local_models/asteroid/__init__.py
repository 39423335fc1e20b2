"""Asteroid's networks as systems, the baselines.

Start with system.py: masks on a filterbank, trained by SI-SDR with the best order of the sources. named_sources.py: the
same for voice and accompaniment; universal.py: for mixtures with silent slots; x_umx.py: X-UMX, for songs; fasnet.py:
FasNetTAC, for arrays of microphones.
"""

from local_models.asteroid.fasnet import FasNet
from local_models.asteroid.named_sources import NamedSources
from local_models.asteroid.system import AsteroidSystem
from local_models.asteroid.universal import UniversalAsteroid
from local_models.asteroid.x_umx import XUMX

__all__ = ["XUMX", "AsteroidSystem", "FasNet", "NamedSources", "UniversalAsteroid"]
