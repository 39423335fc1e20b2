"""Small systems, batches and updates for the tests of adversarial PIT."""

import torch

from local_models.adversarial_pit.discriminator import DiscriminatorOptions
from local_models.adversarial_pit.discriminator_networks import DOMAINS
from local_models.adversarial_pit.system import AdversarialPIT
from local_models.adversarial_pit.tdcnpp import TDCNpp
from local_models.system import Optimisation

ALL = [
    DiscriminatorOptions(domain, family, n, with_mixture=False, filters=8, windows=(128,))
    for domain in DOMAINS
    for family, n in (("instance", 0), ("context", 2))
]


def network(n_freq, n_src):
    return TDCNpp(n_freq, n_src, 8, 12, 2, 1)


class Devices:
    """In the place of a trainer: a number of devices on which each quantity has this mean; None: one device."""

    def __init__(self, mean=None, accumulate=1):
        self.strategy = self
        self.mean = mean
        self.accumulate_grad_batches = accumulate
        self.current_epoch = 0
        self.max_epochs = 10

    def reduce(self, tensor, reduce_op):
        assert reduce_op in ("mean", "sum")
        return tensor if self.mean is None else torch.full_like(tensor, self.mean)


ALONE, IN_DOUBT, SURE = Devices(), Devices(0.6), Devices(0.995)


def system(*discriminators, seed=0, step="adversarial", **options):
    torch.manual_seed(seed)
    model = AdversarialPIT(network, discriminators=discriminators or ALL[3:4], **options)
    model.begin_step(step, Optimisation(lr=1e-3, halve_after=0))
    model.log = lambda *args, **kwargs: None
    model.trainer = ALONE
    return model.train()


def batch(seed=1, time=2000):
    draw = torch.Generator().manual_seed(seed)
    sources = 0.1 * torch.randn(3, 4, time, generator=draw)
    sources[1, 2:], sources[2, 1:] = 0, 0
    mixture = sources.sum(1, keepdim=True)
    return {"mixture": mixture, "sources": sources[:, :, None], "id": ["a", "b", "c"]}


def signals(data):
    """Sources (batch, n_src, time) and mixture (batch, time) of a batch: what losses and discriminators take."""
    return data["sources"][:, :, 0], data["mixture"][:, 0]


def estimates_of(model, data):
    """(batch, n_src, time)."""
    return model.separate(data["mixture"])[:, :, 0]


def update(model, optimizer, data):
    loss = model.training_step(data, 0)
    optimizer.zero_grad()
    loss.backward()
    model.on_before_optimizer_step(optimizer)
    model.configure_gradient_clipping(optimizer, 5.0)
    optimizer.step()
