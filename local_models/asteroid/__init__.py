"""Asteroid's networks as systems, the baselines.

system.py: masks on a filterbank, trained by PIT; named_sources.py: sources with names; universal.py: silent slots;
x_umx.py: X-UMX; fasnet.py: FasNetTAC.
"""

from local_models.asteroid.fasnet import FasNet
from local_models.asteroid.named_sources import NamedSources
from local_models.asteroid.system import AsteroidSystem
from local_models.asteroid.universal import UniversalAsteroid
from local_models.asteroid.x_umx import XUMX

__all__ = ["XUMX", "AsteroidSystem", "FasNet", "NamedSources", "UniversalAsteroid"]
