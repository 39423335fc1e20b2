"""Size and speed of a system."""

import statistics
import time
import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

from local_models.system import System

SECONDS = 4.0  # of noise that is separated
REPEATS = 3


def measure(system: System, device: str, n_mics: int = 1) -> dict:
    """Size and speed of a system on `n_mics` channels; it is on the device afterwards.

    Returns:
        parameters; macs_per_second: multiply-adds for a second of audio (half of what torch.utils.flop_counter counts
        for convolutions and matrix products in `separate`); seconds_per_second: median time to separate 4 s, over 4 s;
        device.
    """
    noise = system.noise(SECONDS, n_mics)
    counter = FlopCounterMode(display=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Intel GPUs
        # oneDNN runs recurrent layers as one operation, which the counter does not know; neither does it cuDNN's.
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), counter:
            system.cpu().separate(noise[..., : system.sample_rate])
    system = system.to(device)
    noise = noise.to(device)
    seconds = []
    # The first pass is slower than the others, and not counted.
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        with torch.inference_mode():
            system.separate(noise).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    device_name = f"{torch.get_num_threads()} CPU threads"
    if device == "cuda":
        device_name = torch.cuda.get_device_name()
    return {
        "parameters": sum(parameter.numel() for parameter in system.parameters()),
        "macs_per_second": counter.get_total_flops() // 2,
        "seconds_per_second": statistics.median(seconds[1:]) / SECONDS,
        "device": device_name,
    }
