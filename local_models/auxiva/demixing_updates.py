"""Update rules of AuxIVA: from the weighted covariances of the present estimates to a better demixing matrix.

All rules minimise the same surrogate, sum_k a_k U_k a_k^H - 2 log|det A| at each frequency, over rows a_k of A, one
block of coordinates at a time:

- `iss`: iterative source steering, rank-1 updates without any inverse (Scheibler and Ono, ICASSP 2020, eqs 9-16);
- `ip`: iterative projection, one row at a time (Ono, WASPAA 2011);
- `ip2`: iterative projection of pairs of rows (Ono, ASJ Spring Meeting 2018);
- `iss2`: steering by pairs of sources (Ikeshita and Nakatani, 2022). With two sources it is `ip2`.

Pairs follow each other in a circle: (0, 1), (1, 2), ..., (n - 1, 0); of two sources there is one.

Each rule has a compiled twin in `kernel`: `_iss`, `_ip`, `_ip2`, `_iss2`.

Shapes: covariances U (..., source, D, D), complex128, where D = n_src, or more with dereverberation taps: the first
n_src entries belong to the estimates, then the delayed microphone signals. Every rule returns A (..., source, D),
which starts as the identity. Covariances are positive definite but for silent channels; differences of less than
`eps` of their terms are taken for rounding, and what would follow from them is left out.
"""

from collections.abc import Callable

import torch

from local_models.auxiva.linalg2 import eigenvectors, inverse2, normalise


def pairs(n_src: int) -> list[tuple[int, int]]:
    """Pairs of sources that an iteration of `ip2` or `iss2` goes through."""
    return [(0, 1)] if n_src == 2 else [(k, (k + 1) % n_src) for k in range(n_src)]


def iss(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    demixing = _start(covariances)
    for k in range(demixing.shape[-2]):
        row = demixing[..., k : k + 1, :]
        demixing = demixing - _steer(covariances, demixing, row, eps, own=k)[..., None] * row
    return _taps(covariances, demixing, eps)


def ip(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    demixing = _start(covariances)
    for k in range(demixing.shape[-2]):
        inverse = _inverse(demixing, covariances[..., k, :, :], [k])
        size = inverse[..., :, k : k + 1].real
        row = inverse @ demixing / torch.where(size > 0, size, 1.0).sqrt()
        demixing = _replace(demixing, {k: row})
    return _taps(covariances, demixing, eps)


def ip2(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    n_src = covariances.shape[-3]
    if n_src == 2:
        return iss2(covariances, eps)
    demixing = _start(covariances)
    for p, q in pairs(n_src):
        # Rows p and q of (A U_k A^H)^-1 for k = p and q; h of block_q h = lambda block_p h gives the new rows.
        inverses = [_inverse(demixing, covariances[..., k, :, :], [p, q]) for k in (p, q)]
        blocks = [inverse[..., :, [p, q]] for inverse in inverses]
        vectors = eigenvectors(blocks[1], blocks[0], eps)
        rows = {}
        for k, vector, block, inverse in zip((p, q), vectors, blocks, inverses, strict=True):
            rows[k] = normalise(vector, block)[..., None, :].conj() @ inverse @ demixing
        demixing = _replace(demixing, rows)
    return _taps(covariances, demixing, eps)


def iss2(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    demixing = _start(covariances)
    n_src = demixing.shape[-2]
    if n_src == 1:
        return iss(covariances, eps)
    for p, q in pairs(n_src):
        # Covariances of the pair under each source's weights
        main = demixing[..., [p, q], :]
        cross = covariances @ main.mH[..., None, :, :]  # (..., source, D, 2)
        own = main[..., None, :, :] @ cross  # (..., source, 2, 2)
        # The pair takes the eigenvectors of own_p h = lambda own_q h.
        vectors = eigenvectors(own[..., p, :, :], own[..., q, :, :], eps)
        rows = {}
        for k, vector in zip((p, q), vectors, strict=True):
            rows[k] = normalise(vector, own[..., k, :, :])[..., None, :].conj() @ main
        others = [k for k in range(n_src) if k not in (p, q)]
        if others:
            # The others lose what they share with the pair.
            mean = demixing[..., None, :] @ cross  # (..., source, 1, 2)
            steps = mean[..., others, :, :] @ inverse2(own[..., others, :, :], eps)
            for index, k in enumerate(others):
                rows[k] = demixing[..., k : k + 1, :] - steps[..., index, :, :] @ main
        demixing = _replace(demixing, rows)
    return _taps(covariances, demixing, eps)


UPDATES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "iss": iss,
    "ip": ip,
    "ip2": ip2,
    "iss2": iss2,
}


def _start(covariances):
    """The identity, (..., source, D)."""
    n_src, size = covariances.shape[-3:-1]
    identity = torch.eye(n_src, size, dtype=covariances.dtype, device=covariances.device)
    return identity.expand(*covariances.shape[:-3], n_src, size)


def _replace(demixing, rows):
    """`demixing` with some rows (..., 1, D) in place of its own."""
    return torch.cat(
        [rows.get(k, demixing[..., k : k + 1, :]) for k in range(demixing.shape[-2])], dim=-2
    )


def _steer(covariances, demixing, row, eps, own=None):
    """Steps v (..., source) along `row` (..., 1, D) that decorrelate each source from it; `own`: the row's source."""
    # Of source m: w_m U_m row^H and row U_m row^H; `size` is what the latter is a difference of.
    cross = (covariances @ row.mH[..., None, :, :]).squeeze(-1)  # (..., source, D)
    mean = (demixing * cross).sum(-1)
    power = (row * cross).sum(-1).real
    size = (row.abs().square() * covariances.diagonal(dim1=-2, dim2=-1).real).sum(-1)
    known = power > eps * size
    power = torch.where(known, power, 1.0)
    step = torch.where(known, mean / power, 0.0)
    if own is None:
        return step
    # The row's own source only changes its length.
    scale = torch.where(known, 1 - power.rsqrt(), 0.0)[..., own : own + 1]
    return torch.cat([step[..., :own], scale.to(step.dtype), step[..., own + 1 :]], dim=-1)


def _taps(covariances, demixing, eps):
    """Steps along the delayed microphone signals (T-ISS: Nakashima et al., ICASSP 2021), the same after every rule."""
    n_src, size = demixing.shape[-2:]
    for tap in range(n_src, size):
        row = torch.zeros_like(demixing[..., :1, :])
        row[..., tap] = 1
        demixing = demixing - _steer(covariances, demixing, row, eps)[..., None] * row
    return demixing


def _inverse(demixing, covariance, rows):
    """`rows` of the inverse of the estimates' covariance A U A^H, (..., len(rows), source).

    Silent estimates count as if they were alone and had a power of 1. Twin: `kernel._inverse_rows`.
    """
    own = demixing @ covariance @ demixing.mH
    power = own.diagonal(dim1=-2, dim2=-1).real
    own = own + torch.diag_embed(torch.where(power > 0, 0.0, 1.0)).to(own.dtype)
    unit = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)[:, rows]
    return torch.linalg.solve(own, unit.expand(*own.shape[:-1], len(rows))).mH
