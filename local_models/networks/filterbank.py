"""Networks that mask a learnt filterbank, as Conv-TasNet and SepFormer do."""

from typing import Literal

import torch
from asteroid_filterbanks import make_enc_dec
from torch import Tensor, nn

from local_models.networks.form import Form, stacked


class FilterbankNetwork(Form):
    """A network that gives a mask for each source, between a learnt encoder with a ReLU and a learnt decoder.

    Args:
        network: by class_path, with its arguments, among them its own number of sources: (batch, filter, frame) to
            masks.
        n_filters: of encoder and decoder.
        kernel_size: of the filters, in samples.
        stride: from frame to frame, in samples; None: half the kernel.
        masks: the shape of what it gives: `batch_first`, (batch, source, filter, frame), or `sources_first`, (source,
            batch, filter, frame), as SpeechBrain's.
        activation: of the masks; `linear`: the network has its own.
    """

    def __init__(
        self,
        network: nn.Module,
        n_filters: int = 256,
        kernel_size: int = 16,
        stride: int | None = None,
        masks: Literal["batch_first", "sources_first"] = "batch_first",
        activation: Literal["relu", "sigmoid", "linear"] = "linear",
    ):
        super().__init__(network, n_mics=1, images=False, shortest=kernel_size)
        self.encoder, self.decoder = make_enc_dec(
            "free", n_filters, kernel_size, stride=stride or kernel_size // 2
        )
        self.masks = masks
        self.activation = {"relu": torch.relu, "sigmoid": torch.sigmoid}.get(activation)

    def estimate(self, mixture: Tensor, n_src: int) -> Tensor:
        with self.in_full_precision(mixture):
            code = torch.relu(self.encoder(mixture))
        masks = stacked(self.network(code)).float()
        if self.masks == "sources_first":
            masks = masks.transpose(0, 1)
        if masks.shape[1] != n_src:
            raise ValueError(self.wrong_number(masks.shape[1], n_src))
        if self.activation is not None:
            masks = self.activation(masks)
        with self.in_full_precision(mixture):
            masked = masks * code[:, None]
            return self.decoder(masked)[:, :, None]
