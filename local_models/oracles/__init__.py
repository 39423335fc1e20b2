"""What sees the true sources: ideal masks, beamformers, shares of the mixture."""

from local_models.oracles.beamformer import OracleBeamformer
from local_models.oracles.masks import StftOracle
from local_models.oracles.shares import Shares

__all__ = ["OracleBeamformer", "Shares", "StftOracle"]
