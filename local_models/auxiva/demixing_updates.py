"""Update rules of AuxIVA: from the weighted covariances of the present estimates to a better demixing matrix.

All rules minimise the same surrogate, sum_k a_k U_k a_k^H - 2 log|det A| at each frequency, over rows a_k of A, one
block of coordinates at a time:

- `iss`: iterative source steering, rank-1 updates without any inverse (Scheibler and Ono, ICASSP 2020, eqs 9-16);
- `ip`: iterative projection, one row at a time (Ono, WASPAA 2011);
- `ip2`: iterative projection of pairs of rows (Ono, ASJ Spring Meeting 2018);
- `iss2`: steering by pairs of sources (Ikeshita and Nakatani, 2022). With two sources it is `ip2`.

Pairs follow each other in a circle: (0, 1), (1, 2), ..., (n - 1, 0); of two sources there is one.

Each rule has a compiled twin of the same name in `compiled_updates`, whose steps have the same numbers.

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
    if n_src == 2:
        return [(0, 1)]
    return [(k, (k + 1) % n_src) for k in range(n_src)]


def iss(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    """Iterative source steering: covariances (..., source, D, D) to A (..., source, D)."""
    demixing = _identity(covariances)
    for k in range(demixing.shape[-2]):
        row = _row(demixing, k)
        # Step 1: how far each source goes along row k, eqs 14 and 15.
        steps = _steps(covariances, demixing, row, eps, own=k)
        # Step 2: A becomes A - v a_k, eq. 9.
        demixing = demixing - steps[..., None] * row
    return _remove_past(covariances, demixing, eps)


def ip(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    """Iterative projection: covariances (..., source, D, D) to A (..., source, D)."""
    demixing = _identity(covariances)
    for k in range(demixing.shape[-2]):
        # Step 1: row k of (A U_k A^H)^-1.
        own = _of_source(covariances, k)
        inverse = _inverse_rows(own, demixing, [k])
        # Step 2: times A it is the new row, of length 1 under U_k.
        size = inverse[..., :, k : k + 1].real
        safe = torch.where(size > 0, size, 1.0)
        row = inverse @ demixing / safe.sqrt()
        demixing = _replace(demixing, {k: row})
    return _remove_past(covariances, demixing, eps)


def ip2(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    """Iterative projection by pairs: covariances (..., source, D, D) to A (..., source, D)."""
    n_src = covariances.shape[-3]
    if n_src == 2:
        return iss2(covariances, eps)
    demixing = _identity(covariances)
    for p, q in pairs(n_src):
        pair = [p, q]
        # Step 1: rows p and q of (A U_k A^H)^-1 for k = p and q, and the 2 x 2 block of their own columns.
        inverses = []
        blocks = []
        for k in pair:
            own = _of_source(covariances, k)
            inverse = _inverse_rows(own, demixing, pair)
            inverses.append(inverse)
            blocks.append(inverse[..., :, pair])
        # Step 2: h of block_q h = lambda block_p h, of length 1 under the own block. Blocks are of inverses: so q
        # stands first.
        vectors = eigenvectors(blocks[1], blocks[0], eps)
        # Step 3: the new rows are h^H times the rows of the inverse times A.
        rows = {}
        for index, k in enumerate(pair):
            unit = normalise(vectors[index], blocks[index])
            combination = unit[..., None, :].conj()
            rows[k] = combination @ inverses[index] @ demixing
        demixing = _replace(demixing, rows)
    return _remove_past(covariances, demixing, eps)


def iss2(covariances: torch.Tensor, eps: float) -> torch.Tensor:
    """Steering by pairs: covariances (..., source, D, D) to A (..., source, D)."""
    n_src = covariances.shape[-3]
    if n_src == 1:
        return iss(covariances, eps)
    demixing = _identity(covariances)
    for p, q in pairs(n_src):
        # Step 1: covariances of the rows of the pair under each source's weights, (..., source, 2, 2).
        main = demixing[..., [p, q], :]
        cross = covariances @ main.mH[..., None, :, :]  # (..., source, D, 2)
        own = main[..., None, :, :] @ cross
        rows = {}

        # Step 2: the other sources lose what they share with the pair.
        others = [k for k in range(n_src) if k not in (p, q)]
        if others:
            shared = demixing[..., None, :] @ cross  # (..., source, 1, 2)
            inverses = inverse2(own[..., others, :, :], eps)
            steps = shared[..., others, :, :] @ inverses
            for index, k in enumerate(others):
                along = steps[..., index, :, :] @ main
                rows[k] = _row(demixing, k) - along

        # Step 3: the pair takes the eigenvectors of own_p h = lambda own_q h, of length 1: row p that of the smaller
        # eigenvalue, with the least power under U_p, and row q the other.
        own_p = _of_source(own, p)
        own_q = _of_source(own, q)
        smaller, larger = eigenvectors(own_p, own_q, eps)
        unit_p = normalise(smaller, own_p)
        unit_q = normalise(larger, own_q)
        rows[p] = unit_p[..., None, :].conj() @ main
        rows[q] = unit_q[..., None, :].conj() @ main
        demixing = _replace(demixing, rows)
    return _remove_past(covariances, demixing, eps)


UPDATES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "iss": iss,
    "ip": ip,
    "ip2": ip2,
    "iss2": iss2,
}


# ---- rows and matrices


def _identity(covariances: torch.Tensor) -> torch.Tensor:
    """The A that every rule starts with, (..., source, D)."""
    *batch, n_src, size, _ = covariances.shape
    identity = torch.eye(n_src, size, dtype=covariances.dtype, device=covariances.device)
    return identity.expand(*batch, n_src, size)


def _row(demixing: torch.Tensor, k: int) -> torch.Tensor:
    """Row k, (..., 1, D)."""
    return demixing[..., k : k + 1, :]


def _of_source(covariances: torch.Tensor, k: int) -> torch.Tensor:
    """The matrix of source k, (..., D, D)."""
    return covariances[..., k, :, :]


def _replace(
    demixing: torch.Tensor,
    rows: dict[int, torch.Tensor],
) -> torch.Tensor:
    """`demixing` with some rows (..., 1, D) in place of its own."""
    new = []
    for k in range(demixing.shape[-2]):
        new.append(rows.get(k, _row(demixing, k)))
    return torch.cat(new, dim=-2)


def _steps(
    covariances: torch.Tensor,
    demixing: torch.Tensor,
    row: torch.Tensor,
    eps: float,
    own: int | None = None,
) -> torch.Tensor:
    """Steps v (..., source) along `row` (..., 1, D) that decorrelate each source from it; `own`: the row's source."""
    # Step 1a: of source m, mean = a_m U_m row^H and power = row U_m row^H.
    column = row.mH[..., None, :, :]
    cross = (covariances @ column).squeeze(-1)  # (..., source, D)
    mean = (demixing * cross).sum(-1)
    power = (row * cross).sum(-1).real

    # Step 1b: the power is a difference of terms of this size, and below their rounding there is no step.
    diagonal = covariances.diagonal(dim1=-2, dim2=-1).real
    size = (row.abs().square() * diagonal).sum(-1)
    known = power > eps * size
    power = torch.where(known, power, 1.0)
    steps = torch.where(known, mean / power, 0.0)
    if own is None:
        return steps

    # Step 1c: the row's own source only changes its length.
    lengths = torch.where(known, 1 - power.rsqrt(), 0.0)
    length = lengths[..., own : own + 1].to(steps.dtype)
    before = steps[..., :own]
    behind = steps[..., own + 1 :]
    return torch.cat([before, length, behind], dim=-1)


