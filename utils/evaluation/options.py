"""What the commands let one choose. Nothing here takes long to import, so that --help is answered at once."""

from dataclasses import dataclass

from utils.errors import UserError

ON_DEMAND: dict[str, tuple[str, ...]] = {
    "speech": ("sdr", "bss_eval", "stoi", "estoi", "pesq"),
    "fuss": (),
    "music": ("gnsdr",),
}
"""By the name of each suite (suites.py), its metrics that take long and are computed only if one asks for them."""


@dataclass
class Blocks:
    """How a long signal is cut."""

    segment: float = 20.0
    """Seconds that the system hears at once; shorter signals are separated whole."""
    overlap: float = 4.0
    """Seconds shared by neighbouring segments, at most half of one."""
    batch: int = 2
    """Segments (of one channel) in a forward pass."""

    def __post_init__(self) -> None:
        if not 0 < self.segment < float("inf"):
            raise UserError(f"--segment {self.segment}: give a length in seconds")
        if not 0 <= self.overlap <= self.segment / 2:
            raise UserError(
                f"--overlap {self.overlap}: at least 0 and at most half of --segment, {self.segment / 2}"
            )
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: at least 1")


def chosen_device(name: str) -> str:
    """Where a system runs: what `--device` says, `auto` being the GPU if there is one."""
    import torch  # takes seconds

    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError(
            "--device cuda: this machine, or its torch, has no usable GPU; use --device cpu"
        )
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    return name
