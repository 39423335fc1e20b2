"""Networks of other packages, and of the user's own project, as systems.

Start with system.py: what the three systems train towards. A form says how a network is called: filterbank.py (masks
on a learnt filterbank), spectrum.py (complex masks or spectra of an STFT), waveform.py (waveform to sources).
tf_gridnet.py is a network of our own, for spectra.
"""

from local_models.networks.filterbank import FilterbankNetwork
from local_models.networks.form import Form
from local_models.networks.spectrum import SpectrumNetwork
from local_models.networks.system import NamedSeparator, Separator, UniversalSeparator
from local_models.networks.tf_gridnet import TFGridNet
from local_models.networks.waveform import WaveformNetwork

__all__ = [
    "FilterbankNetwork",
    "Form",
    "NamedSeparator",
    "Separator",
    "SpectrumNetwork",
    "TFGridNet",
    "UniversalSeparator",
    "WaveformNetwork",
]