def _remove_past(
    covariances: torch.Tensor,
    demixing: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Steps along the delayed microphone signals (T-ISS: Nakashima et al., ICASSP 2021), the same after every rule."""
    n_src, size = demixing.shape[-2:]
    for tap in range(n_src, size):
        row = torch.zeros_like(_row(demixing, 0))
        row[..., tap] = 1
        steps = _steps(covariances, demixing, row, eps)
        demixing = demixing - steps[..., None] * row
    return demixing


def _inverse_rows(
    covariance: torch.Tensor,
    demixing: torch.Tensor,
    rows: list[int],
) -> torch.Tensor:
    """Some rows of the inverse of the estimates' covariance A U A^H, (..., len(rows), source).

    Silent estimates count as if they were alone and had a power of 1. Twin: `compiled_linalg.inverse_rows`.
    """
    own = demixing @ covariance @ demixing.mH
    power = own.diagonal(dim1=-2, dim2=-1).real
    silent = torch.where(power > 0, 0.0, 1.0)
    own = own + torch.diag_embed(silent).to(own.dtype)
    # Columns of the inverse of a Hermitian matrix are its rows, conjugated.
    n_src = own.shape[-1]
    identity = torch.eye(n_src, dtype=own.dtype, device=own.device)
    units = identity[:, rows].expand(*own.shape[:-1], len(rows))
    return torch.linalg.solve(own, units).mH
