"""What a training writes down: metrics.csv, throughput, memory, time, audio and spectrograms."""

import resource
import time
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from tqdm import tqdm

from utils.evaluation.apply import apply
from utils.files import write_text
from utils.training.loggers import write_audio, write_image
from utils.training.model_files import KEY, requirements


class Bookkeeping(pl.Callback):
    """A row of metrics.csv for each epoch: losses, time, throughput, peak memory. Its state is in the checkpoint.

    Also puts the configuration of the system into each checkpoint, which makes it a model file.

    Args:
        folder: of the step.
        system_config: plain configuration of the system (`class_path`, `init_args`).
        segment: length of a training example in seconds.
    """

    def __init__(self, folder: Path, system_config: dict, segment: float):
        self.folder = folder
        self.system_config = system_config
        self.segment = segment
        self.requirements = requirements(system_config)
        self.rows: list[dict] = []
        self.seconds = 0.0
        self.peak_memory = 0.0
        # Of the epoch under way, in seconds: since its start, in its batches, and of audio in them.
        self._elapsed = 0.0
        self._training = 0.0
        self._audio = 0.0
        self._start = time.monotonic()

    def state_dict(self):
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "elapsed": time.monotonic() - self._start,
            "training": self._training,
            "audio": self._audio,
        }

    def load_state_dict(self, state):
        self.rows = state["rows"]
        self.seconds = state["seconds"]
        self.peak_memory = state["peak_memory"]
        self._elapsed = state["elapsed"]
        self._training = state["training"]
        self._audio = state["audio"]

    def on_train_start(self, trainer, system):
        # Within an epoch Lightning goes on without its start; else that puts the numbers back to zero.
        self._start = time.monotonic() - self._elapsed

    def on_train_epoch_start(self, trainer, system):
        self._start = time.monotonic()
        self._training = 0.0
        self._audio = 0.0

    def on_train_batch_start(self, trainer, system, batch, index):
        self._lap = time.monotonic()

    def on_train_batch_end(self, trainer, system, outputs, batch, index):
        self._training += time.monotonic() - self._lap
        self._audio += len(batch["mixture"]) * self.segment * trainer.world_size

    def on_train_epoch_end(self, trainer, system):
        elapsed = time.monotonic() - self._start
        self.seconds += elapsed
        self.peak_memory = max(self.peak_memory, peak_memory(system.device))
        row = {
            "epoch": trainer.current_epoch,
            "updates": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        row |= {name: round(value.item(), 5) for name, value in trainer.callback_metrics.items()}
        row |= {
            "seconds": round(elapsed, 2),
            "audio_seconds_per_second": round(self._audio / max(self._training, 1e-9), 2),
            "peak_memory_mib": round(self.peak_memory),
        }
        self.rows.append(row)
        for name in ("audio_seconds_per_second", "peak_memory_mib", "lr"):
            trainer.logger.log_metrics({name: row[name]}, step=trainer.global_step)
        if trainer.is_global_zero:
            shown = ("train_loss", "val_loss", "val_si_sdri", "audio_seconds_per_second", "seconds")
            values = ", ".join(f"{name} {row[name]:.2f}" for name in shown if name in row)
            tqdm.write(
                f"{system.step.name}, epoch {row['epoch'] + 1} of {trainer.max_epochs}: {values}"
            )
            write_text(self.folder / "metrics.csv", pd.DataFrame(self.rows).to_csv(index=False))

    def on_save_checkpoint(self, trainer, system, checkpoint):
        checkpoint[KEY] = self.system_config
        checkpoint.update(self.requirements)


class CountOnce(pl.Callback):
    """Over several devices each validation example counts once: a batch that is there for the number only weighs 0."""

    def on_validation_batch_start(self, trainer, system, batch, index, dataloader_idx=0):
        if trainer.val_dataloaders.sampler.repeats(index):
            batch["weight"] = 0.0


class EagerValidation(pl.Callback):
    """Validation without compiled code, which would be compiled once more for each length."""

    def on_validation_start(self, trainer, system):
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer, system):
        torch.compiler.set_stance("default")


def peak_memory(device: torch.device) -> float:
    """Largest memory in use so far, in MiB: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Examples(pl.Callback):
    """Audio and spectrograms of the first validation examples to the logger, every so many epochs."""

    def __init__(self, number: int, every: int):
        self.number = number
        self.every = every

    @torch.no_grad()
    def on_validation_end(self, trainer, system):
        epoch = trainer.current_epoch
        is_due = epoch == 0 or (epoch + 1) % self.every == 0
        if trainer.sanity_checking or not trainer.is_global_zero or not is_due:
            return
        dataset = trainer.val_dataloaders.dataset
        step = trainer.global_step
        for index in range(min(self.number, len(dataset))):
            example = dataset[0, index]
            # The first channel is enough to be heard, unless the system needs all.
            mixture = torch.as_tensor(example["mixture"])
            heard = mixture[:1] if system.n_mics == 1 else mixture
            signals = {}
            for i, estimate in enumerate(apply(system, heard), 1):
                signals[f"estimate{i}"] = estimate[0]
            if epoch == 0:
                signals["mixture"] = mixture[0]
                for i, source in enumerate(torch.as_tensor(example["sources"]), 1):
                    signals[f"source{i}"] = source[0]
            for name, signal in signals.items():
                audible = signal / signal.abs().max().clamp(min=1e-8)
                place = f"example{index}/{name}"
                write_audio(trainer.logger, place, audible, system.sample_rate, step)
            image = spectrograms(list(signals.values()))
            write_image(trainer.logger, f"example{index}/spectrograms", image, step)


def spectrograms(signals: list[torch.Tensor]) -> torch.Tensor:
    """Log-magnitude spectrograms of signals (time,) side by side, 60 dB range.

    Returns:
        a grey image (1, frequency, time) in [0, 1].
    """
    images = []
    for signal in signals:
        magnitude = torch.stft(
            signal, 256, 128, window=torch.hann_window(256), return_complex=True
        ).abs()
        level = 20 * torch.log10(magnitude / magnitude.max().clamp(min=1e-8) + 1e-8)
        images.append((level.clamp(min=-60) / 60 + 1).flip(0))
    return torch.cat(images, dim=1)[None]
