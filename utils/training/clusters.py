"""What a training does differently under a queue."""

from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment


def without_requeueing() -> list:
    """Plugins of a trainer: under SLURM its environment, without Lightning's own requeueing; elsewhere none.

    Requeueing writes hpc_ckpt_1.ckpt where the trainer has its root, from which later trainings there would go on.
    Ours write last.ckpt at a signal (see `checkpoints`), and the same command goes on from that.
    """
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []
