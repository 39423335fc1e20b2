"""Separation systems and their losses: no data set, no path.

A room for each method; each begins with its `system.py`, and its `__init__.py` says which file holds what:

- `two_step`: training on learnt latent targets; the latent losses are in `latent_losses.py`.
- `adversarial_pit`: discriminators beside the PIT loss; I-replacement is in `i_replacement.py`.
- `masker_denoiser`: singing voice by recurrent masks, MaD and MDL1.
- `auxiva`: AuxIVA with fixed and learnt source models; the ISS update is in `demixing_updates.py`.
- `asteroid`: Asteroid's networks, the baselines.
- `networks`: networks of other packages and of the user's own, and TF-GridNet.
- `oracles`: what sees the true sources.

What several rooms share:

- `system.py`: what a system is, and what a step of its training is. Start here.
- `fast_asteroid.py`, `fast_block.py`: Asteroid's blocks and norms, the same numbers in less time.
- `log_mse.py`, `universal.py`: the loss and the validation scores for mixtures with silent slots (FUSS).
- `scores.py`: what else is logged in validation. The scores of an evaluation, the FUSS score among them, are in
  `utils/evaluation/metrics`.
- `stft.py`, `silence.py`: the one transform, and when a signal counts as silent.
- `optimisation.py`: the optimiser of a step, and how its rate goes on.
- `ranges.py`, `compiled.py`: bounds of settings, and numba's compiler.
"""
